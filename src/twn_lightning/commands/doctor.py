"""`twn doctor`: what is here, what a configuration needs, what is missing and how to get it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twn_lightning import config, doctor
from twn_lightning.commands import parser
from twn_lightning.environment import describe_environment
from twn_lightning.errors import ConfigError
from twn_lightning.validation import settings_from_dict, settings_to_dict


def main(arguments: list[str]) -> int:
    """Print the findings.

    Returns:
        0 when the given configuration can run here, 2 when it cannot.
    """
    options = parser(
        "doctor",
        "Versions, devices, attention, extras, packaged assets; the memory of a configuration and what it lacks here.",
        """twn doctor
        twn doctor experiment=qwen3vl_4b_sft
        twn doctor experiment=qwen3vl_4b_sft trainer.devices=4 --tokens 1200
        twn doctor --checks""",
    )
    options.add_argument("overrides", nargs="*", help="the configuration to judge: group=option and key=value")
    options.add_argument("--tokens", type=int, default=700, help="of a query's prompt and padded CoT (default 700)")
    options.add_argument("--checks", action="store_true", help="list the checks that watch runs, and nothing else")
    chosen = options.parse_intermixed_args(arguments)
    if chosen.checks:
        print(doctor.checks_page(), end="")
        return 0
    settings = config.load_settings(chosen.overrides)

    console = Console()
    environment = describe_environment()
    hardware, git = environment["hardware"], environment["git"]
    versions = environment["versions"]
    console.print(f"twn_lightning {versions['twn_lightning']}, git {git['revision'] or 'none'}, {hardware['platform']}")
    console.print(f"{hardware['processor']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB")
    _show(console, "Packages", doctor.packages())
    _show(console, "Devices", doctor.devices())
    _show(console, "Packaged assets", doctor.assets())
    _show(console, f"Memory of {settings.name}, one process", doctor.memory(settings, chosen.tokens))
    try:
        settings_from_dict(settings_to_dict(settings), on_this_machine=True)
    except ConfigError as error:
        console.print(f"\n{settings.name} cannot run here: {error}", style="red", markup=False, highlight=False)
        return 2
    console.print(f"\n{settings.name} can run here.", style="green")
    return 0


def _show(console: Console, title: str, findings: Iterable[doctor.Finding]) -> None:
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in range(4):
        table.add_column(overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if finding.good else Text("--", "yellow")
        table.add_row(mark, finding.subject, Text(finding.found), Text(finding.remedy))
    console.print()
    console.print(table)
