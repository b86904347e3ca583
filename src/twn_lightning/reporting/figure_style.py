"""How figures look, and how they become inline SVG that follows the page's light or dark colours.

Figures are drawn in placeholder colours, one per role. In the SVG each becomes a CSS variable that the page's style
sheet sets for light, dark and print, so one drawing serves all three.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twn_lightning.reporting.markup import Markup, element, join

ROLES = (
    "ink", "muted", "grid", "surface", "adaptive", "always", "never", "random", "random_equal_tokens", "margin",
    "query_length", "oracle", "other",
)  # fmt: skip
"""What a colour stands for: each has a CSS variable `--<role>` in assets/report.css."""

PLACEHOLDER = {role: f"#0000{index + 1:02x}" for index, role in enumerate(ROLES)}
MARKERS = {
    "never": "v",
    "always": "^",
    "adaptive": "o",
    "random": "x",
    "random_equal_tokens": "+",
    "margin": "s",
    "query_length": "D",
    "oracle": "*",
}
WIDTH, HEIGHT = 4.1, 3.2
"""Inches. Small, so that the text keeps its size relative to the figure on a phone."""


@dataclass(frozen=True)
class ReportFigure:
    """A figure with its words: `alt` says in text what the drawing shows."""

    name: str
    title: str
    caption: str
    alt: str
    svg: Markup


def color(role: str) -> str:
    """The placeholder of a role; routers without a colour of their own share one."""
    return PLACEHOLDER.get(role, PLACEHOLDER["other"])


@contextmanager
def styled(name: str) -> Iterator[None]:
    """Matplotlib settings of a report figure; `name` salts the ids, which makes the SVG deterministic."""
    ink, muted = color("ink"), color("muted")
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 8.5,
        "axes.edgecolor": muted,
        "axes.labelcolor": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "text.color": ink,
        "xtick.color": muted,
        "ytick.color": muted,
        "xtick.labelcolor": ink,
        "ytick.labelcolor": ink,
        "grid.color": color("grid"),
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with mpl.rc_context(settings):
        yield


def new_figure(height: float = HEIGHT) -> Figure:
    """An empty figure outside pyplot's global state."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def percent_axis(axes: Axes, label: str, *, low: float = 0.0) -> None:
    """Make y a percentage from `low` to 100 with a horizontal grid."""
    axes.set_ylim(low, 1.03)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_ylabel(label)
    axes.grid(axis="y")


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """A figure as an <svg> element: deterministic, no XML prolog, no address of any kind, ids unique in the page.

    Args:
        figure: drawn under `styled(name)`, which is still active.
        name: of the figure; prefixes its ids.
        alt: what it shows, for people who do not see it.

    Returns:
        Markup for an HTML page.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", body)
    for role, placeholder in PLACEHOLDER.items():
        body = body.replace(placeholder, f"var(--{role.replace('_', '-')})")
    body = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font-size: \1px", body)
    body = re.sub(r"\n\s*", "\n", body)
    width, height = (72 * inches for inches in figure.get_size_inches())
    return element(
        "svg",
        join(element("title", alt), Markup(body)),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=alt,
    )
