"""The report of a sweep: settings over seeds, the best and how sure, figures, hostile text escaped."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from twn_lightning import cli
from twn_lightning.errors import DataError
from twn_lightning.reporting.sweep import SweepReport, load_sweep
from twn_lightning.reporting.sweep_figures import sweep_figures
from twn_lightning.reporting.sweep_page import render_sweep_html, render_sweep_markdown
from twn_lightning.reporting.sweep_tables import job_table, settings_table, sweep_finding
from twn_lightning.reporting.tables import print_text_tables
from twn_lightning.sweep_folder import SweepFolder

METRIC = "val/hit@1_generative"
RANKS = {"adapters.reasoning.r": ["4", "16"], "seed": ["0", "1", "2"]}
SCORES = {"4": (0.80, 0.82, 0.81), "16": (0.90, 0.93, 0.90)}

Make = Callable[..., SweepFolder]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a sweep whose jobs completed with a score of their values, except failed ones."""

    def make(
        axes: Mapping[str, Sequence[str]],
        score: Callable[[dict[str, str]], float],
        failed: Mapping[int, str] | None = None,
        metric: Callable[[dict[str, str]], str] = lambda values: METRIC,
    ) -> SweepFolder:
        typed = ["experiment=nano_sft", *(f"{key}={','.join(values)}" for key, values in axes.items())]
        sweep = SweepFolder(tmp_path / "sweep").plan(typed, axes, math.prod(map(len, axes.values())))
        for index, combination in enumerate(itertools.product(*axes.values())):
            values = dict(zip(axes, combination, strict=True))
            job = sweep.job(["experiment=nano_sft", *(f"{key}={value}" for key, value in values.items())], index)
            job.write(60.0, 0)
            if failed and index in failed:
                job.run.status("FAILED", failed[index])
                continue
            headline = {"metric": metric(values), "before": 0.0, "after": score(values)}
            job.run.finish({"headline": headline, metric(values): score(values), "val/loss": 1 - score(values)})
        sweep.finish(early=False)
        return sweep

    return make


def rank_score(values: dict[str, str]) -> float:
    return SCORES[values["adapters.reasoning.r"]][int(values["seed"])]


@pytest.fixture
def report(make: Make) -> SweepReport:
    return load_sweep(make(RANKS, rank_score).path)


def test_seeds_are_repetitions_and_not_settings(report: SweepReport) -> None:
    assert report.keys == ["adapters.reasoning.r"]
    assert [setting.values for setting in report.settings] == [{report.keys[0]: "16"}, {report.keys[0]: "4"}]
    best = report.settings[0]
    assert best.scores == {"0": 0.90, "1": 0.93, "2": 0.90}
    assert best.interval is not None
    # mean 0.91, standard deviation 0.01732, t of two degrees of freedom 4.3027
    assert best.interval == pytest.approx((0.91, 0.91 - 0.04303, 0.91 + 0.04303), abs=1e-5)
    difference = best.difference(report.settings[1])
    assert difference is not None
    # differences 0.10, 0.11, 0.09: mean 0.10, standard deviation 0.01
    assert difference == pytest.approx((0.10, 0.10 - 0.02484, 0.10 + 0.02484), abs=1e-5)


def test_the_finding_says_how_sure(make: Make) -> None:
    assert "more than chance between seeds" in sweep_finding(load_sweep(make(RANKS, rank_score).path))


def test_the_finding_says_when_it_is_not_sure(make: Make) -> None:
    close = {"4": (0.80, 0.86, 0.81), "16": (0.83, 0.81, 0.86)}
    found = sweep_finding(
        load_sweep(make(RANKS, lambda values: close[values["adapters.reasoning.r"]][int(values["seed"])]).path)
    )
    assert found.startswith(f"adapters.reasoning.r=16 has the highest {METRIC}: 0.8333 (over 3 seeds")
    assert "which may be chance between seeds" in found


def test_one_seed_gives_no_interval(make: Make) -> None:
    report = load_sweep(make({"interface": ["kv_detached", "kv_joint"]}, lambda v: len(v["interface"]) / 20).path)
    assert report.settings[0].interval is None
    assert "With one seed there is no telling" in sweep_finding(report)
    assert report.best_command() == "twn train experiment=nano_sft interface=kv_detached"


def test_a_setting_with_fewer_seeds_is_not_the_best(make: Make) -> None:
    report = load_sweep(make(RANKS, rank_score, failed={4: "lost"}).path)
    assert [len(setting.scores) for setting in report.settings] == [3, 2]
    assert report.best_command() == "twn train experiment=nano_sft adapters.reasoning.r=4"
    assert "No other setting has as many" in sweep_finding(report)
    assert report.complete_seeds == ["0", "2"]
    assert "completed (0, 2)" in sweep_figures(report)[0].caption


def test_lower_may_be_better(make: Make) -> None:
    report = load_sweep(make(RANKS, lambda values: 1 - rank_score(values)).path, minimize=True)
    assert report.best is not None
    assert report.best.values == {"adapters.reasoning.r": "16"}
    assert "has the lowest" in sweep_finding(report)


