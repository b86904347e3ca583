"""Score files repeated from what they say of themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from twn_lightning import cli
from twn_lightning.backbone.packaged import packaged_adapters
from twn_lightning.errors import CheckpointError
from twn_lightning.verify import verify


def evaluate(folder: Path, *overrides: str) -> list[Path]:
    """The score files of an evaluation of the packaged adapters, moved to a folder of their own."""
    adapters = folder / "adapters"
    shutil.copytree(packaged_adapters("nano"), adapters)
    where = [f"paths.run_dir={folder / 'run'}", f"paths.output_root={folder}", f"task.cache_root={folder / 'cache'}"]
    assert not cli.main(["evaluate", f"adapters.init_from={adapters}", *where, "logger=csv", *overrides])
    return sorted((folder / "run").rglob("scores.json"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The score files of a small evaluation on the source nano."""
    return evaluate(tmp_path_factory.mktemp("evaluated"), "data.test_pairs=6")


def altered(path: Path, to: Path, **values: Any) -> Path:
    """A copy of a score file with other values."""
    to.write_text(json.dumps(json.loads(path.read_text()) | values))
    return to


def test_the_command_confirms_and_finds_what_differs(
    scored: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = json.loads(scored[0].read_text())["task"]
    other = altered(scored[0], tmp_path / "scores.json", think_rate=0.123, num_queries=99, versions={"torch": "1.0"})
    assert cli.main(["verify", str(scored[0].parent)]) == 0
    assert capsys.readouterr().out == f"{task}: confirmed\n"
    assert cli.main(["verify", str(other)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"{task}: values that differ: 2\n  num_queries was 99, is ")
    assert "  think_rate was 0.123, is " in printed
    assert "other versions: torch: 1.0 then, " in printed


def test_a_task_of_a_suite_is_repeated_alone(tmp_path: Path) -> None:
    (path,) = evaluate(tmp_path, "task=mmeb_nano/all", "task.names=[NanoCIR]", "data.test_pairs=4")
    assert verify(path).differences == []
    found = verify(altered(path, tmp_path / "scores.json", score=2.0))
    assert len(found.differences) == 1
    assert found.differences[0].startswith("score was 2.0, is ")


def test_other_adapters_are_refused_and_moved_ones_are_found(scored: list[Path], tmp_path: Path) -> None:
    adapters = tmp_path / "moved"
    shutil.copytree(packaged_adapters("nano"), adapters)
    assert verify(scored[0], adapters=str(adapters)).differences == []
    (adapters / "queries.pt").write_bytes((adapters / "queries.pt").read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"not those that were scored: queries\.pt differs.*--adapters"):
        verify(scored[0], adapters=str(adapters))


def test_what_cannot_be_repeated_says_why(scored: list[Path], tmp_path: Path) -> None:
    old = json.loads(scored[0].read_text())
    del old["repeat"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    with pytest.raises(CheckpointError, match="does not say how to repeat it: it lacks repeat"):
        verify(tmp_path / "old.json")
    (tmp_path / "torn.json").write_text(scored[0].read_text()[:100])
    with pytest.raises(CheckpointError, match="not a score file"):
        verify(tmp_path / "torn.json")
