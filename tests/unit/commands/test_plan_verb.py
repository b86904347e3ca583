"""`twn plan`: the settings behind its short names, its tables, its JSON, and what it refuses."""

from __future__ import annotations

import json

import pytest

from twn_lightning import cli
from twn_lightning.commands.plan_stages import settings_of_stages
from twn_lightning.errors import ConfigError
from twn_lightning.settings import GateStageSettings, RLSettings, SFTSettings


def test_the_three_stages_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=qwen3vl_8b", "gpus=64", "batch=1024"]) == 0
    printed = capsys.readouterr().out
    for word in ("sft", "gate", "rl", "never", "adaptive, 50% think", "always", "GPU-hours", "What this rests on"):
        assert word in printed
    assert "8.77 B parameters" in printed
    assert "stage.prompts_per_step=64 would use all" in printed


def test_what_does_not_fit_is_told_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "experiment=qwen3vl_4b_sft", "stage.chunk_size=32"]) == 0
    printed = capsys.readouterr().out
    assert "too much" in printed
    assert "would fit" in printed


def test_json_has_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "experiment=qwen3vl_4b_sft", "--json", "--think-rate", "0.25"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["stages"]) == ["sft", "gate", "rl"]
    stage = found["stages"]["sft"]
    assert stage["devices"] == 8
    assert stage["memory_gib"] == pytest.approx(sum(stage["memory"].values()))
    assert stage["device_hours"] == pytest.approx(8 * stage["hours"])
    assert set(found["mmeb_v2"]["hours"]) == {"never", "adaptive", "always"}
    assert any("Measured" in source for source in found["device"]["sources"])


def test_lengths_change_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for flags in (["--cot-tokens", "64"], ["--visual-tokens", "900"]):
        assert cli.main(["plan", "model=qwen3vl_4b", "stage=sft", "--json", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out))
    short, long = found
    assert short["items"]["cot_tokens"] == 64
    assert long["items"]["visual_tokens"] == 900
    assert short["stages"]["sft"]["hours"] < long["stages"]["sft"]["hours"]


def test_small_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=micro", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"]["name"] == "cpu"
    assert all(stage["hours"] > 0 and stage["fits"] for stage in found["stages"].values())


def test_short_names() -> None:
    (sft, gate, rl), notes = settings_of_stages(["model=qwen3vl_8b", "gpus=16", "batch=512", "stage.chunk_size=2"])
    assert isinstance(sft.stage, SFTSettings)
    assert isinstance(gate.stage, GateStageSettings)
    assert isinstance(rl.stage, RLSettings)
    assert (sft.stage.batch_size, sft.stage.chunk_size, rl.stage.chunk_size) == (512, 2, 2)
    assert gate.stage.batch_size == 1024
    assert {(s.trainer.devices, s.trainer.num_nodes, s.model.name) for s in (sft, gate, rl)} == {(8, 2, "qwen3vl_8b")}
    assert rl.name == "qwen3vl_4b_rl"
    assert sft.name == "qwen3vl_8b_sft"
    assert notes == []


def test_rows_that_do_not_divide_take_fewer_devices() -> None:
    (rl,), (note,) = settings_of_stages(["model=qwen3vl_4b", "stage=rl", "gpus=64"])
    assert rl.trainer.devices * rl.trainer.num_nodes == 32
    assert "stage.prompts_per_step=32 cannot be divided among 64 devices" in note


def test_an_experiment_without_siblings_is_planned_alone() -> None:
    (settings,), _ = settings_of_stages(["experiment=tiny_smoke"])
    assert settings.name == "tiny_smoke"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpus=12"], "whole nodes of 8"),
        (["gpus=many"], "whole number"),
        (["batch=0"], "whole number"),
        (["stage=rl", "batch=64"], "stage 1"),
        (["stage=rl", "stage.batch_size=64"], "no stage that is planned here"),
        (["model=qwen3vl_5b"], "did you mean 'qwen3vl_8b'"),
        (["experiment=nano_sftt"], "did you mean 'nano_sft'"),
        (["stage.chunksize=3"], "chunk_size"),
        (["stage=slt"], "did you mean 'sft'"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of_stages(overrides)


@pytest.mark.parametrize("flags", [["--think-rate", "1.5"], ["--cot-tokens", "0"], ["--device", "h1000"]])
def test_flags_that_are_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *flags]) == 2
    assert flags[1] in capsys.readouterr().err
