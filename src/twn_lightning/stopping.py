"""Signals that end a run in good order, and a job that SLURM is asked to start again."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, a supervisor's request to end, and the warning that SLURM sends before it takes the machine back."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it."""
        return 128 + self.signal


def stop(number: int, frame: FrameType | None) -> None:
    """A signal handler that ends the process at once.

    Raises:
        Stopped: always.
    """
    raise Stopped(number)


@contextmanager
def on_stop_signals(handler: Callable[[int, FrameType | None], Any] = stop) -> Iterator[None]:
    """Handle the stop signals until the block ends. Outside the main thread, which alone gets them, do nothing.

    Args:
        handler: called with the signal's number and the frame.
    """
    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            previous[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler_before in previous.items():
            signal.signal(number, handler_before)


def requeue(variables: Mapping[str, str] = os.environ) -> None:
    """Ask SLURM to start this process's job again; outside a job, nothing."""
    if "SLURM_JOB_ID" not in variables:
        return
    job = variables["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in variables:
        job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        log.warning("SLURM did not take job %s back into its queue: %s", job, reason)
    else:
        log.info("job %s is back in SLURM's queue and will go on from the last checkpoint", job)


def was_requeued(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM has started this process's job before."""
    return int(variables.get("SLURM_RESTART_COUNT", "0")) > 0
