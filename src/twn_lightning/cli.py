"""`twn <verb>`: finds the verb's file under `commands/` and turns errors into one message and an exit code.

Exit codes: 0 done, 2 something the user can put right, 130 interrupted, 1 anything unexpected.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from twn_lightning import __version__
from twn_lightning.errors import TWNError, unknown_name
from twn_lightning.launch import adopt_srun
from twn_lightning.messages import configure_logging, exit_code

VERBS = {
    "train": "train one stage: sft, gate or rl",
    "evaluate": "score adapters under every router",
    "probe": "what the CoTs, the modes of both sides, the gate and the gradients do",
    "config": "print the resolved configuration",
    "tasks": "list the tasks of MMEB-V2",
    "aggregate": "means of MMEB-V2 score files, beside published ones",
    "report": "write the report of finished runs",
    "inspect": "a live page of a run: its decisions, and questions to its model",
    "preview": "look at rows of a data source as the model sees them",
    "embed": "embeddings, gate decisions and CoTs of a folder or a dataset",
    "mine": "hard negatives for training, from your own embeddings",
    "search": "build, extend and query an index of embeddings",
    "export": "adapters as a folder with a model card, for the Hub and sentence-transformers",
    "annotate": "chains of thought for your own pairs, by a teacher model",
    "dashboard": "the panels of a wandb project",
    "bench": "speed beside peers, on a CPU or a GPU",
    "plan": "memory, tokens/s and hours of every stage and of MMEB-V2, predicted",
    "doctor": "what is installed, what a configuration needs, what is missing",
    "demo": "all stages on the packaged nano backbone, with a report",
}

_USAGE = """usage: twn <verb> [arguments]

{verbs}

train, evaluate, probe, config and plan take overrides, group=option and key=value; the others take flags.
twn <verb> --help shows examples. TWN_DEBUG=1 shows the traceback of an error.
"""


def usage() -> str:
    """The text of `twn --help`."""
    return _USAGE.format(verbs="\n".join(f"  {verb:<10}{purpose}" for verb, purpose in VERBS.items()))


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
