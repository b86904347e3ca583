"""Training in a process of its own that meets a fault at a chosen moment.

A moment is the end of a training step, or a point between writing a file and giving it its name, or just after.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twn_lightning.settings import Settings


@dataclass(frozen=True)
class Fault:
    """What happens at which moment, counted from 1; `kind` is a signal's name, ENOSPC, or COUNT: nothing happens."""

    kind: str
    moment: int = 0


def train_apart(settings: Settings, fault: Fault | None = None, variables: dict[str, str] | None = None) -> int:
    """Train in a new process.

    Args:
        settings: of the run.
        fault: None trains undisturbed.
        variables: added to the process's environment.

    Returns:
        The process's exit code; negative after a signal that killed it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["twn_lightning.train"])
    process = context.Process(target=_train, args=(settings, fault, variables or {}))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"a run in {settings.paths.run_dir} has not ended after 300 s")
    return process.exitcode


def moments(settings: Settings) -> int:
    """How many moments an undisturbed run has. Trains it."""
    assert train_apart(settings, Fault("COUNT")) == 0
    return int(_counter(settings).read_text())


def resuming(settings: Settings) -> Settings:
    """The settings with which a run goes on in its folder."""
    return replace(settings, trainer=replace(settings.trainer, resume=settings.paths.run_dir))


def _counter(settings: Settings) -> Path:
    return Path(f"{settings.paths.run_dir}.moments")


def _train(settings: Settings, fault: Fault | None, variables: dict[str, str]) -> None:
    import torch

    from twn_lightning.messages import exit_code
    from twn_lightning.train import train

    os.environ.update(variables)
    torch.set_num_threads(1)
    if fault is not None:
        _inject(fault, _counter(settings))

    def work() -> None:
        train(settings)

    sys.exit(exit_code(work))


def _inject(fault: Fault, counter: Path) -> None:
    from twn_lightning import atomic
    from twn_lightning.stages.base import TWNStage

    passed = 0

    def moment() -> None:
        nonlocal passed
        passed += 1
        if fault.kind == "COUNT":
            counter.write_text(str(passed))
        elif passed == fault.moment and fault.kind == "ENOSPC":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        elif passed == fault.moment:
            os.kill(os.getpid(), signal.Signals[fault.kind])

    atomic._sync = _followed_by(moment, atomic._sync)  # type: ignore[attr-defined]
    TWNStage.training_step = _followed_by(moment, TWNStage.training_step)  # type: ignore[method-assign]


def _followed_by(moment: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        value = function(*arguments, **keywords)
        moment()
        return value

    return wrapped
