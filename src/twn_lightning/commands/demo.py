"""`twn demo`: every stage, the evaluation and the report, on the packaged nano backbone."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.commands import parser
from twn_lightning.demo import run_demo


def main(arguments: list[str]) -> None:
    """Run the demo; its last lines say where the report is."""
    options = parser(
        "demo",
        "Train sft, rl and gate from zero-initialised adapters, evaluate under every router, report: 6 minutes.",
        """twn demo
        twn demo --output outputs/demo_again seed=1
        twn demo data.test_pairs=500""",
    )
    options.add_argument("overrides", nargs="*", help="key=value, applied to every stage and to the evaluation")
    options.add_argument("--output", type=Path, default=Path("outputs/demo"), help="default outputs/demo")
    chosen = options.parse_intermixed_args(arguments)
    run_demo(chosen.output, chosen.overrides)
