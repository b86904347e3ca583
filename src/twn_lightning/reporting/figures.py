"""The report's figures: quality against tokens, think rate by steps, calibration, CoT length, gain.

Shape letters: N queries, P points of a curve, S numbers of steps, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twn_lightning.reporting.decisions import Decisions
from twn_lightning.reporting.figure_style import (
    MARKERS,
    ReportFigure,
    color,
    inline_svg,
    new_figure,
    percent_axis,
    styled,
)
from twn_lightning.reporting.read import ReportData
from twn_lightning.reporting.tables import ordered_routers, percent, router_label

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: predicted against observed, in equal-width bins that have queries.

    Args:
        predicted_B: float64, mean p(think).
        observed_B: float64, share of queries for which thinking paid (gain above 0).
        low_B, high_B: float64, 95 % Wilson interval of `observed_B`.
        count_B: int64, queries in the bin.
    """

    predicted_B: np.ndarray
    observed_B: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray
    count_B: np.ndarray


def threshold_curve(decisions: Decisions) -> tuple[np.ndarray, np.ndarray]:
    """Tokens a query and hit@1 as the gate's threshold falls from 1 to 0.

    Args:
        decisions: N queries.

    Returns:
        tokens_P and hit_P, float64; one point per distinct probability, from never to always thinking.
    """
    order = np.argsort(-decisions.probability_N, kind="stable")
    change_N = (decisions.hit_generative_N - decisions.hit_discriminative_N)[order]
    # Queries of equal probability fall on the same side of every threshold.
    ends = np.flatnonzero(np.diff(decisions.probability_N[order], append=-np.inf))
    tokens_P = np.concatenate([[0.0], np.cumsum(decisions.tokens_N[order])[ends]]) / len(decisions)
    gained_P = np.concatenate([[0.0], np.cumsum(change_N)[ends]]) / len(decisions)
    return tokens_P, decisions.hit_discriminative_N.mean() + gained_P


