"""`twn dashboard`: the panels of a wandb project, as the package defines them."""

from __future__ import annotations

import json

from twn_lightning.callbacks.wandb_logger import has_account
from twn_lightning.commands import parser
from twn_lightning.errors import ConfigError
from twn_lightning.settings import LoggerSettings


def main(arguments: list[str]) -> None:
    """Save the workspace, or print it."""
    options = parser(
        "dashboard",
        "A wandb workspace with panels for losses, gradient conflict, think rate by meta-task, quality against tokens, "
        "calibration, rewards, throughput, and tables of decisions and rollouts.",
        """twn dashboard my-team
        twn dashboard my-team --project ablations
        twn dashboard my-team --json    (prints it; needs no account)""",
    )
    options.add_argument("entity", help="the wandb user or team")
    options.add_argument("--project", default=LoggerSettings.project, help=f"default {LoggerSettings.project}")
    options.add_argument("--json", action="store_true", help="print what would be saved")
    chosen = options.parse_args(arguments)
    # Needs an extra, which --help and `twn completion` do without.
    from twn_lightning.interop.wandb_dashboard import build_workspace, workspace_json

    workspace = build_workspace(chosen.entity, chosen.project)
    if chosen.json:
        print(json.dumps(workspace_json(workspace), indent=2))
        return
    if not has_account():
        raise ConfigError(
            f"saving a workspace for {chosen.entity}/{chosen.project} needs a wandb account, and none is set up here: "
            "run `wandb login`, or look at it with --json"
        )
    print(workspace.save().url)
