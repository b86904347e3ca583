"""The page of trust shows what experiments/trust.json says, and that file says that nothing was lost or silent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.studies.study import read_block
from tests.trust import page
from tests.trust.page import BLOCKS, PAGE, RESULTS, contents
from tests.trust.run import SUITES
from tests.trust.summary import ENDS, losses

CONTENT = json.loads(RESULTS.read_text(encoding="utf-8"))
PARTS = CONTENT["suites"]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_page_shows_what_was_found(block: str) -> None:
    assert read_block(PAGE, block) == contents()[block] + "\n", "run `python -m tests.trust.page`"


def test_a_changed_number_changes_the_page(tmp_path: Path) -> None:
    changed = json.loads(RESULTS.read_text(encoding="utf-8"))
    changed["suites"]["soak"]["memory"]["mb_per_minute"] += 1
    copy = tmp_path / "trust.json"
    copy.write_text(json.dumps(changed))
    before, after = contents(), contents(copy)
    assert {block for block in BLOCKS if before[block] != after[block]} == {"soak"}


def test_the_page_is_written_from_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "trust.md"
    copy.write_text("".join(f"<!-- {block} -->\nold\n<!-- /{block} -->\n" for block in BLOCKS))
    monkeypatch.setattr(page, "PAGE", copy)
    page.write()
    assert {block: read_block(copy, block) for block in BLOCKS} == {k: f"{v}\n" for k, v in contents().items()}


def test_every_suite_was_run_and_passed() -> None:
    assert list(PARTS) == list(SUITES)
    for name, part in PARTS.items():
        how = part["how"]
        assert how["passed"], name
        assert len(how["revision"]) == 40
        assert how["versions"]["torch"]
        assert how["hardware"]["cores"] >= 1
        assert how["command"].removeprefix("TRUST=full ").startswith("python -m ")


def test_nothing_was_lost_and_nothing_was_silent() -> None:
    assert losses(PARTS) == {"lost": 0, "silent": 0} == {name: CONTENT[name] for name in ("lost", "silent")}


def test_totals_are_the_sums_of_their_parts() -> None:
    faults = PARTS["faults"]
    ends = [counts for kinds in faults["by_work"].values() for counts in kinds.values()]
    assert {end: faults[end] for end in ENDS} == {end: sum(counts[end] for counts in ends) for end in ENDS}
    assert faults["injected"] == sum(faults[end] for end in ENDS) > 0
    fuzz = PARTS["fuzz"]
    assert fuzz["cases"] == sum(fuzz["outcomes"].values()) > 0
    for name, count in fuzz["outcomes"].items():
        assert count == sum(surface[name] for surface in fuzz["surfaces"].values())


def test_all_work_met_the_faults_and_all_targets_the_clients() -> None:
    assert set(PARTS["faults"]["by_work"]) >= {"sft", "gate", "rl", "evaluation", "annotation", "sweep"}
    assert set(PARTS["load"]["targets"]) == {"page", "connections", "encoder"}
    assert all(target["clients"] == 64 <= target["answered"] for target in PARTS["load"]["targets"].values())


def test_memory_does_not_grow() -> None:
    memory = PARTS["soak"]["memory"]
    low, high = memory["ci95"]
    assert low <= memory["mb_per_minute"] <= high < memory["bar"] == 1.0
