"""How an injected fault ended, recorded for `make trust`.

- survived: what was left in the end is what an undisturbed run leaves;
- silent: the work ended as if all were well, with another result;
- lost: anything else, such as an error, a hang, or work that could not go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import unified_diff
from pprint import pformat
from typing import Any

from tests.trust.records import record


class WrongInSilence(AssertionError):
    """The work ended as if all were well, with another result."""


@contextmanager
def injected(kind: str, work: str, moment: int = 0) -> Iterator[None]:
    """One injected fault: it counts as survived only if the block ends without an exception.

    Args:
        kind: of the fault, such as SIGKILL.
        work: what it disturbs: a stage's name, `evaluation`, `annotation`, `sweep`.
        moment: tells several faults of one kind and work apart.
    """
    name, outcome = f"fault-{kind}-{work}-{moment}", {"kind": kind, "work": work}
    record(name, {**outcome, "outcome": "lost"})
    try:
        yield
    except WrongInSilence:
        record(name, {**outcome, "outcome": "silent"})
        raise
    record(name, {**outcome, "outcome": "survived"})


def assert_same(found: Any, expected: Any, after: str) -> None:
    """Compare what a disturbed run left with what an undisturbed one leaves.

    Args:
        found: of the disturbed one.
        expected: of the undisturbed one.
        after: the fault, for the message.

    Raises:
        WrongInSilence: they differ.
    """
    if found != expected:
        lines = (pformat(value, width=120).splitlines() for value in (expected, found))
        difference = "\n".join(unified_diff(*lines, "undisturbed", after, n=0, lineterm=""))
        raise WrongInSilence(difference)
