"""`twn annotate` that meets a fault and is started again writes what it would have: no row lost, doubled or moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trust.faults import DISK_FULL, Fault, Work, chosen_moments, count_moments, run_apart
from tests.trust.outcomes import assert_same, injected
from tests.unit.data.test_annotate import ROWS, ScriptedTeacher, lines, row, run

EXIT_CODES = {"SIGKILL": -9, "SIGTERM": -15, "SIGINT": 130, "SIGUSR1": -10, DISK_FULL: 2}
PAIRS = [row(f"{pair['query']['text']} {i}") for i in range(6) for pair in ROWS]


def annotate(folder: Path) -> None:
    run(folder, PAIRS, ScriptedTeacher(), retries=1)


def annotating(folder: Path) -> Work:
    return Work(annotate, (folder,), "tests.unit.data.test_annotate:ScriptedTeacher.generate")


def what_it_left(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, bytes]]:
    """The moments of an undisturbed annotation, and what it left."""
    folder = tmp_path_factory.mktemp("straight") / "out"
    count = count_moments(annotating(folder))
    assert len(lines(folder / "pairs.jsonl")) + len(lines(folder / "dropped.jsonl")) == len(PAIRS)
    return count, what_it_left(folder)


@pytest.mark.parametrize("kind", EXIT_CODES)
def test_interrupted_and_started_again_equals_straight(
    kind: str, straight: tuple[int, dict[str, bytes]], tmp_path: Path
) -> None:
    count, expected = straight
    for number, moment in enumerate([1, *chosen_moments(count, f"annotation {kind}")]):
        folder = tmp_path / str(number) / "out"
        with injected(kind, "annotation", number):
            assert run_apart(annotating(folder), Fault(kind, moment)) == EXIT_CODES[kind]
            assert run_apart(annotating(folder)) == 0
            left = {name: content for name, content in what_it_left(folder).items() if not name.endswith(".tmp")}
            assert_same(left, expected, f"{kind} at moment {moment} of {count}")
