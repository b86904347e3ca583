"""The figures of a sweep: every job as a line through its values, and the metric by each swept key.

Shape letters: J jobs, A axes of the drawing, L levels of a key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from twn_lightning.metrics import Interval, student_interval
from twn_lightning.reporting.figure_style import ReportFigure, color, inline_svg, new_figure, styled
from twn_lightning.reporting.sweep import ABSENT, SEED, SweepReport, seed_of
from twn_lightning.reporting.sweep_tables import number
from twn_lightning.sweep_folder import SweepJob

MAX_LEVELS = 8
"""A key with more numeric values than this is drawn on a scale, with fewer as equally spaced levels."""
_LOGARITHMIC_SPAN = 50


def sweep_figures(report: SweepReport) -> list[ReportFigure]:
    """Every figure that the completed jobs allow: none before two of them differ in a key."""
    done = [job for job in report.jobs if report.value(job) is not None]
    if len(done) < 2:
        return []
    varied = [key for key in [*report.keys, SEED] if len({_value(job, key) for job in done}) > 1]
    effects = [main_effect(report, done, key, index) for index, key in enumerate(varied) if key != SEED]
    return [*effects, parallel_coordinates(report, done, varied)] if varied else []


def main_effect(report: SweepReport, done: Sequence[SweepJob], key: str, index: int) -> ReportFigure:
    """The metric by the values of one key: every job as a dot, and the mean of each value.

    Args:
        report: the sweep.
        done: its jobs that have the metric.
        key: a swept key.
        index: of the figure, for its name.
    """
    name = f"effect-{index}"
    levels = _ordered({_value(job, key) for job in done})
    means = {} if _on_scale(levels) else {level: _level_mean(report, done, key, level) for level in levels}
    positions = {level: float(place) if means else float(level) for place, level in enumerate(levels)}
    with styled(name):
        figure = new_figure()
        axes = figure.add_subplot()
        axes.plot(
            [positions[_value(job, key)] for job in done],
            np.array([report.value(job) for job in done], dtype=np.float64),
            "o",
            color=color("muted"),
            markersize=4,
            alpha=0.45,
            label="a job",
        )
        if means:
            _draw_means(axes, positions, means)
        elif _logarithmic(levels):
            axes.set_xscale("log")
        axes.set_xlabel(key, parse_math=False)
        axes.set_ylabel(report.metric or "", parse_math=False)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=2, handletextpad=0.4)
        listed = "; ".join(f"{level}: {number(mean.mean)}" for level, mean in means.items())
        alt = f"{report.metric} by {key}. {listed or f'{len(levels)} values between {levels[0]} and {levels[-1]}'}."
        svg = inline_svg(figure, name, alt)
    caption = f"Each dot is a job.{_means_caption(report) if means else ''}"
    return ReportFigure(name, f"Effect of {key}", caption, alt, svg)


def _means_caption(report: SweepReport) -> str:
    words = " The line joins their means"
    if not report.complete_seeds:
        return f"{words}, which also differ in the other keys: not every combination has completed."
    if len(report.complete_seeds) < len(report.seeds):
        words += f" over the seeds that every combination has completed ({', '.join(report.complete_seeds)})"
    return f"{words}; bars are 95 % intervals over seeds." if len(report.complete_seeds) > 1 else f"{words}."


def _draw_means(axes: Axes, positions: dict[str, float], means: dict[str, Interval]) -> None:
    bars = [0.0 if math.isnan(mean.low) else mean.high - mean.mean for mean in means.values()]
    axes.errorbar(
        [positions[level] for level in means],
        [mean.mean for mean in means.values()],
        yerr=bars if any(bars) else None,
        fmt="o-",
        color=color("adaptive"),
        markeredgecolor=color("surface"),
        markersize=7,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=3,
        label="mean",
    )
    axes.set_xticks(list(positions.values()), list(positions), parse_math=False)
    axes.margins(x=0.12)


def _level_mean(report: SweepReport, done: Sequence[SweepJob], key: str, level: str) -> Interval:
    """The mean over a value's jobs, with complete seeds where there are some; its interval is over the seeds' means."""
    of_seed: dict[str, list[float]] = {}
    for job in done:
        value = report.value(job)
        counts = not report.complete_seeds or seed_of(job) in report.complete_seeds
        if counts and _value(job, key) == level and value is not None:
            of_seed.setdefault(seed_of(job), []).append(value)
    means = [float(np.mean(values)) for values in of_seed.values()]
    if len(means) > 1 and report.complete_seeds:
        return student_interval(means)
    return Interval(float(np.mean(means)), math.nan, math.nan)


def parallel_coordinates(report: SweepReport, done: Sequence[SweepJob], keys: Sequence[str]) -> ReportFigure:
    """Every completed job as a line through its values to its metric; those of the best setting stand out.

    Args:
        report: the sweep.
        done: its jobs that have the metric.
        keys: what differs between them, one axis each before the metric's.
    """
    name = "parallel"
    metric_J = np.array([report.value(job) for job in done], dtype=np.float64)
    low, high = metric_J.min(), metric_J.max()
    quality_J = (metric_J - low) / (high - low) if high > low else np.full(len(done), 0.5)
    heights = [_heights([_value(job, key) for job in done]) for key in keys]
    best = report.best
    with styled(name):
        figure = new_figure()
        axes = figure.add_subplot()
        for index, job in enumerate(done):
            is_best = best is not None and all(_value(job, key) == value for key, value in best.values.items())
            shade = 1 - quality_J[index] if report.minimize else quality_J[index]
            axes.plot(
                [*(height_J[index] for height_J, _ in heights), quality_J[index]],
                color=color("adaptive" if is_best else "muted"),
                linewidth=2.2 if is_best else 1.1,
                alpha=0.9 if is_best else 0.2 + 0.5 * shade,
                zorder=3 if is_best else 2,
            )
        ends = [(0.0, number(low)), (1.0, number(high))] if high > low else [(0.5, number(low))]
        _draw_axes(axes, [*(marks for _, marks in heights), ends], [*keys, report.metric or ""])
        alt = f"Each of {len(done)} jobs as a line through {', '.join(keys)} to its {report.metric}."
        svg = inline_svg(figure, name, alt)
    caption = "One line a job, from its settings to its metric on the right; the stronger, the better."
    if report.keys:
        caption += " The jobs of the best setting are in colour."
    return ReportFigure(name, "All jobs", caption, alt, svg)


def _draw_axes(axes: Axes, marks: Sequence[Sequence[tuple[float, str]]], names: Sequence[str]) -> None:
    """A vertical line for each axis with its values beside it and its name below."""
    for place, axis in enumerate(marks):
        axes.axvline(place, color=color("ink"), linewidth=0.8)
        for height, text in axis:
            axes.annotate(
                text,
                (place, height),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                parse_math=False,
                bbox={"facecolor": color("surface"), "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
                zorder=5,
            )
    labels = [name.replace(".", ".\n").replace("/", "/\n") for name in names]
    axes.set_xticks(range(len(names)), labels, parse_math=False, fontsize=7.5)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.set_xlim(-0.1, len(names) - 1 + 0.35)
    axes.set_ylim(-0.06, 1.06)
    axes.spines[["left", "bottom"]].set_visible(False)


def _heights(values: Sequence[str]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where each value lies on its axis, (J,) in [0, 1], and the marks of the axis."""
    levels = _ordered(set(values))
    if not _on_scale(levels):
        places = {level: place / max(1, len(levels) - 1) for place, level in enumerate(levels)}
        return np.array([places[value] for value in values]), [(place, level) for level, place in places.items()]
    raw_J = np.array([float(value) for value in values])
    scaled_J = np.log(raw_J) if _logarithmic(levels) else raw_J
    height_J = (scaled_J - scaled_J.min()) / (scaled_J.max() - scaled_J.min())
    return height_J, [(0.0, f"{raw_J.min():.3g}"), (1.0, f"{raw_J.max():.3g}")]


def _logarithmic(levels: Sequence[str]) -> bool:
    low, high = float(levels[0]), float(levels[-1])
    return low > 0 and high / low > _LOGARITHMIC_SPAN


def _ordered(values: set[str]) -> list[str]:
    """Numbers by size; words in alphabetical order after them."""
    return sorted(values, key=lambda value: (_as_number(value) is None, _as_number(value) or 0.0, value))


def _on_scale(levels: Sequence[str]) -> bool:
    return len(levels) > MAX_LEVELS and all(_as_number(level) is not None for level in levels)


def _as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _value(job: SweepJob, key: str) -> str:
    return job.values.get(key, ABSENT)
