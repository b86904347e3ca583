"""`twn <verb>`: finds the verb's file under `commands/` and turns errors into one message and an exit code.

Exit codes: 0 done, 2 something the user can put right, 130 interrupted, 1 anything unexpected.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from twn_lightning import __version__
from twn_lightning.commands import VERBS
from twn_lightning.errors import TWNError, unknown_name
from twn_lightning.launch import adopt_srun
from twn_lightning.messages import configure_logging, exit_code

_USAGE = """usage: twn <verb> [arguments]

{verbs}

train, evaluate, probe, config and plan take overrides, group=option and key=value; the others take flags.
twn <verb> --help shows examples. TWN_DEBUG=1 shows the traceback of an error.
"""


def usage() -> str:
    """The text of `twn --help`."""
    return _USAGE.format(verbs="\n".join(f"  {verb:<12}{purpose}" for verb, purpose in VERBS.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: what follows `twn`; the process's own by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    adopt_srun()
    configure_logging()
    return exit_code(lambda: _run_verb(words[0], words[1:]))


def _run_verb(verb: str, arguments: list[str]) -> int | None:
    if verb not in VERBS:
        raise TWNError(unknown_name("verb", verb, VERBS))
    code: int | None = importlib.import_module(f"twn_lightning.commands.{verb}").main(arguments)
    return code
