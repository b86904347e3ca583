"""Checkpoints that vouch for their content, the one before the last, and early stopping across a resume."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twn_lightning.errors import CheckpointError
from twn_lightning.run import RunFolder
from twn_lightning.settings import GateStageSettings, SFTSettings
from twn_lightning.stages.checkpoint_files import RunCheckpointIO, content_digest, read_checkpoint, usable_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with two checkpoints, of steps 1 and 2."""
    run = RunFolder(tmp_path / "run")
    for step in (1, 2):
        RunCheckpointIO(run).save_checkpoint(content(step), run.last_checkpoint)
    return run


def content(step: int) -> dict[str, Any]:
    state = {
        "weight": torch.full((3, 4), float(step)),
        "half": torch.ones(5, dtype=torch.bfloat16),
        "count": torch.tensor(step),
    }
    return {"twn": {"version": 2}, "state_dict": state, "global_step": step, "random": (3, [1, None, 0.5])}


def test_what_was_saved_comes_back_and_the_one_before_is_kept(run: RunFolder) -> None:
    assert read_checkpoint(run.last_checkpoint)["global_step"] == 2
    assert read_checkpoint(run.previous_checkpoint)["global_step"] == 1
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}


def test_a_crash_after_the_earlier_one_was_kept_leaves_nothing_behind(run: RunFolder) -> None:
    run.previous_checkpoint.unlink()
    run.previous_checkpoint.hardlink_to(run.last_checkpoint)
    RunCheckpointIO(run).save_checkpoint(content(3), run.last_checkpoint)
    assert read_checkpoint(run.last_checkpoint)["global_step"] == 3
    assert read_checkpoint(run.previous_checkpoint)["global_step"] == 2
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.ckpt", "previous.ckpt"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def empty(path: Path) -> None:
    path.unlink()  # it may share its content with the one before
    path.touch()


def flip_a_weight(path: Path) -> None:
    stored = path.read_bytes()
    weight = torch.full((3, 4), 2.0).numpy().tobytes()
    assert stored.count(weight) == 1
    path.write_bytes(stored.replace(weight, weight[:-1] + b"\x41"))


@pytest.mark.parametrize("damage", [cut, empty, flip_a_weight])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    run: RunFolder, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(run.last_checkpoint)
    with caplog.at_level(logging.WARNING):
        assert usable_checkpoint(run.last_checkpoint)["global_step"] == 1
    assert f"{run.last_checkpoint} is torn or altered" in caplog.text
    assert f"Going on from {run.previous_checkpoint}" in caplog.text


def test_without_one_before_the_damage_is_an_error(run: RunFolder) -> None:
    run.previous_checkpoint.unlink()
    cut(run.last_checkpoint)
    with pytest.raises(CheckpointError, match=r"last\.ckpt is torn or altered.*no earlier checkpoint.*start a new run"):
        usable_checkpoint(run.last_checkpoint)


def test_two_damaged_ones_are_an_error(run: RunFolder) -> None:
    cut(run.last_checkpoint)
    flip = run.previous_checkpoint
    flip.write_bytes(flip.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"previous\.ckpt is torn or altered"):
        usable_checkpoint(run.last_checkpoint)


def test_checkpoints_of_version_1_had_no_digest_and_load(tmp_path: Path) -> None:
    torch.save(content(5) | {"twn": {"version": 1}}, tmp_path / "old.ckpt")
    assert read_checkpoint(tmp_path / "old.ckpt")["global_step"] == 5


@pytest.mark.parametrize(
    "other",
    [{"a": [1, 2]}, {"a": (1, 2), "b": 0}, {"a": (1, 3)}, {"b": (1, 2)}, {"a": torch.tensor([1, 2])}, {"a": (1, 2.0)}],
)
def test_the_digest_tells_contents_apart(other: dict[str, Any]) -> None:
    assert content_digest({"a": (1, 2)}) == content_digest({"a": (1, 2)})
    assert content_digest(other) != content_digest({"a": (1, 2)})


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(build: Any, tmp_path: Path) -> None:
    settings = SFTSettings(batch_size=4, chunk_size=4, max_steps=4)
    straight = build(settings, trainer={"checkpoint_every_steps": 1}).fit()
    expected = straight.last_checkpoint()["state_dict"]
    cut(straight.run_folder.last_checkpoint)
    resumed = build(settings, trainer={"checkpoint_every_steps": 1}).fit(resume=tmp_path / "run")
    for name, value in resumed.last_checkpoint()["state_dict"].items():
        assert torch.equal(value, expected[name]), name


def test_a_run_goes_on_from_a_checkpoint_of_version_1(build: Any, tmp_path: Path) -> None:
    settings = SFTSettings(batch_size=4, chunk_size=4, max_steps=4)
    straight = build(settings, trainer={"val_every_steps": 2}).fit()
    old = read_checkpoint(straight.run_folder.previous_checkpoint)
    assert old["global_step"] == 2
    old["twn"]["version"] = 1
    torch.save(old, tmp_path / "old.ckpt")
    resumed = build(settings, trainer={"val_every_steps": 2}).fit(resume=tmp_path / "old.ckpt")
    for name, value in resumed.last_checkpoint()["state_dict"].items():
        assert torch.equal(value, straight.last_checkpoint()["state_dict"][name]), name


def test_a_checkpoint_of_a_later_release_explains_itself(build: Any, tmp_path: Path) -> None:
    settings = SFTSettings(batch_size=4, chunk_size=4, max_steps=1)
    run = build(settings).fit()
    checkpoint = read_checkpoint(run.run_folder.last_checkpoint)
    checkpoint["twn"]["version"] = 3
    RunCheckpointIO(run.run_folder).save_checkpoint(checkpoint, tmp_path / "later.ckpt")
    with pytest.raises(CheckpointError, match=r"version is 3, this release reads 1 to 2.*the release that wrote it"):
        build(settings).fit(resume=tmp_path / "later.ckpt")


def test_a_gate_that_had_stopped_early_does_not_train_on(
    build: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = GateStageSettings(batch_size=16, max_epochs=50, patience=1, learning_rate=1.0)
    first = build(settings).fit()
    steps, logged = first.trainer.global_step, first.run_folder.history()
    assert steps < first.stage.total_steps
    with caplog.at_level(logging.INFO):
        again = build(settings).fit(resume=tmp_path / "run")
    assert again.trainer.global_step == steps
    assert again.run_folder.history() == logged
    assert "had stopped early" in caplog.text
