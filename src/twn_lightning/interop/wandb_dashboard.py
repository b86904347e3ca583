"""The wandb workspace of this project: dashboard.yaml, and the panels made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from twn_lightning.errors import ConfigError

try:
    import wandb_workspaces.reports.v2 as reports
    from wandb_workspaces import workspaces
except ImportError as error:
    raise ConfigError("this needs wandb-workspaces: pip install 'twn_lightning[tracking]'") from error

DASHBOARD_FILE = Path(__file__).with_name("dashboard.yaml")


def read_dashboard() -> dict[str, Any]:
    """The content of dashboard.yaml."""
    found: dict[str, Any] = yaml.safe_load(DASHBOARD_FILE.read_text(encoding="utf-8"))
    return found


def dashboard_names() -> set[str]:
    """The names of all values and tables that the dashboard shows."""
    panels = [panel for section in read_dashboard()["sections"] for panel in section["panels"]]
    listed = {name for panel in panels for kind in ("lines", "bars", "scatter") for name in panel.get(kind, ())}
    return listed | {panel["table"] for panel in panels if "table" in panel}


def build_workspace(entity: str, project: str) -> workspaces.Workspace:
    """The workspace, not yet saved; needs neither an account nor a network.

    Args:
        entity: the user or team that it will belong to.
        project: where the runs are.
    """
    dashboard = read_dashboard()
    sections = [
        workspaces.Section(name=section["name"], panels=[_panel(panel) for panel in section["panels"]], is_open=True)
        for section in dashboard["sections"]
    ]
    return workspaces.Workspace(entity=entity, project=project, name=dashboard["name"], sections=sections)


def workspace_json(workspace: workspaces.Workspace) -> dict[str, Any]:
    """What `save` would send."""
    sent: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return sent


def _panel(panel: dict[str, Any]) -> Any:
    if "lines" in panel:
        return reports.LinePlot(title=panel["title"], y=panel["lines"])
    if "bars" in panel:
        return reports.BarPlot(title=panel["title"], metrics=panel["bars"])
    if "scatter" in panel:
        x, y = map(reports.SummaryMetric, panel["scatter"])
        return reports.ScatterPlot(title=panel["title"], x=x, y=y)
    return reports.WeavePanelSummaryTable(table_name=panel["table"])
