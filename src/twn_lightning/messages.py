"""What people see of a command: which log messages, and errors as one sentence with an exit code."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable

from twn_lightning.errors import TWNError
from twn_lightning.launch import local_rank
from twn_lightning.stopping import Stopped


def configure_logging() -> None:
    """Show this package's messages, once per machine, and of its libraries only what went wrong."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
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
        What `work` returns (None is 0); 2 after a `TWNError`, 130 after an interrupt, 143 after SIGTERM, 1 where
        nobody reads the output any more (`| head`). Other exceptions go through, and with TWN_DEBUG=1 all do.
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
        print(f"twn: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"twn: stopped by {stopped.signal.name}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print("twn: interrupted", file=sys.stderr)
        return 130
