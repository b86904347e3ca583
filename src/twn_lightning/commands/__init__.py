"""The verbs of `twn`, one file each, imported when asked for. Each has `main(arguments) -> int | None`."""

from __future__ import annotations

import argparse


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