def test_metrics_are_chosen_by_name(make: Make) -> None:
    sweep = make(RANKS, rank_score)
    assert load_sweep(sweep.path, "val/loss").best.mean == pytest.approx(0.19)  # type: ignore[union-attr]
    with pytest.raises(DataError, match="unknown metric 'val/los': did you mean 'val/loss'"):
        load_sweep(sweep.path, "val/los")


def test_stages_with_different_headlines_need_a_choice(make: Make) -> None:
    sweep = make({"stage": ["sft", "gate"]}, lambda values: 0.5, metric=lambda values: values["stage"])
    with pytest.raises(DataError, match="gate, sft: choose what to compare with --metric"):
        load_sweep(sweep.path)
    assert load_sweep(sweep.path, "val/loss").metric == "val/loss"


def test_nothing_completed_yet(make: Make) -> None:
    report = load_sweep(make({"seed": ["0", "1"]}, lambda values: 0.0, failed={0: "a", 1: "b"}).path)
    assert sweep_finding(report) == "None of the 2 jobs has completed."
    assert sweep_figures(report) == []
    assert "job 0: a" in render_sweep_markdown(report)
    assert "Best command" not in render_sweep_html(report, report.sweep.path)


def test_figures_show_every_job_and_the_means(report: SweepReport) -> None:
    effect, parallel = sweep_figures(report)
    assert effect.alt == f"{METRIC} by adapters.reasoning.r. 4: 0.8100; 16: 0.9100."
    assert parallel.alt == f"Each of 6 jobs as a line through adapters.reasoning.r, seed to its {METRIC}."
    assert effect.svg.count("<use") >= 6
    assert sweep_figures(report) == [effect, parallel], "the same data gives the same drawing"


def test_many_numbers_are_drawn_on_a_scale(make: Make) -> None:
    rates = [f"{10**-power:.17f}" for power in range(1, 11)]
    report = load_sweep(make({"stage.learning_rate": rates}, lambda values: float(values["stage.learning_rate"])).path)
    effect = sweep_figures(report)[0]
    assert effect.caption == "Each dot is a job."
    assert "10 values between" in effect.alt
    assert settings_table(report).rows[0][0] == "0.1"


def test_tables_list_what_differs(make: Make) -> None:
    report = load_sweep(make(RANKS, rank_score, failed={0: "lost"}).path)
    jobs = job_table(report)
    assert jobs.header == ["Job", "adapters.reasoning.r", "seed", "Status", "Time", METRIC]
    assert jobs.rows[0] == ["0", "4", "0", "failed", "1 min 00 s", "–"]
    assert jobs.rows[1] == ["1", "4", "1", "completed", "1 min 00 s", "0.8200"]
    settings = settings_table(report)
    assert settings.keys == ["best", "1"]
    assert settings.rows[1][:3] == ["4", "2", "0.8150"]


def test_hostile_text_is_escaped(make: Make) -> None:
    hostile = "<img src=x onerror=alert(1)>|`$x$`"
    report = load_sweep(make({"name": ["a", hostile]}, lambda values: len(values["name"]), failed=None).path)
    page = render_sweep_html(report, report.sweep.path)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    markdown = render_sweep_markdown(report)
    assert "| **\\<img src=x onerror=alert(1)\\>\\|\\`$x$\\`** |" in markdown


def test_words_in_brackets_are_shown_in_the_terminal(make: Make) -> None:
    """rich would read them as markup: `[never,always]` would vanish, and `[/b]` would be an error."""
    values = ["[never,always]", "[/b]"]
    report = load_sweep(make({"evaluation.routers": values, "seed": ["0", "1"]}, lambda values: 0.5).path)
    console = Console(file=io.StringIO(), width=200)
    print_text_tables([settings_table(report), job_table(report)], console)
    printed = console.file.getvalue()
    for value in values:
        assert printed.count(value) == 3, "one setting, two jobs"


def test_report_verb(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = make(RANKS, rank_score)
    assert cli.main(["report", f"sweep={sweep.path}"]) == 0
    printed = capsys.readouterr().out
    assert "best: twn train experiment=nano_sft adapters.reasoning.r=16" in printed
    assert (sweep.path / "report.html").read_text().startswith("<!doctype html>")
    output = tmp_path / "report.md"
    assert cli.main(["report", str(sweep.path), "--output", str(output)]) == 0
    assert output.read_text().startswith("# Sweep over adapters.reasoning.r, seed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep={tmp}/nowhere"], "is not a sweep folder"),
        (["sweep={sweep}", "sweep={sweep}"], "one sweep, got 2"),
        (["{tmp}", "--minimize"], "are for the report of a sweep"),
    ],
)
def test_report_verb_says_what_is_wrong(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    sweep = make(RANKS, rank_score)
    assert cli.main(["report", *(word.format(tmp=tmp_path, sweep=sweep.path) for word in arguments)]) == 2
    assert message in capsys.readouterr().err
