"""What a profiled run leaves: a trace of the right steps, and a table of operators that adds up."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.stage_runs import InterruptAfter, StageRun, tiny_settings
from twn_lightning.callbacks import ProfileSteps, build_callbacks
from twn_lightning.callbacks.profile import STEP, check_labelling, top_operators
from twn_lightning.errors import ConfigError
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateStageSettings, SFTSettings


def profiled(folder: Path, max_steps: int, steps: int, *others: Any) -> StageRun:
    stage = SFTSettings(batch_size=4, chunk_size=4, max_steps=max_steps)
    return StageRun(tiny_settings(stage, folder), (ProfileSteps(RunFolder(folder), steps), *others))


def traced_steps(folder: Path) -> int:
    with gzip.open(folder / "profile" / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    assert any(event["name"] == "aten::mm" for event in events)
    return sum(event["name"] == STEP for event in events)


@pytest.mark.parametrize(("max_steps", "steps", "traced"), [(5, 2, 2), (2, 9, 2)])
def test_so_many_steps_are_traced(max_steps: int, steps: int, traced: int, tmp_path: Path) -> None:
    profiled(tmp_path, max_steps, steps).fit()
    assert traced_steps(tmp_path) == traced


def test_the_first_steps_warm_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[int] = []
    begin = ProfileSteps._begin

    def note(self: ProfileSteps, trainer: Any, stage: Any) -> None:
        began.append(trainer.fit_loop.epoch_loop.batch_progress.current.completed)
        begin(self, trainer, stage)

    monkeypatch.setattr(ProfileSteps, "_begin", note)
    profiled(tmp_path, 4, 1).fit()
    assert began == [2]


def test_an_interrupted_run_leaves_what_was_traced(tmp_path: Path) -> None:
    run = profiled(tmp_path, 6, 4, InterruptAfter(4))
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert 1 <= traced_steps(tmp_path) < 4, "the step that was running may end"


def test_the_gates_trace_holds_the_labelling(tmp_path: Path) -> None:
    settings = tiny_settings(GateStageSettings(batch_size=8, max_epochs=3), tmp_path)
    StageRun(settings, (ProfileSteps(RunFolder(tmp_path), 2),)).fit()
    assert traced_steps(tmp_path) == 2
    attended = [line for line in (tmp_path / "profile" / "top.txt").read_text().splitlines() if "attention" in line]
    assert attended, "a gate alone has no attention"


def test_a_labelling_that_memory_would_not_hold_is_refused(tmp_path: Path) -> None:
    settings = tiny_settings(GateStageSettings(decode_batch_size=32), tmp_path)
    check_labelling(replace(settings, data=replace(settings.data, gate_pairs=192, calibration_pairs=64)), 1)
    many = replace(settings, data=replace(settings.data, gate_pairs=500, calibration_pairs=200))
    with pytest.raises(ConfigError, match=r"700 queries, 23 batches.*data.gate_pairs=64"):
        check_labelling(many, 1)
    check_labelling(many, 4)


def test_the_table_is_ordered_and_adds_up() -> None:
    events = [
        SimpleNamespace(key=key, count=1000, self_cpu_time_total=cpu, self_device_time_total=cuda)
        for key, cpu, cuda in (("small", 1000, 0), ("large", 3000, 0), ("gone", 0, 0))
    ]
    lines = top_operators(events, limit=2).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["large", "1,000", "3.0", "0.0", "75.0%"],
        ["small", "1,000", "1.0", "0.0", "25.0%"],
        ["all", "3,000", "4.0", "0.0"],
    ]
    events[0].self_device_time_total = 500
    assert top_operators(events).splitlines()[1].split() == ["small", "1,000", "1.0", "0.5", "100.0%"]


def test_only_a_run_that_asks_for_it_is_profiled(tmp_path: Path) -> None:
    settings = tiny_settings(SFTSettings(), tmp_path)
    asked = replace(settings, trainer=replace(settings.trainer, profile_steps=2))
    found = [
        any(isinstance(callback, ProfileSteps) for callback in build_callbacks(chosen, RunFolder(tmp_path)))
        for chosen in (settings, asked)
    ]
    assert found == [False, True]
