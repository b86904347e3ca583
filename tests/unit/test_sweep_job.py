"""One job of a sweep: what a second attempt does, how a child ends, and how all are asked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from twn_lightning import sweep_job
from twn_lightning.run import State
from twn_lightning.sweep_folder import SweepFolder
from twn_lightning.sweep_job import StopOnSignal, child_environment, in_sweep_process, run_child, run_job

OVERRIDES = ["experiment=tiny_smoke", "seed=1"]
POLITE = """
import signal, sys, time
def end(*_):
    print("saved", flush=True)
    sys.exit(130)
signal.signal(signal.SIGINT, end)
print("ready", flush=True)
time.sleep(60)
"""
STUBBORN = POLITE.replace("sys.exit(130)", "pass").replace("time.sleep(60)", "[time.sleep(1) for _ in range(60)]")


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    return SweepFolder(tmp_path / "sweep").plan(OVERRIDES, {}, 1)


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the children would run; they write nothing and fail."""
    started: list[list[str]] = []
    monkeypatch.setattr(sweep_job, "run_child", lambda command, *_: started.append(command) or 1)
    monkeypatch.setattr(sweep_job, "_reason", lambda code, log: "no reason")
    return started


def run_script(sweep: SweepFolder, script: str, ready: Callable[[str], None] = lambda printed: None) -> tuple[int, str]:
    """The exit code and the output of a child that runs a script; `ready` is called when it has printed something."""
    output = sweep.path / "log.txt"
    output.touch()

    def watch() -> None:
        while not output.read_text():
            time.sleep(0.02)
        ready(output.read_text())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with sweep.job(OVERRIDES, 0).lock() as held:
        assert held is not None
        code = run_child([sys.executable, "-c", script], output, sweep.stop_file, dict(os.environ), held)
    watcher.join(10)
    return code, output.read_text()


@pytest.mark.parametrize(
    ("state", "checkpoint", "goes_on"),
    [("INTERRUPTED", True, True), ("RUNNING", True, True), ("INTERRUPTED", False, False), ("FAILED", True, False)],
)
def test_an_interrupted_job_goes_on_and_others_start_again(
    sweep: SweepFolder, commands: list[list[str]], state: State, checkpoint: bool, goes_on: bool
) -> None:
    job = sweep.job(OVERRIDES, 0)
    job.write(50.0, 130)
    job.run.status(state)  # RUNNING, but nothing holds its lock: it was killed
    job.run.log(1, {"loss": 1.0})
    if checkpoint:
        job.run.checkpoints.mkdir()
        job.run.last_checkpoint.touch()
    run_job(sweep, 0, list(reversed(OVERRIDES)))
    resume = f"trainer.resume='{job.run.path}'"
    assert commands == [
        [sys.executable, "-m", "twn_lightning", "train", *OVERRIDES, f"paths.run_dir='{job.run.path}'"]
        + ([resume] if goes_on else [])
    ]
    assert job.run.metrics_log.exists() == goes_on
    assert (sweep.jobs()[0].seconds >= 50) == goes_on
    assert job.state == "FAILED"


@pytest.mark.parametrize("stopped", [True, False])
def test_a_completed_job_and_one_after_a_stop_do_not_start(
    sweep: SweepFolder, commands: list[list[str]], stopped: bool
) -> None:
    if stopped:
        sweep.stop_file.write_text("SIGINT")
    else:
        sweep.job(OVERRIDES, 0).run.finish({})
    assert run_job(sweep, 0, OVERRIDES).state == ("PENDING" if stopped else "COMPLETED")
    assert commands == []


