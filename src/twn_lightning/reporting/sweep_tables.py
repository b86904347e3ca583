"""The tables of a sweep, and what it found in words, for the terminal, Markdown and HTML."""

from __future__ import annotations

from twn_lightning.metrics import Interval
from twn_lightning.reporting.sweep import ABSENT, SEED, SweepReport, SweepSetting
from twn_lightning.reporting.tables import BEST, NO_BREAK, TextTable, duration

_LONGEST_NUMBER = 8


def settings_table(report: SweepReport) -> TextTable:
    """Setting x (its values, seeds, mean with interval, how far behind the best, time), best first."""
    rows = []
    for setting in report.settings:
        is_best = setting is report.best
        behind = None if is_best or report.best is None else report.best.difference(setting)
        rows.append(
            [
                *(map(shown, setting.values.values()) if setting.values else ["all jobs"]),
                str(len(setting.scores)),
                number(setting.mean),
                span(setting.interval) or "–",
                span(behind, signed=True) or "–",
                duration(setting.seconds) if setting.scores else "–",
            ]
        )
    header = [*(report.keys or ["Setting"]), "Seeds", "Mean", "95 % interval", "Best minus this", "Time"]
    keys = [BEST if setting is report.best else str(index) for index, setting in enumerate(report.settings)]
    return TextTable(f"Settings by {report.metric or 'metric'}", header, keys, rows)


def job_table(report: SweepReport) -> TextTable:
    """Job x (what it changes, status, time, metric), by number."""
    seeds = [SEED] if len(report.seeds) > 1 else []
    rows = [
        [
            str(job.number),
            *(shown(job.values.get(key, ABSENT)) for key in [*report.keys, *seeds]),
            job.state.lower(),
            duration(job.seconds) if job.seconds else "–",
            number(report.value(job)),
        ]
        for job in report.jobs
    ]
    header = ["Job", *report.keys, *seeds, "Status", "Time", report.metric or "Metric"]
    return TextTable("Jobs", header, [str(job.number) for job in report.jobs], rows)


def shown(value: str) -> str:
    """A setting's value for people: a long number, such as a sweeper draws, with four digits."""
    try:
        return value if len(value) <= _LONGEST_NUMBER else f"{float(value):.4g}"
    except ValueError:
        return value


def number(value: float | None) -> str:
    """A metric with four decimals, an en dash where there is none."""
    return "–" if value is None else f"{value:.4f}"


def span(interval: Interval | None, *, signed: bool = False) -> str:
    """The ends of an interval; empty without one."""
    if interval is None:
        return ""
    low, high = (f"{end:+.4f}" if signed else f"{end:.4f}" for end in (interval.low, interval.high))
    return f"{low} to {high}"


def sweep_finding(report: SweepReport) -> str:
    """What the sweep found, in sentences: the best setting, and whether it is told apart from the next."""
    best = report.best
    if best is None:
        return f"None of the {report.plan['jobs']} jobs has completed."
    seeds = f"{len(best.scores)} seed{'s' if len(best.scores) > 1 else ''}"
    interval = f", 95{NO_BREAK}% interval {span(best.interval)}" if best.interval else ""
    if len(report.settings) == 1:
        return f"{report.metric} is {number(best.mean)} (over {seeds}{interval})."
    extreme = "lowest" if report.minimize else "highest"
    found = f"{_named(best)} has the {extreme} {report.metric}: {number(best.mean)} (over {seeds}{interval})."
    return f"{found} {_certainty(report, best)}"


def _certainty(report: SweepReport, best: SweepSetting) -> str:
    second = report.second
    if second is None:
        return "No other setting has as many completed seeds to compare it with."
    next_one = f"The next is {_named(second)} with {number(second.mean)}."
    if best.mean == second.mean:
        return f"{next_one} The two are equal."
    difference = best.difference(second)
    if difference is None:
        return f"{next_one} With one seed there is no telling whether the difference is chance: add seed=0,1,2."
    interval = f"95{NO_BREAK}% interval {span(difference, signed=True)}, paired by seed"
    chance = "which may be" if difference.low <= 0 <= difference.high else "more than"
    return f"{next_one} The difference is {difference.mean:+.4f} ({interval}), {chance} chance between seeds."


def _named(setting: SweepSetting) -> str:
    return ", ".join(f"{key}={shown(value)}" for key, value in setting.values.items())
