"""`twn config`: what a run would use, after every default and override."""

from __future__ import annotations

from twn_lightning import config, config_reference
from twn_lightning.commands import parser


def main(arguments: list[str]) -> None:
    """Print the resolved configuration, the groups, or write the reference."""
    options = parser(
        "config",
        "Print the resolved configuration; redirect it to a file, and `twn train --config FILE` runs it.",
        """twn config experiment=nano_rl
        twn config stage=gate gate.price=1.0
        twn config --groups""",
    )
    options.add_argument("overrides", nargs="*", help="group=option and key=value")
    options.add_argument("--groups", action="store_true", help="list the groups and their options instead")
    options.add_argument("--write-reference", action="store_true", help="write conf/reference.yaml again instead")
    chosen = options.parse_intermixed_args(arguments)
    if chosen.groups:
        for group, names in config.groups().items():
            print(f"{group:<13}{', '.join(names)}")
    elif chosen.write_reference:
        print(config_reference.write_reference())
    else:
        print(config.resolved_yaml(config.load_settings(chosen.overrides)), end="")