def test_a_job_that_another_process_holds_is_left_alone(
    sweep: SweepFolder, commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    job = sweep.job(OVERRIDES, 0)
    job.run.status("RUNNING")
    with job.lock():
        run_job(sweep, 0, OVERRIDES)
        sweep.finish(early=False)
        assert job.state == "RUNNING"
    assert commands == []
    assert "job 0 is still running in another process" in capsys.readouterr().out
    sweep.finish(early=False)
    assert (job.state, job.error) == ("INTERRUPTED", "the job was killed")


def test_a_stopped_sweep_waits_for_jobs_that_still_save(sweep: SweepFolder) -> None:
    script = f"""
import time
time.sleep(0.5)
from pathlib import Path
Path({str(sweep.path / "saved")!r}).touch()
"""
    with sweep.job(OVERRIDES, 0).lock() as held:
        assert held is not None
        child = subprocess.Popen([sys.executable, "-c", script], pass_fds=(held,))
    sweep.stop_file.write_text("SIGINT")
    sweep.finish(early=True)
    assert (sweep.path / "saved").exists()
    assert sweep.state() == "INTERRUPTED"
    assert child.wait() == 0


def test_a_child_keeps_its_lock_and_its_output(sweep: SweepFolder) -> None:
    locked: list[bool] = []

    def try_lock(printed: str) -> None:
        with sweep.job(OVERRIDES, 0).lock() as held:
            locked.append(held is None)

    script = "import sys, time; print('out', flush=True); print('err', file=sys.stderr); time.sleep(0.5); sys.exit(3)"
    assert run_script(sweep, script, try_lock) == (3, "out\nerr\n")
    assert locked == [True]


def test_a_stop_lets_the_child_save(sweep: SweepFolder) -> None:
    code, printed = run_script(sweep, POLITE, lambda _: sweep.stop_file.write_text("SIGINT"))
    assert (code, printed) == (130, "ready\nsaved\n")


def test_a_second_stop_kills(sweep: SweepFolder) -> None:
    def stop_twice(printed: str) -> None:
        handler = StopOnSignal(sweep)
        handler(signal.SIGINT, None)
        time.sleep(1)
        handler(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            handler(signal.SIGINT, None)

    code, printed = run_script(sweep, STUBBORN, stop_twice)
    assert code == -signal.SIGKILL
    assert "saved" in printed


def test_a_job_that_is_taken_back_saves(sweep: SweepFolder) -> None:
    def taken_back(number: int, frame: object) -> None:
        raise SystemExit(-1)

    earlier = signal.signal(signal.SIGUSR2, taken_back)
    try:
        with pytest.raises(SystemExit):
            run_script(sweep, POLITE, lambda _: os.kill(os.getpid(), signal.SIGUSR2))
    finally:
        signal.signal(signal.SIGUSR2, earlier)
    assert (sweep.path / "log.txt").read_text() == "ready\nsaved\n"


def test_reasons_name_what_is_known(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("starting\ntwn: 2 problems in the configuration:\n  - a\n  - b\n")
    assert sweep_job._reason(2, log).endswith("before training started: 2 problems in the configuration: - a - b")
    log.write_text("Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'torch'\n")
    assert sweep_job._reason(1, log).endswith("ModuleNotFoundError: No module named 'torch'")
    assert sweep_job._reason(-signal.SIGKILL, log).startswith("killed by SIGKILL; out of memory")


def test_only_the_sweep_itself_hears_ctrl_c(sweep: SweepFolder) -> None:
    earlier = signal.getsignal(signal.SIGINT)
    try:
        with StopOnSignal(sweep):
            assert in_sweep_process()
            os.kill(os.getpid(), signal.SIGINT)
            assert sweep.stop_file.read_text() == "SIGINT"
        assert signal.getsignal(signal.SIGINT) is earlier
        assert not in_sweep_process()
        os.kill(os.getpid(), signal.SIGINT)  # a worker of joblib goes on until the sweep tells it
    finally:
        signal.signal(signal.SIGINT, earlier)


def test_a_scheduler_and_a_closed_terminal_let_the_jobs_save(sweep: SweepFolder) -> None:
    with StopOnSignal(sweep):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert sweep.stop_file.read_text() == "SIGINT"


def test_nohup_keeps_a_sweep_running(sweep: SweepFolder) -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopOnSignal(sweep):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert not sweep.stop_file.exists()


@pytest.mark.parametrize(("threads", "set_already", "expected"), [(2, None, "2"), (2, "5", "5"), (None, None, None)])
def test_jobs_share_the_cores(threads: int | None, set_already: str | None, expected: str | None) -> None:
    variables = {"HOME": "/h"} | ({"OMP_NUM_THREADS": set_already} if set_already else {})
    environment = child_environment(variables, threads)
    assert environment.get("OMP_NUM_THREADS") == expected
    assert environment["HOME"] == "/h"


def test_jobs_are_found_by_their_overrides_in_any_order(sweep: SweepFolder) -> None:
    assert sweep.job(OVERRIDES, 0).number == 0
    assert sweep.job(OVERRIDES[::-1], 7).number == 0
    assert sweep.job(["seed=2"], 0).number == 1, "the number is taken"
    assert sweep.job(["seed=3"], 5).number == 5
    assert [job.number for job in sweep.jobs()] == [0, 1, 5]
    assert sweep.jobs()[0].values == {"experiment": "tiny_smoke", "seed": "1"}
