"""What every page shares: the shell with its style, script and content policy, sections, tables, figures, runs."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from twn_lightning.reporting.figure_style import ReportFigure
from twn_lightning.reporting.markup import Markup, element, join, table
from twn_lightning.reporting.read import RunRecord
from twn_lightning.reporting.tables import TEXT_COLUMNS, TextTable

MAX_TEXT = 4000
"""Characters of one text that a page shows: a CoT at its cap fits, a runaway one is cut."""


def asset(name: str) -> str:
    """A file of `reporting/assets/`."""
    return files("twn_lightning.reporting").joinpath("assets").joinpath(name).read_text(encoding="utf-8")


def page(
    title: str, head: Markup, *parts: Markup | None, style: str = "", script: str = "", connect: str = "'none'"
) -> str:
    """A whole HTML document in one file: it asks nobody for anything unless `connect` allows it.

    Args:
        title: of the window.
        head: from `header`.
        parts: sections; None is left out.
        style: added to the report's style sheet.
        script: added to the report's script; no other script runs.
        connect: whom scripts may ask, as in a content security policy.

    Returns:
        The document.
    """
    script = asset("report.js") + script
    return Template(asset("report.html")).substitute(
        title=join(title),
        style=asset("report.css") + style,
        script=script,
        policy=content_policy(script, connect),
        body=join(head, element("main", *parts, id="main")),
    )


def content_policy(script: str, connect: str = "'none'") -> str:
    """The content security policy of a page: inline styles, embedded images and this one script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"connect-src {connect}; script-src 'sha256-{digest}'"
    )


def header(
    overline: str, title: str, finding: str, tiles: Sequence[tuple[str, str, str]], links: Mapping[str, str]
) -> Markup:
    """The head of a page.

    Args:
        overline: what the page is about.
        title: its heading.
        finding: the result in a sentence.
        tiles: headline numbers: value, name, explanation.
        links: id of a section to its name.
    """
    return element(
        "header",
        element("p", overline, class_="overline"),
        element("h1", title),
        element("p", finding, class_="finding"),
        element("dl", *(_tile(*tile) for tile in tiles), class_="tiles") if tiles else None,
        element("nav", *(element("a", name, href=f"#{to}") for to, name in links.items()), aria_label="Sections"),
    )


def _tile(value: str, name: str, detail: str) -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", detail)))


def section(name: str, title: str, *content: object, note: str | None = None) -> Markup:
    """A part of the page under a heading; `name` is its id."""
    heading = element("h2", title, id=f"{name}-title")
    paragraph = element("p", note, class_="note") if note else None
    return element("section", heading, paragraph, *content, id=name, aria_labelledby=f"{name}-title")


def text_table(content: TextTable, *, sortable: bool = False) -> Markup:
    """A table as HTML; a sortable one gets buttons in its head where scripts run."""
    return table(content.title, content.header, content.rows, content.keys, words=TEXT_COLUMNS, sortable=sortable)


def figure_card(figure: ReportFigure) -> Markup:
    """A figure with its title and caption."""
    caption = element("figcaption", figure.caption)
    return element("figure", element("h3", figure.title), figure.svg, caption, id=f"figure-{figure.name}")


def bounded(text: str) -> str:
    """The text, or its beginning and what was left out."""
    left_out = len(text) - MAX_TEXT
    return text if left_out <= 0 else f"{text[:MAX_TEXT]}… ({left_out:,} more characters)"


def run_list(runs: Sequence[RunRecord], folder: Path | None) -> Markup | None:
    """Each run's folder, state, command, error and environment; linked relative to `folder`, where there is one."""
    return join(*(_run(run, folder) for run in runs)) if runs else None


def _run(run: RunRecord, folder: Path | None) -> Markup:
    place: object = run.path
    if folder is not None:
        relative = Path(os.path.relpath(run.path, folder)).as_posix()
        place = element("a", relative, href=f"./{quote(relative)}/")
    error = element("pre", bounded(run.error), class_="error") if run.error else None
    facts = [
        join(element("dt", name), element("dd", value)) for name, value in flatten(run.environment) if value is not None
    ]
    environment = (
        element("details", element("summary", "Environment"), element("dl", *facts, class_="environment"))
        if facts
        else None
    )
    return element(
        "article",
        element("h3", place, " ", element("span", run.status.lower(), class_=f"badge status-{run.status.lower()}")),
        element("pre", f"$ {run.command}", class_="command") if run.command else None,
        error,
        environment,
        class_="run",
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    """A nested mapping as rows of dotted name and value."""
    rows: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{name}.")
        elif value != []:
            rows.append((f"{prefix}{name}", value))
    return rows
