"""The config tree: it says what the dataclasses say, every experiment composes, every key is explained."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from twn_lightning import config, config_reference
from twn_lightning.errors import ConfigError
from twn_lightning.settings import Settings
from twn_lightning.validation import STAGES, flatten, settings_from_dict, settings_to_dict

MAX_LEAVES = 120
OVERRIDE_GROUPS = ("experiment", "sweep", "debug", "debug_stage")
EXPERIMENTS = config.groups()["experiment"]
OPTIONS = [
    (group, option)
    for group, options in config.groups().items()
    for option in options
    if group not in OVERRIDE_GROUPS and "/" not in option  # those of MMEB-V2 are generated: test_task_groups.py
]


def test_defaults_equal_the_dataclasses() -> None:
    assert config.load_settings() == Settings()


@pytest.mark.parametrize("stage", STAGES)
def test_leaves_stay_few_and_are_complete(stage: str) -> None:
    settings = config.load_settings([f"stage={stage}"])
    assert isinstance(settings.stage, STAGES[stage])
    assert settings.stage == STAGES[stage]()
    assert len(flatten(settings_to_dict(settings))) < MAX_LEAVES


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    settings = config.load_settings([f"experiment={experiment}"])
    assert settings.name == experiment
    assert settings_from_dict(yaml.safe_load(config.resolved_yaml(settings))) == settings


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_limited(experiment: str) -> None:
    settings = config.load_settings([f"experiment={experiment}", "debug=limit"])
    assert settings.trainer.devices == 1
    assert settings.data.train_pairs == 64


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_profiled(experiment: str) -> None:
    settings = config.load_settings([f"experiment={experiment}", "debug=profile"])
    assert settings.trainer.devices == 1
    assert settings.trainer.profile_steps == 3


@pytest.mark.parametrize("sweep", config.groups()["sweep"])
def test_every_sweep_names_keys_that_exist(sweep: str) -> None:
    preset = yaml.safe_load((config.conf_dir() / "sweep" / f"{sweep}.yaml").read_text())
    keys = {key for stage in STAGES for key in flatten(settings_to_dict(config.load_settings([f"stage={stage}"])))}
    for key in preset["hydra"]["sweeper"]["params"]:
        assert key in config.groups() or any(k == key or k.startswith(f"{key}.") for k in keys)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_explains_every_key(group: str, option: str) -> None:
    path = config.conf_dir() / group / f"{option}.yaml"
    comments = config_reference.key_comments(path)
    assert path.read_text().startswith("# ")
    assert [key for key, comment in comments.items() if not comment] == []
    written = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    composed = settings_to_dict(config.load_settings([f"{group}={option}"]))[group]
    assert flatten(written) == flatten(composed), "an option says all keys of its group and nothing else"


@pytest.mark.parametrize("group", OVERRIDE_GROUPS[:3])
def test_named_overrides_open_with_their_command(group: str) -> None:
    for path in sorted((config.conf_dir() / group).glob("*.yaml")):
        opening = path.read_text().split("\n", 5)
        assert opening[0] == "# @package _global_"
        assert opening[1].startswith("# ")
        assert opening[2].startswith("#   twn train "), path
        assert path.stem in opening[2]


def test_commands_in_experiments_compose() -> None:
    for path in sorted((config.conf_dir() / "experiment").glob("*.yaml")):
        for line in path.read_text().splitlines():
            if line.startswith("#   twn train "):
                config.load_settings(line.removeprefix("#   twn train ").split())


def test_reference_is_up_to_date() -> None:
    stored = (config.conf_dir() / config_reference.REFERENCE_FILE).read_text()
    assert stored == config_reference.reference_text(), "the configuration changed: run `make reference`"


def test_reference_names_every_key() -> None:
    stored = (config.conf_dir() / config_reference.REFERENCE_FILE).read_text()
    lines = [line for line in stored.splitlines() if line and not line.startswith("#")]
    expected = {key for stage in STAGES for key in flatten(settings_to_dict(config.load_settings([f"stage={stage}"])))}
    assert {line.split(":")[0] for line in lines} == expected


def test_packaged_conf_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = tmp_path / "twn_lightning" / "conf"
    packaged.mkdir(parents=True)
    monkeypatch.setattr(config, "__file__", str(tmp_path / "twn_lightning" / "config.py"))
    with pytest.raises(ConfigError, match="no config folder"):
        config.conf_dir()
    (packaged / "train.yaml").write_text("")
    assert config.conf_dir() == packaged
