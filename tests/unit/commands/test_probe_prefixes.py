"""`twn probe prefixes`: three splits recorded, and what the first CoT tokens give printed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_adapters import save_fresh_adapters
from twn_lightning import cli
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes
from twn_lightning.probe import RECORDED_SPLITS
from twn_lightning.run import RunFolder

SIZES = {"gate": 5, "calibration": 4, "test": 6}


@pytest.fixture
def adapters(tmp_path: Path) -> str:
    """A folder of fresh adapters with a gate."""
    return f"adapters.init_from={save_fresh_adapters(tmp_path / 'adapters', 0.25)}"


def words(adapters: str, run: Path, *more: str) -> list[str]:
    sizes = [f"data.{split}_pairs={count}" for split, count in SIZES.items()]
    return ["probe", "prefixes", "model=tiny", *sizes, "data.max_new_tokens=5", adapters, f"paths.run_dir={run}", *more]


def test_three_splits_are_recorded_at_the_stride(
    adapters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words(adapters, tmp_path / "run", "--stride", "2")) == 0
    run = RunFolder(tmp_path / "run")
    metrics = run.metrics()
    assert metrics["cuts"] == [0, 2, 4, 5]
    assert metrics["threshold"] == 0.25
    for split in RECORDED_SPLITS:
        found = PrefixOutcomes.read(run.path / "prefixes" / f"{split}.npz")
        assert len(found) == SIZES[split]
        assert (found.probability_N == 0.5).all()
    np.testing.assert_allclose(metrics["hit@1"], found.hit_NP.mean(0))
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if line.split()[:1] and line.split()[0].isdigit()] == [
        "0", "2", "4", "5",
    ]  # fmt: skip


def test_a_stride_of_nothing_is_refused(adapters: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words(adapters, tmp_path / "run", "--stride", "0")) == 2
    assert "--stride was 0" in capsys.readouterr().err
