"""Checks against what goes wrong without an error: each has a name, a severity and a switch.

Whoever finds a problem calls `report`. An error ends the run. A warning is logged once a run and kept in its
status.json under `warnings`. `TWN_CHECKS=-loss_spike,-tie_rate` switches checks off; `twn doctor --checks` lists them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from twn_lightning.errors import CheckError, ConfigError, TWNError, unknown_name
from twn_lightning.run import RunFolder

VARIABLE = "TWN_CHECKS"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """What is watched, when, and what a problem does to the run."""

    watches: str
    when: str
    severity: Literal["error", "warning"]
    has_switch: bool = True
    """False where there is nothing sensible to go on with."""


CHECKS: dict[str, Check] = {
    "adapter_keys": Check("tensors of an adapter folder that are missing or belong to no adapter", "loading", "error"),
    "lora_targets": Check(
        "LoRA on each of the seven linears of every language layer, and nowhere else", "loading", "error"
    ),
    "loaded_weights": Check("loaded adapters whose update of the backbone is zero everywhere", "loading", "warning"),
    "non_finite": Check(
        "NaN or Inf in a loss, a gradient or an embedding", "training, evaluation", "error", has_switch=False
    ),
    "adapter_gradients": Check("adapters and LoRA matrices that receive no gradient", "training", "error"),
    "loss_spike": Check("a loss twice in a row far above its last 50 values on the same source", "training", "warning"),
    "batch_rows": Check(
        "batches whose rows are not those that the seed and the step give: repeated or dropped samples",
        "training",
        "error",
    ),
    "duplicates": Check(
        "held-out pairs that are training pairs too, by the digests of their contents", "training", "warning"
    ),
    "ranks_agree": Check("ranks at another step, or with other trained weights, than the first", "training", "error"),
    "gate_saturation": Check("a gate that decides the same for every input", "training, evaluation", "warning"),
    "cot_language": Check(
        "CoTs that repeat themselves, change their alphabet, or that the backbone finds ever less likely",
        "training",
        "warning",
    ),
    "embedding_collapse": Check(
        "embeddings of different items that point the same way", "training, evaluation", "warning"
    ),
    "unclosed_cots": Check("CoTs that reach the cap before they end", "training, evaluation", "warning"),
    "tie_rate": Check("queries whose right candidate ties with a wrong one", "evaluation", "warning"),
    "stale_cache": Check("cached results that the present weights do not give", "training, evaluation", "error"),
    "mixed_protocols": Check("scores measured under different protocols in one mean", "evaluation", "error"),
}


@dataclass
class _Recording:
    run: RunFolder
    reported: set[str]


_recording: ContextVar[_Recording | None] = ContextVar("twn_checks_recording", default=None)


@contextmanager
def recording(run: RunFolder) -> Iterator[None]:
    """Keep the warnings of the work inside in a run folder, and log each check's first one only.

    Args:
        run: whose status.json gets them.

    Raises:
        ConfigError: TWN_CHECKS names what does not exist.
    """
    switched_off()
    token = _recording.set(_Recording(run, set()))
    try:
        yield
    finally:
        _recording.reset(token)


def is_on(name: str) -> bool:
    """Whether a check runs."""
    return name not in switched_off()


def switched_off() -> frozenset[str]:
    """The checks that TWN_CHECKS switches off.

    Raises:
        ConfigError: an entry that is no `-name` of a check, or a check without a switch.
    """
    names, problems = set(), []
    for entry in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        name = entry.removeprefix("-")
        if name not in CHECKS:
            problems.append(f"{VARIABLE}: {unknown_name('check', name, CHECKS)}")
        elif name == entry:
            problems.append(f"{VARIABLE}: every check is on by default; {VARIABLE}=-{name} switches '{name}' off")
        elif not CHECKS[name].has_switch:
            problems.append(f"{VARIABLE}: '{name}' cannot be switched off: no number behind it would mean anything")
        names.add(name)
    if problems:
        raise ConfigError(problems)
    return frozenset(names)


def report(name: str, problem: str, error: type[TWNError] = CheckError) -> None:
    """Say that a check has found a problem; nothing happens where the check is off.

    Args:
        name: of the check.
        problem: what is wrong, the numbers, and what to do.
        error: raised where the check's severity is error.

    Raises:
        TWNError: of the type `error`.
    """
    if not is_on(name):
        return
    check = CHECKS[name]
    message = f"{problem} [check {name}; {VARIABLE}=-{name} switches it off]" if check.has_switch else problem
    if check.severity == "error":
        raise error(message)
    current = _recording.get()
    if current is None:
        log.warning(message)
    elif name not in current.reported:
        current.reported.add(name)
        log.warning(message)
        _keep(current.run, name, message)


def _keep(run: RunFolder, name: str, message: str) -> None:
    status = run.read_status()
    warnings = {**status.get("warnings", {}), name: message}
    run.status(status.get("status", "RUNNING"), status.get("error"), warnings=warnings)