def reliability(decisions: Decisions, bins: int = CALIBRATION_BINS) -> Reliability:
    """The gate's probabilities against what happened.

    Args:
        decisions: N queries.
        bins: equal-width bins over [0, 1]; empty ones are left out.

    Returns:
        One entry per bin that has queries.
    """
    index_N = np.minimum((decisions.probability_N * bins).astype(int), bins - 1)
    count_B = np.bincount(index_N, minlength=bins)
    filled = count_B > 0
    count = count_B[filled]
    predicted = np.bincount(index_N, decisions.probability_N, bins)[filled] / count
    observed = np.bincount(index_N, decisions.gain_N > 0, bins)[filled] / count
    z = 1.96
    centre = (observed + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(observed * (1 - observed) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return Reliability(predicted, observed, centre - half, centre + half, count)


def quality_against_tokens(data: ReportData) -> ReportFigure:
    """The gate's threshold curve with every router's point and interval."""
    name, modes = "quality", data.summary["modes"]
    with styled(name):
        figure = new_figure(3.6)
        axes = figure.add_subplot()
        tokens_P, hit_P = threshold_curve(data.decisions)
        axes.plot([tokens_P[0], tokens_P[-1]], [hit_P[0], hit_P[-1]], "--", color=color("random"), linewidth=1)
        axes.plot(tokens_P, hit_P, color=color("adaptive"), linewidth=1.8, label="gate, any threshold")
        for router in ordered_routers(modes):
            score = modes[router]
            low, high = score["ci95"]
            axes.errorbar(
                score["tokens_per_query"],
                score["hit@1"],
                yerr=[[max(0.0, score["hit@1"] - low)], [max(0.0, high - score["hit@1"])]],
                fmt=MARKERS.get(router, "p"),
                color=color(router),
                markersize=9 if router in ("oracle", "adaptive") else 6.5,
                markeredgecolor=color(router) if MARKERS.get(router) in ("x", "+") else color("surface"),
                markeredgewidth=1.6 if MARKERS.get(router) in ("x", "+") else 0.8,
                elinewidth=1.2,
                label=router_label(router),
                zorder=4 if router == "adaptive" else 3,
            )
        percent_axis(axes, "hit@1", low=_floor(min(hit_P.min(), *(score["ci95"][0] for score in modes.values()))))
        axes.set_xlabel("reasoning tokens per query")
        axes.grid(axis="x")
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.4, columnspacing=1.0)
        points = "; ".join(
            f"{router_label(router)} {percent(score['hit@1'])} at {score['tokens_per_query']:.1f} tokens"
            for router, score in ((router, modes[router]) for router in ordered_routers(modes))
        )
        alt = f"Quality against tokens. {points}."
        svg = inline_svg(figure, name, alt)
    caption = (
        "Up and to the left is better. The line is the gate at every threshold; the dashed line is what choosing at "
        "random would give. Bars are 95 % intervals."
    )
    return ReportFigure(name, "Quality against tokens", caption, alt, svg)


def _floor(low: float) -> float:
    """The y axis starts at the next tenth below the lowest point."""
    return max(0.0, np.floor(10 * low - 0.3) / 10)


def think_rate_by_steps(data: ReportData) -> ReportFigure:
    """How often the gate thinks, and what it earns, by the true number of steps."""
    name, entries = "steps", data.summary["by_steps"]
    steps = sorted(map(int, entries))
    with styled(name):
        figure = new_figure()
        axes = figure.add_subplot()
        rates = [entries[str(step)]["think_rate"] for step in steps]
        axes.bar(steps, rates, width=0.72, color=color("adaptive"), alpha=0.22, label="think rate")
        for router, offset in (("never", -0.12), ("always", 0.12), ("adaptive", 0.0)):
            axes.plot(
                [step + offset for step in steps],
                [entries[str(step)][router] for step in steps],
                marker=MARKERS[router],
                color=color(router),
                markeredgecolor=color("surface"),
                markeredgewidth=0.7,
                linewidth=1.5,
                label=f"hit@1 {router}",
            )
        percent_axis(axes, "share of queries")
        axes.set_xticks(steps)
        axes.set_xlabel("reasoning steps that the query needs")
        figure.legend(loc="outside lower center", ncols=2, handletextpad=0.4, columnspacing=1.0)
        rows = "; ".join(f"{step}: {percent(rate, 0)}" for step, rate in zip(steps, rates, strict=True))
        alt = f"Think rate by reasoning steps. {rows}."
        svg = inline_svg(figure, name, alt)
    caption = "Bars: how often the gate thinks. Lines: hit@1 without thinking, with it, and by the gate's choice."
    return ReportFigure(name, "Think rate by steps", caption, alt, svg)


def gate_calibration(data: ReportData) -> ReportFigure:
    """Reliability diagram of p(think), with the number of queries in each bin."""
    name, bins = "calibration", reliability(data.decisions)
    with styled(name):
        figure = new_figure(3.6)
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        axes.plot([0, 1], [0, 1], "--", color=color("random"), linewidth=1)
        axes.errorbar(
            bins.predicted_B,
            bins.observed_B,
            yerr=np.abs(np.stack([bins.observed_B - bins.low_B, bins.high_B - bins.observed_B])),
            fmt="o-",
            color=color("adaptive"),
            markeredgecolor=color("surface"),
            markersize=6.5,
            linewidth=1.5,
            elinewidth=1.2,
        )
        percent_axis(axes, "thinking paid")
        centres = (np.minimum(bins.predicted_B * CALIBRATION_BINS, CALIBRATION_BINS - 1e-9).astype(int) + 0.5) * 0.1
        counts.bar(centres, bins.count_B, width=0.085, color=color("adaptive"), alpha=0.5)
        for centre, count in zip(centres, bins.count_B, strict=True):
            counts.annotate(
                f"{count:,}", (centre, count), xytext=(0, 1.5), textcoords="offset points", ha="center", fontsize=7
            )
        counts.set_yscale("log")
        counts.set_ylim(0.5, 4 * bins.count_B.max())
        counts.set_ylabel("queries")
        counts.set_xlim(-0.02, 1.02)
        counts.set_xlabel("p(think)")
        auroc, ece = data.summary["gate"]["auroc"], data.summary["gate"]["ece"]
        scores = f"AUROC {_number(auroc)}, expected calibration error {_number(ece)}"
        alt = f"Gate calibration. {scores}; {len(bins.count_B)} bins have queries."
        svg = inline_svg(figure, name, alt)
    caption = f"How often thinking paid (gain above 0) by p(think): an honest gate lies on the diagonal. {scores}."
    return ReportFigure(name, "Gate calibration", caption, alt, svg)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def cot_length_by_steps(data: ReportData) -> ReportFigure:
    """Spread of CoT tokens by the true number of steps."""
    name, decisions = "length", data.decisions
    steps = decisions.step_counts
    groups = [decisions.tokens_N[decisions.steps_N == step] for step in steps] or [decisions.tokens_N]
    positions = steps or [0]
    quantiles_5S = np.stack([np.quantile(group, [0.05, 0.25, 0.5, 0.75, 0.95]) for group in groups], axis=1)
    with styled(name):
        figure = new_figure()
        axes = figure.add_subplot()
        paint, (low, quarter, median, three_quarters, high) = color("always"), quantiles_5S
        axes.vlines(positions, low, high, color=paint, linewidth=1.2, label="5 – 95 %")
        axes.vlines(positions, quarter, three_quarters, color=paint, linewidth=7, alpha=0.4, label="25 – 75 %")
        axes.plot(positions, median, "o", color=paint, markersize=6, label="median")
        axes.set_ylim(0, 1.12 * max(1.0, high.max()))
        axes.set_ylabel("CoT tokens")
        axes.grid(axis="y")
        axes.set_xticks(positions, [str(step) for step in steps] or ["all queries"])
        axes.set_xlabel("reasoning steps that the query needs" if steps else "")
        figure.legend(loc="outside lower center", ncols=3, handletextpad=0.6)
        medians = "; ".join(f"{step}: {tokens:.0f}" for step, tokens in zip(positions, median, strict=True))
        alt = f"CoT length by reasoning steps, median tokens. {medians}."
        svg = inline_svg(figure, name, alt)
    ratio = data.summary["cot_length_ratio"]
    caption = "Tokens that a query's chain of thought takes if it thinks."
    if ratio is not None:
        caption += f" Queries of 0 steps take {ratio:.2f} times the tokens of the others."
    return ReportFigure(name, "CoT length by steps", caption, alt, svg)


def gain_histogram(data: ReportData) -> ReportFigure:
    """What thinking gained, for the queries that thought and those that did not."""
    name, decisions = "gain", data.decisions
    low, high = np.quantile(decisions.gain_N, [0.005, 0.995])
    span = max(abs(low), abs(high), 0.1)
    edges = np.linspace(-span, span, 42)
    thought, skipped = decisions.gain_N[decisions.think_N], decisions.gain_N[~decisions.think_N]
    with styled(name):
        figure = new_figure()
        axes = figure.add_subplot()
        axes.hist(
            [np.clip(skipped, -span, span), np.clip(thought, -span, span)],
            bins=edges.tolist(),
            stacked=True,
            color=[color("never"), color("adaptive")],
            label=["skipped", "thought"],
            alpha=0.8,
        )
        axes.axvline(0, color=color("ink"), linewidth=1, linestyle=":")
        axes.set_yscale("symlog", linthresh=10)
        axes.set_ylabel("queries")
        axes.grid(axis="y")
        axes.set_xlabel("gain of thinking, net of its price (nats)")
        figure.legend(loc="outside lower center", ncols=2)
        right = float(((decisions.gain_N > 0) == decisions.think_N).mean())
        alt = (
            f"Gain of thinking. {len(thought):,} queries thought, {(thought > 0).sum():,} of them with a gain above 0; "
            f"{len(skipped):,} did not, {(skipped > 0).sum():,} of them with one."
        )
        svg = inline_svg(figure, name, alt)
    caption = (
        "Right of the dotted line thinking paid. The gate's choice agrees with the sign of the gain for "
        f"{percent(right)} of the queries. Counts are on a logarithmic scale above 10."
    )
    return ReportFigure(name, "Gain of thinking", caption, alt, svg)
