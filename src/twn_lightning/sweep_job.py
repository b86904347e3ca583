"""One job of a sweep as a child process, and how all jobs of a sweep are asked to end.

The jobs may be in other processes (joblib) or on other machines (submitit), so the request to end is a file in the
sweep folder. Children are process groups of their own: a Ctrl-C in the terminal reaches only the sweep, which lets each
child save a checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from twn_lightning.atomic import write_text
from twn_lightning.sweep_folder import SweepFolder, SweepJob

POLL_SECONDS = 0.2
_REQUEUE_SECONDS = 20
"""How long a job that SLURM takes back may save: SLURM itself kills after 30 seconds."""
_ERROR_CHARACTERS = 600


def run_job(sweep: SweepFolder, number: int, overrides: Sequence[str], threads: int | None = None) -> SweepJob:
    """Bring a job to its end unless it is there already.

    A completed job is left alone, an interrupted one goes on from its last checkpoint, and one that failed or never
    came to a checkpoint starts again in an empty folder.

    Args:
        sweep: the folder.
        number: the job's number if it is new.
        overrides: what it changes.
        threads: CPU threads of the child where several jobs share the machine; None leaves them alone.

    Returns:
        The job; its state tells how it ended.
    """
    job = sweep.job(overrides, number)
    with job.lock() as held:
        if held is None:
            _say(job, "is still running in another process")
        elif job.state == "COMPLETED":
            _say(job, "completed earlier")
        elif not sweep.stop_file.exists():
            _attempt(sweep, job, held, threads)
    return job


def _attempt(sweep: SweepFolder, job: SweepJob, held: int, threads: int | None) -> None:
    go_on = job.state in ("INTERRUPTED", "RUNNING") and job.run.last_checkpoint.is_file()
    if go_on:
        job.run.status("RUNNING")
    else:
        job.run.discard()
    command = [sys.executable, "-m", "twn_lightning", "train", *job.overrides, f"paths.run_dir='{job.run.path}'"]
    command += [f"trainer.resume='{job.run.path}'"] if go_on else []
    before = job.seconds if go_on else 0.0
    job.write(before, None)
    _say(job, f"{'goes on' if go_on else 'starts'}: {' '.join(job.overrides) or 'defaults'} (log: {job.log})")
    start = time.monotonic()
    code = run_child(command, job.log, sweep.stop_file, child_environment(os.environ, threads), held)
    job.write(before + time.monotonic() - start, code)
    if code and job.state not in ("FAILED", "INTERRUPTED"):
        if sweep.stop_file.exists():
            job.run.status("INTERRUPTED", "stopped before it could save")
        else:
            job.run.status("FAILED", _reason(code, job.log))
    _say(job, f"{job.state.lower()} after {time.monotonic() - start:.0f} s")


def _say(job: SweepJob, what: str) -> None:
    print(f"job {job.number} {what}", flush=True)


def _reason(code: int, printed_to: Path) -> str:
    """Why a child ended that could not write it itself: its own message, or what is known from outside."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; out of memory is the usual reason for SIGKILL"
    printed = printed_to.read_text(encoding="utf-8", errors="replace").strip()
    message = " ".join(printed.rpartition("twn: " if "twn: " in printed else "\n")[2].split())
    return f"exit code {code} before training started: {message[:_ERROR_CHARACTERS]}"


def child_environment(variables: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """The environment of a job.

    Args:
        variables: this process's own.
        threads: limit of the child's CPU threads, for variables that set none; None is no limit.
    """
    limits = {} if threads is None else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return {**limits, **variables}


def run_child(command: list[str], output_file: Path, stop_file: Path, environment: Mapping[str, str], held: int) -> int:
    """Run a process to its end and return its exit code, negative after a signal.

    Args:
        command: its words.
        output_file: gets what it prints; appended to.
        stop_file: once there, each new content is sent to the child's group as a signal, by name.
        environment: the child's whole environment.
        held: a file descriptor that the child keeps open, the job's lock.
    """
    with output_file.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(held,),
            start_new_session=True,
        )
    sent = ""
    try:
        while True:
            try:
                return child.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                wanted = stop_file.read_text(encoding="utf-8") if stop_file.exists() else ""
                if wanted and wanted != sent:
                    os.killpg(child.pid, signal.Signals[wanted])
                    sent = wanted
    except SystemExit:  # SLURM takes the job back, and submitit puts it into the queue again
        os.killpg(child.pid, signal.SIGINT)
        _kill_after(child, _REQUEUE_SECONDS)
        raise
    except BaseException:
        _kill_after(child, 0)
        raise


def _kill_after(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class StopOnSignal:
    """While a sweep runs: the first Ctrl-C lets the jobs save and end, the second kills them, the third interrupts.

    SIGTERM and a closed terminal count as the first, unless nohup has made the process deaf to the terminal.

    Args:
        sweep: whose jobs.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self._stop_file = sweep.stop_file
        self._presses = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # which nohup sets
                    self._previous[number] = signal.signal(number, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._presses and number != signal.SIGINT:
            return
        self._presses += 1
        if self._presses == 1:
            write_text(self._stop_file, "SIGINT")
            # Printed, since Hydra turns the loggers of this process off.
            print("stopping: each job saves a checkpoint after its step; press Ctrl-C again to kill", file=sys.stderr)
        elif self._presses == 2:
            write_text(self._stop_file, "SIGKILL")
        else:
            raise KeyboardInterrupt


def in_sweep_process() -> bool:
    """Whether this process is the sweep's own. Any other that runs jobs is made deaf to Ctrl-C: the sweep tells it."""
    if isinstance(signal.getsignal(signal.SIGINT), StopOnSignal):
        return True
    if threading.current_thread() is threading.main_thread():
        # A handler and not SIG_IGN, which the children would inherit.
        signal.signal(signal.SIGINT, lambda number, frame: None)
    return False
