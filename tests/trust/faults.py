"""Work in a process of its own that meets a fault at a chosen moment.

A moment is the end of a step of the work (of training, of encoding, of a teacher), or the end of an fsync: in an atomic
write those are the points before a file gets its name, and after.
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from twn_lightning.settings import Settings

FULL = os.environ.get("TRUST") == "full"
"""Whether to try thirty moments of a kind instead of one or two."""
HANG_SECONDS = 300
DISK_FULL, KILLED_WORKER = "disk full", "killed worker"


@dataclass(frozen=True)
class Fault:
    """What happens at which moment, counted from 1.

    `kind` is a signal's name; DISK_FULL, at the next write; or KILLED_WORKER, SIGKILL to a process that reads data as
    soon as there is one.
    """

    kind: str
    moment: int


@dataclass(frozen=True)
class Work:
    """What a process does.

    Args:
        function: called with the arguments; defined at the top of a module, so that another process finds it.
        step: the method whose every call is a step, as `package.module:Class.method`.
        variables: added to the process's environment.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    step: str
    variables: Mapping[str, str] = field(default_factory=dict)


class Apart:
    """Work under way in a new process.

    Args:
        work: what it does.
        fault: None disturbs nothing.
    """

    def __init__(self, work: Work, fault: Fault | None = None) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["twn_lightning.train"])
        self._moments = context.Value("i", 0)
        self._process = context.Process(target=_run, args=(work, fault, self._moments))
        self._process.start()

    @property
    def moments(self) -> int:
        """How many moments have passed."""
        return int(self._moments.value)

    def exit_code(self) -> int:
        """Wait for the end; negative after a signal that killed it.

        Raises:
            TimeoutError: it hangs.
        """
        self._process.join(HANG_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the process has not ended after {HANG_SECONDS} s, at moment {self.moments}")
        return self._process.exitcode


def run_apart(work: Work, fault: Fault | None = None) -> int:
    """Run work in a new process and return its exit code, negative after a signal that killed it."""
    return Apart(work, fault).exit_code()


def count_moments(work: Work) -> int:
    """How many moments undisturbed work has. Runs it."""
    apart = Apart(work)
    assert apart.exit_code() == 0
    return apart.moments


def chosen_moments(count: int, seed: str, in_ci: int = 1) -> list[int]:
    """Random moments but the last, the same for the same seed; thirty with TRUST=full.

    Args:
        count: moments that the work has.
        seed: of the draw.
        in_ci: how many without TRUST=full.
    """
    draw = random.Random(seed)
    return [draw.randint(1, count - 1) for _ in range(30 if FULL else in_ci)]


def training(settings: Settings, variables: Mapping[str, str] | None = None) -> Work:
    """A training run."""
    return Work(_train, (settings,), "twn_lightning.stages.base:TWNStage.training_step", variables or {})


def resuming(settings: Settings) -> Settings:
    """The settings with which a run goes on in its folder."""
    return replace(settings, trainer=replace(settings.trainer, resume=settings.paths.run_dir))


def _train(settings: Settings) -> None:
    from twn_lightning.train import train

    train(settings)


def _run(work: Work, fault: Fault | None, moments: Any) -> None:
    import torch

    from twn_lightning.messages import exit_code

    os.environ.update(work.variables)
    torch.set_num_threads(1)
    _inject(work.step, fault, moments)

    def call() -> None:
        work.function(*work.arguments)

    sys.exit(exit_code(call))


def _inject(step: str, fault: Fault | None, moments: Any) -> None:
    done = fault is None

    def moment(in_a_write: bool) -> None:
        nonlocal done
        moments.value += 1
        if done or fault is None or moments.value < fault.moment:
            return
        if fault.kind == KILLED_WORKER:
            for worker in multiprocessing.active_children():
                done = True  # looking again would take the worker's end away from those who wait for it
                worker.kill()
        elif fault.kind != DISK_FULL:
            done = True
            os.kill(os.getpid(), signal.Signals[fault.kind])
        elif in_a_write:
            done = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    module, _, path = step.partition(":")
    owner, method = path.split(".")
    cls = getattr(importlib.import_module(module), owner)
    setattr(cls, method, _followed_by(partial(moment, False), getattr(cls, method)))
    os.fsync = _followed_by(partial(moment, True), os.fsync)


def _followed_by(moment: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **keywords: Any) -> Any:
        value = function(*arguments, **keywords)
        moment()
        return value

    return wrapped
