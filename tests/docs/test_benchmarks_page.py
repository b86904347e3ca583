"""The page of speed shows what the results beside it say, and says what has not been measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from experiments.benchmarks import page
from experiments.benchmarks.page import BLOCKS, FOLDER, PAGE, contents, speed_table
from experiments.benchmarks.registry import BENCHMARKS
from experiments.studies.study import read_block


@pytest.mark.parametrize("block", BLOCKS)
def test_the_page_shows_what_was_measured(block: str) -> None:
    assert read_block(PAGE, block) == contents()[block] + "\n", "run `python -m experiments.benchmarks.page`"


def test_what_was_not_measured_says_how_to(tmp_path: Path) -> None:
    table = speed_table("gpu", tmp_path)
    assert "| decode | not measured on a GPU yet; command: `twn bench gpu decode` |" in table
    rows = {row for benchmark in BENCHMARKS.values() if benchmark.gpu is not None for row in benchmark.rows}
    assert all(f"| {row} | not measured" in table for row in rows)


def test_a_changed_number_changes_the_page(tmp_path: Path) -> None:
    shutil.copy(FOLDER / "think_cpu.json", tmp_path)
    before = contents(tmp_path)
    result = json.loads((tmp_path / "think_cpu.json").read_text())
    result["adaptive_encode"]["speedup"]["ratio"] += 1
    result["hardware"]["processor"] = "another one"
    (tmp_path / "think_cpu.json").write_text(json.dumps(result))
    after = contents(tmp_path)
    assert {block for block in BLOCKS if before[block] != after[block]} == {"cpu", "how"}
    result["timings"]["prompts read"]["median_seconds"] /= 2
    (tmp_path / "think_cpu.json").write_text(json.dumps(result))
    faster = contents(tmp_path)
    assert {block for block in BLOCKS if after[block] != faster[block]} == {"parts"}


def test_the_page_is_written_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "README.md"
    copy.write_text("".join(f"<!-- {block} -->\nold\n<!-- /{block} -->\n" for block in BLOCKS))
    monkeypatch.setattr(page, "PAGE", copy)
    page.main()
    assert {block: read_block(copy, block) for block in BLOCKS} == {k: f"{v}\n" for k, v in contents().items()}


def test_every_row_of_the_page_is_explained() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for benchmark in BENCHMARKS.values():
        assert (FOLDER / f"{benchmark.name}.py").is_file(), f"the registry names {benchmark.name}, which has no module"
        assert all(f"\n| {row} | " in text for row in benchmark.rows)
