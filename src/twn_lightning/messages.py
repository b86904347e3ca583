"""What people see of a command: which log messages, and errors as one sentence with an exit code."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from types import TracebackType

from twn_lightning.errors import TWNError
from twn_lightning.launch import local_rank
from twn_lightning.redaction import redact
from twn_lightning.stopping import Stopped

_BAD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
"""What the system says where a path itself is at fault."""
_COMMANDS = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"},
    **{code: f"\\u{code:04x}" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))},
}
"""Characters that command a terminal (an escape sequence begins with one) or reorder its text -> what is shown."""


def visible(text: str) -> str:
    r"""Text of a model, a data set or a file name for a terminal, which it must not command: `\x1b` for an escape."""
    return text.translate(_COMMANDS)


def _for_people(text: str) -> str:
    """Without secrets (a library's error may quote an address with a token in it), and harmless to a terminal."""
    return visible(redact(text))


class _ForPeople(logging.Formatter):
    """Messages and tracebacks as text."""

    def format(self, record: logging.LogRecord) -> str:
        return _for_people(super().format(record))


def configure_logging() -> None:
    """Show this package's messages, once per machine, and of its libraries only what went wrong; no secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(_ForPeople("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    sys.excepthook = _print_traceback
    first = local_rank() == 0
    logging.getLogger("twn_lightning").setLevel(logging.INFO if first else logging.ERROR)
    for library in ("pytorch", "fabric"):  # the loggers themselves: Lightning sets their parents' levels on import
        logging.getLogger(f"lightning.{library}.utilities.rank_zero").setLevel(logging.ERROR)
    # Stages keep the frozen backbone in eval mode, validate over one batch, and draw batches in their own sampler.
    for message in (
        ".*in eval mode at the start of training.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*many workers.*",
    ):
        warnings.filterwarnings("ignore", message)


def exit_code(work: Callable[[], int | None]) -> int:
    """Run something and turn how it ends into a message for people and a process's exit code.

    Returns:
        What `work` returns (None is 0); 2 after a `TWNError` or a path that cannot be used, 130 after an interrupt, 143
        after SIGTERM, 1 where nobody reads the output any more (`| head`). Other exceptions go through, and with
        TWN_DEBUG=1 all do.
    """
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The interpreter flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except TWNError as error:
        if os.environ.get("TWN_DEBUG"):
            raise
        print(f"twn: {_for_people(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if os.environ.get("TWN_DEBUG") or error.errno not in _BAD_PATH or error.filename is None:
            raise
        print(f"twn: {_for_people(f'{error.filename!s:.300}: {error.strerror}')}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"twn: stopped by {stopped.signal.name}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("twn: interrupted", file=sys.stderr)
        return 130


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the interpreter prints of an exception that nobody caught, redacted: a sweep keeps it in a job's log."""
    print(_for_people("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")
