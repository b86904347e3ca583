"""The runner of the benchmarks: one failing leaves the others, wrong outputs and failures count, missed bars do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.benchmarks import registry, run_all, table
from experiments.benchmarks.registry import Benchmark
from experiments.benchmarks.table import READERS, Row, rows_of
from twn_lightning import cli
from twn_lightning.commands import bench
from twn_lightning.errors import ConfigError

WRITES = """
import json, os, pathlib, sys
result = {"ratio": 2.0, "agree": True, "arguments": sys.argv[1:], "hidden": os.environ.get("CUDA_VISIBLE_DEVICES")}
pathlib.Path(os.environ["OUT"], "NAME_cpu.json").write_text(json.dumps(result | {CHANGES}))
print("measuring")
"""
SLEEPS = "import time; time.sleep(60)"
MODULES = {
    "good": WRITES.replace("NAME", "good").replace("{CHANGES}", "{}"),
    "slow": WRITES.replace("NAME", "slow").replace("{CHANGES}", '{"ratio": 0.5}'),
    "wrong": WRITES.replace("NAME", "wrong").replace("{CHANGES}", '{"agree": False}'),
    "crashes": "raise SystemExit('no room')",
    "silent": "print('done')",
    "hangs": SLEEPS,
}


@pytest.fixture(autouse=True)
def _made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that take no time, in a checkout of their own."""
    folder = tmp_path / "experiments" / "benchmarks"
    folder.mkdir(parents=True)
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)

    def read(result: Any) -> list[Row]:
        return [Row("speed", "here", result["ratio"], bar=1.0, agree=result["agree"])]

    made = {name: Benchmark(name, ("speed",), ("--small",), None) for name in MODULES}
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    monkeypatch.setattr(run_all, "BENCHMARKS", made)
    monkeypatch.setattr(table, "BENCHMARKS", made)
    monkeypatch.setattr(table, "READERS", dict.fromkeys(MODULES, read))


def run(tmp_path: Path, *names: str, arguments: tuple[str, ...] = ()) -> tuple[int, str]:
    """Exit code and output of `twn bench cpu` with some of the benchmarks."""
    for name in set(MODULES) - set(names):
        del run_all.BENCHMARKS[name]
    return run_all.main(["cpu", *arguments, "--out", str(tmp_path / "results")])


def test_a_missed_bar_is_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "good", "slow") == 0
    shown = capsys.readouterr().out
    assert "1 of 2: good --small" in shown
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith("speed")]
    assert [(row[-3], row[-1]) for row in rows] == [("2.00", "yes"), ("0.50", "no")]
    log = tmp_path / "outputs" / "bench" / "cpu" / "good.log"
    assert log.read_text() == "measuring\n"
    assert json.loads((tmp_path / "results" / "good_cpu.json").read_text())["hidden"] == ""


def test_wrong_outputs_are_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "good", "wrong") == 1
    assert "wrong: outputs differ" in capsys.readouterr().out


def test_a_benchmark_that_fails_leaves_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "crashes", "silent", "good") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "exit code 1; see" in shown
    assert "it wrote no silent_cpu.json" in shown
    assert "2.00 x yes" in shown
    assert "no room" in (tmp_path / "outputs" / "bench" / "cpu" / "crashes.log").read_text()


def test_an_old_result_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "silent_cpu.json").write_text(json.dumps({"ratio": 9.0, "agree": True}))
    assert run(tmp_path, "silent") == 1


def test_time_runs_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "hangs", "good", arguments=("--minutes", "0.02")) == 1
    assert "it was ended after 0.02 minutes" in " ".join(capsys.readouterr().out.split())


def test_one_benchmark_takes_its_own_arguments(tmp_path: Path) -> None:
    assert run_all.main(["cpu", "good", "--rows", "16"]) == 0
    result = json.loads((tmp_path / "outputs" / "bench" / "cpu" / "good_cpu.json").read_text())
    assert result["arguments"] == ["--rows", "16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cpu", "goood"], "did you mean 'good'"),
        (["gpu", "good"], "good does not run on a gpu"),
        (["gpu"], "needs a CUDA device"),
    ],
)
def test_what_cannot_be_run_is_said(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        run_all.main(arguments)


def test_a_number_and_its_bar() -> None:
    assert Row("a", "b", 3.149, 2.0, 4.0, bar=3.0).measured == "3.15 x [2.00, 4.00]"
    assert Row("a", "b", 2600.0, unit="tokens/s", bar=2600.0).verdict == "yes"
    memory = Row("a", "b", 0.6, bar=0.5, at_most=True)
    assert (memory.bar_text, memory.verdict, memory.measured) == ("<= 0.5 x", "no", "0.60 x")
    assert Row("a", "b", 1.0).verdict == ""
    assert Row("a", "b", 9.0, bar=1.0, agree=False).verdict == "wrong: outputs differ"


def test_the_verb_runs_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def note(command: list[str], cwd: Path, check: bool) -> Any:
        called.append((command, cwd))
        return type("Done", (), {"returncode": 1})

    monkeypatch.setattr(bench.subprocess, "run", note)
    assert cli.main(["bench", "cpu", "decode", "--rows", "16"]) == 1
    ((command, folder),) = called
    assert command == [sys.executable, "-m", "experiments.benchmarks.run_all", "cpu", "decode", "--rows", "16"]
    assert (folder / bench.RUNNER).is_file()


def test_the_verb_needs_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "bench.py"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "cpu"]) == 2
    assert "clone the repository" in capsys.readouterr().err


def test_every_benchmark_can_be_run_and_read() -> None:
    for name, benchmark in registry.BENCHMARKS.items():
        assert benchmark.cpu is not None or benchmark.gpu is not None, name
        assert (run_all.FOLDER / f"{name}.py").is_file()
        assert name in READERS


def test_a_result_without_a_reader_has_no_rows() -> None:
    assert rows_of("unknown", {}) == []
