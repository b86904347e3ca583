"""The verbs of `twn`, one file each, imported when asked for. Each has `main(arguments) -> int | None`."""

from __future__ import annotations

import argparse

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
    "verify": "compute score files again and compare",
    "audit": "check that a run folder is complete and unchanged",
    "bench": "speed beside peers, on a CPU or a GPU",
    "plan": "memory, tokens/s and hours of every stage and of MMEB-V2, predicted",
    "doctor": "what is installed, what a configuration needs, what is missing",
    "demo": "all stages on the packaged nano backbone, with a report",
    "completion": "a script that completes twn's words in bash or zsh",
}
"""Each verb, in reading order, with its purpose."""


def parser(verb: str, purpose: str, examples: str) -> argparse.ArgumentParser:
    """An argument parser whose help ends in examples.

    Args:
        verb: the word after `twn`.
        purpose: one sentence.
        examples: command lines, one a line.
    """
    lines = "\n".join(f"  {line.strip()}" for line in examples.strip().splitlines())
    return argparse.ArgumentParser(
        prog=f"twn {verb}",
        description=purpose,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
