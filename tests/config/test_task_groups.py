"""`task=<suite>/...`: an option for everything that can be asked for, generated from the registry."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from twn_lightning import cli, config, sweep_job
from twn_lightning.benchmark.protocol import PROTOCOLS, Protocol
from twn_lightning.benchmark.registry import (
    NANO_SUITE,
    TASK_FILES,
    VERSIONS,
    all_tasks,
    meta_tasks,
    select_tasks,
    selections,
)
from twn_lightning.errors import ConfigError
from twn_lightning.evaluate import protocol_of
from twn_lightning.evaluation.embedding_cache import CachePolicy
from twn_lightning.evaluation.encoders import ENCODERS
from twn_lightning.settings import Settings, TaskSettings


def test_every_selection_is_an_option() -> None:
    options = config.groups()["task"]
    assert options[0] == "nano"
    assert options[1:] == [f"{suite}/{name}" for suite in TASK_FILES for name in selections(suite)]
    assert len(options) == 1 + (4 + 12 + 78) + (4 + 9 + 11)


def test_every_option_is_stored_and_can_be_typed() -> None:
    config.load_settings()
    parser = OverridesParser.create()
    for option in config.groups()["task"][1:]:
        assert parser.parse_override(f"task={option}").value() == option
        suite, name = option.split("/")
        task = ConfigStore.instance().load(f"task/{option}.yaml").node
        assert task["suite"] == suite
        assert [row.name for row in select_tasks(task["names"], suite)] == selections(suite)[name]
        assert set(task) == set(Settings().task.__dict__)


@pytest.mark.parametrize("name", ["all", "video", "VD-OOD", "ImageNet-1K", "ViDoRe_esg_reports_human_labeled_v2"])
def test_options_compose(name: str) -> None:
    assert config.load_settings([f"task=mmeb_v2/{name}"]).task == TaskSettings(suite="mmeb_v2", names=[name])


@pytest.mark.parametrize("name", ["all", "visdoc", "I-RET", "NanoVideoRET"])
def test_options_of_the_nano_suite_compose(name: str) -> None:
    """Its images are small: MMEB-V2's smallest area would enlarge them."""
    task = config.load_settings([f"task=mmeb_nano/{name}"]).task
    assert task == TaskSettings(suite="mmeb_nano", names=[name], protocol="nano")
    protocol = protocol_of(task)
    assert (protocol.min_pixels, protocol.max_pixels, protocol.num_frames) == (None, None, 8)


def test_options_and_keys_combine() -> None:
    settings = config.load_settings(["task=mmeb_v2/I-CLS", "task.version=2.0.1", "task.query_mode=generative"])
    assert settings.task.names == ["I-CLS"]
    protocol = protocol_of(settings.task)
    assert (protocol.version, protocol.query_mode) == ("2.0.1", "generative")
    assert protocol.max_pixels == PROTOCOLS["vlm2vec"].max_pixels
    chosen = config.load_settings(["task.suite=mmeb_v2", "task.names=[K700,MSR-VTT,V-MRET]"]).task.names
    assert [task.name for task in select_tasks(chosen)][:2] == ["K700", "MSR-VTT"]


def test_the_protocol_stays_as_named_without_changes() -> None:
    for name, protocol in PROTOCOLS.items():
        assert protocol_of(config.load_settings([f"task.protocol={name}"]).task) == protocol


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("task=mmeb_v2/imag", "did you mean 'mmeb_v2/image'"),
        ("task=mmeb_v2/msr-vtt", "did you mean 'mmeb_v2/MSR-VTT'"),
        ("task=mmeb_v2/DocVQ", "did you mean 'mmeb_v2/DocVQA'"),
        ("task.media_rot=x", "did you mean 'task.media_root'"),
        ("task.ties=random", "one of pessimistic, optimistic, first"),
        ("task.num_frames=0", "task.num_frames must be at least 1"),
        ("task.suite=mmeb_v2", "names no task"),
        ("task.suite=mmeb_nano", r"names no task: choose with task=mmeb_nano/all, or task\.names=\[image,NanoVideoQA"),
        ("task=mmeb_nano/NanoCSL", "did you mean 'mmeb_nano/NanoCLS'"),
        ("task.cache=alway", "only-missing, always, never, only-cache"),
    ],
)
def test_mistakes_are_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        config.load_settings([override])


@pytest.mark.parametrize("key", ["media_root", "annotations_root"])
def test_the_nano_suite_writes_its_own_files(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"task\.{key} is for MMEB-V2"):
        config.load_settings(["task=mmeb_nano/all", f"task.{key}=/media"])


def test_pixel_budgets_must_leave_room() -> None:
    with pytest.raises(ConfigError, match=r"task\.max_pixels \(10\) is below task\.min_pixels \(20\)"):
        config.load_settings(["task.min_pixels=20", "task.max_pixels=10"])


def test_a_sweep_may_run_over_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(sweep_job, "run_child", lambda command, *_: commands.append(command) or 0)
    config.run_sweep(["task=mmeb_v2/I-CLS,mmeb_v2/DocVQA", f"paths.output_root={tmp_path}"])
    assert [word for command in commands for word in command if word.startswith("task=")] == [
        "task=mmeb_v2/I-CLS", "task=mmeb_v2/DocVQA",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="unknown option of task"):
        config.run_sweep(["task=mmeb_v2/I-CLS,mmeb_v2/DocVQB"])


def test_settings_offer_what_the_layers_below_know() -> None:
    settings, protocol = get_type_hints(TaskSettings), get_type_hints(Protocol)
    for name in ("ndcg_pairing", "ties", "query_mode", "candidate_mode"):
        assert get_args(get_args(settings[name])[0]) == get_args(protocol[name])
    assert get_args(get_args(settings["version"])[0]) == VERSIONS
    assert get_args(settings["protocol"]) == tuple(PROTOCOLS)
    assert get_args(settings["cache"]) == get_args(CachePolicy)
    assert get_args(settings["encoder"]) == tuple(ENCODERS)


def test_groups_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--groups"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("task "))
    for name in (
        "nano",
        "mmeb_v2/all",
        f"mmeb_v2/{next(iter(meta_tasks()))}",
        f"mmeb_v2/{all_tasks()[-1].name}",
        f"{NANO_SUITE}/NanoDoc",
    ):
        assert name in line
