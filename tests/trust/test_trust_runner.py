"""`make trust`: what the fragments of the suites amount to, and when its exit code is 1."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.trust import run
from tests.trust.outcomes import WrongInSilence, assert_same, injected
from tests.trust.records import record
from tests.trust.summary import summarise_faults, summarise_fuzz, summarise_load, summarise_soak

SOAKED = {"minutes": 30, "met": True}


def fragments_in(folder: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_faults_are_counted_by_how_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_RECORDS", str(tmp_path))
    for moment in (1, 2):
        with injected("SIGKILL", "sft", moment):
            assert_same({"loss": 1.0}, {"loss": 1.0}, "killed")
    with pytest.raises(WrongInSilence, match=r"\+\{'loss': 2.0\}"), injected("SIGKILL", "sft", 3):
        assert_same({"loss": 2.0}, {"loss": 1.0}, "killed")
    with pytest.raises(TimeoutError), injected("SIGTERM", "sweep"):
        raise TimeoutError("the run has not ended")
    found = summarise_faults(fragments_in(tmp_path))
    assert {name: found[name] for name in ("injected", "survived", "lost", "silent")} == {
        "injected": 4,
        "survived": 2,
        "lost": 1,
        "silent": 1,
    }
    assert found["by_work"]["sft"] == {"SIGKILL": {"survived": 2, "lost": 0, "silent": 1}}


def test_a_fault_that_ends_the_tests_themselves_counts_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUST_RECORDS", str(tmp_path))
    with injected("SIGKILL", "gate"):
        assert summarise_faults(fragments_in(tmp_path))["lost"] == 1


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRUST_RECORDS", raising=False)
    monkeypatch.chdir(tmp_path)
    record("soak", SOAKED)
    assert not list(tmp_path.iterdir())


def test_what_counts_as_lost_and_as_silent() -> None:
    outcomes = {"named_error": 90, "right_answer": 4, "crash": 1, "hang": 2, "silent": 5, "leak": 3}
    fuzz = summarise_fuzz({"fuzz": {"cases": 100, "outcomes": outcomes, "surfaces": {"media": outcomes}}})
    assert (fuzz["cases"], fuzz["lost"], fuzz["silent"]) == (100, 6, 5)
    load = summarise_load({"load-page": {"lost": 2, "mixed_up": 1}, "load-encoder": {"lost": 0, "mixed_up": 3}})
    assert (load["lost"], load["silent"], list(load["targets"])) == (2, 4, ["page", "encoder"])
    assert [summarise_soak(found)["lost"] for found in ({}, {"soak": {"met": False}}, {"soak": SOAKED})] == [1, 1, 0]


def suite_that(tmp_path: Path, code: str) -> list[str]:
    """A command that runs Python code which may record."""
    script = tmp_path / "suite.py"
    script.write_text(f"from tests.trust.records import record\n{code}\n")
    return [sys.executable, "-c", f"import sys; sys.path.insert(0, '.'); exec(open({str(script)!r}).read())"]


def test_a_suite_replaces_its_own_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "trust.json"
    soak = suite_that(tmp_path, f"record('soak', {SOAKED})")
    monkeypatch.setitem(run.SUITES, "soak", soak)
    assert run.main(["--only", "soak", "--soak-minutes", "7", "--out", str(out)]) == 0
    first = json.loads(out.read_text())
    how = first["suites"]["soak"]["how"]
    assert how["passed"]
    assert how["command"].endswith("--minutes 7")
    assert how["versions"]["torch"]
    outcomes = {"right_answer": 1, "silent": 2}
    content = {"cases": 3, "outcomes": outcomes, "surfaces": {"media": outcomes}}
    monkeypatch.setitem(run.SUITES, "fuzz", suite_that(tmp_path, f"record('fuzz', {content})"))
    assert run.main(["--only", "fuzz", "--out", str(out)]) == 1
    second = json.loads(out.read_text())
    assert (second["lost"], second["silent"]) == (0, 2)
    assert list(second["suites"]) == ["fuzz", "soak"]
    assert second["suites"]["soak"] == first["suites"]["soak"]


def test_a_suite_that_fails_without_a_word_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(run.SUITES, "load", suite_that(tmp_path, "raise SystemExit(3)"))
    assert run.main(["--only", "load", "--out", str(tmp_path / "trust.json")]) == 1
    assert "failed: load" in capfd.readouterr().out
