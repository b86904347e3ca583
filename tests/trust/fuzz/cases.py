"""One case of the fuzz suite: what it may end in, how long it may take, and the count of outcomes by surface."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from hypothesis import HealthCheck, settings

from tests.trust.records import record
from twn_lightning.errors import TWNError

FULL = os.environ.get("TRUST") == "full"
SECONDS = 60
"""For one case. Python code that takes longer is interrupted; a library that does ends the process with its stacks."""
MAX_GROWTH = 300 << 20
"""Bytes of resident memory that the cases of one surface may leave behind: caches and allocators, no leak."""
FAILURES = ("crash", "hang", "silent", "leak")

Answer = TypeVar("Answer")
_counts: dict[str, Counter[str]] = {}


def examples(bounded: int, full: int) -> Any:
    """Hypothesis settings: the number of examples in CI and with TRUST=full, the same ones each time."""
    return settings(
        max_examples=full if FULL else bounded,
        derandomize=True,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def check(
    surface: str,
    case: str,
    work: Callable[[], Answer],
    right: Callable[[Answer], object] | None,
    *,
    names: str = "",
    errors: tuple[type[Exception], ...] = (TWNError,),
) -> Answer | None:
    """Run a case, judge how it ends, and count that.

    Args:
        surface: what is attacked; the counts are by it.
        case: for messages.
        work: the attack.
        right: asserts that the answer is right, by other means than the code under test; None: no answer can be.
        names: what the message of an error must contain, such as the item's key or the file's name.
        errors: the errors that are documented for this input.

    Returns:
        The answer, None after a named error.

    Raises:
        AssertionError: anything but a named error or a right answer.
    """
    outcomes = _counts.setdefault(surface, Counter())
    failed = "crash"
    try:
        with _limited(case):
            answer, message = _ending(work, errors)
        failed = "silent"
        if message is not None:
            assert message.strip(), f"{surface}, {case}: an error without a message"
            assert names in message, f"{surface}, {case}: the message does not name {names!r}: {message:.500}"
            outcomes["named_error"] += 1
            return None
        assert right is not None, f"{surface}, {case}: expected an error, got {answer!r:.300}"
        right(answer)
    except BaseException as error:
        outcomes["hang" if isinstance(error, TimeoutError) else failed] += 1
        raise
    outcomes["right_answer"] += 1
    return answer


def _ending(work: Callable[[], Answer], errors: tuple[type[Exception], ...]) -> tuple[Answer | None, str | None]:
    """An answer, or a documented error's message."""
    try:
        return work(), None
    except errors as error:
        return None, str(error)


@contextmanager
def _limited(case: str) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise TimeoutError(f"{case}: not done after {SECONDS} s")

    earlier = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@contextmanager
def nothing_left(surface: str, release: Callable[[], object] = gc.collect) -> Iterator[None]:
    """Assert that the cases inside leave no open file, no thread and no memory behind.

    Threads of native libraries are pools that grow to a fixed size; beyond that size they are a leak.

    Args:
        surface: whose cases they are.
        release: empties the caches that keep files open on purpose.
    """
    files, threads, native, memory = _open_files(), _threads(), _native_threads(), _resident()
    yield
    release()
    gc.collect()
    leaks = []
    if new := _open_files() - files:
        leaks.append(f"open files: {sorted(new.elements())}")
    if new := _threads() - threads:
        leaks.append(f"Python threads: {sorted(new)}")
    pools = pa.cpu_count() + pa.io_thread_count() + 2 * (os.cpu_count() or 1)
    if _native_threads() > native + pools:
        leaks.append(f"native threads: {native} before, {_native_threads()} after")
    if _resident() > memory + MAX_GROWTH:
        leaks.append(f"memory: {memory >> 20} MB before, {_resident() >> 20} MB after")
    if leaks:
        _counts.setdefault(surface, Counter())["leak"] += len(leaks)
    assert not leaks, f"{surface} leaves behind {'; '.join(leaks)}"


def _open_files() -> Counter[str]:
    """What the process's descriptors lead to; files of installed libraries, such as fonts, stay open on purpose."""
    found: Counter[str] = Counter()
    installed = os.path.realpath(sys.prefix)
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            place = os.readlink(descriptor)
        except FileNotFoundError:  # the one that lists the others
            continue
        found[place] += not place.startswith(installed)
    return found


def _threads() -> set[str]:
    """Names of Python's threads; a progress bar library keeps one of its own."""
    return {thread.name for thread in threading.enumerate()} - {"tqdm_monitor"}


def _native_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def record_outcomes() -> None:
    """Write the counts for `make trust`."""
    if not _counts:
        return
    names = ("named_error", "right_answer", *FAILURES)
    surfaces = {surface: {name: counts[name] for name in names} for surface, counts in sorted(_counts.items())}
    totals = {name: sum(counts[name] for counts in surfaces.values()) for name in names}
    record("fuzz", {"full": FULL, "cases": sum(totals.values()), "outcomes": totals, "surfaces": surfaces})
