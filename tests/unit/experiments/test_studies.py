"""The frame of the studies, and the two that need recorded outcomes only, on made evaluations of three seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from experiments.gate_routing import collect as gate_routing
from experiments.studies.runs import read_seeds
from experiments.studies.study import (
    command_of,
    judged,
    number_of,
    read_block,
    read_results,
    replace_block,
    write_study,
)
from experiments.token_budgets import collect as token_budgets
from experiments.token_budgets import deployed
from tests.support.study_runs import decisions, write_evaluation
from twn_lightning.errors import DataError
from twn_lightning.gate import RoutingGate
from twn_lightning.metrics import Interval
from twn_lightning.settings import Settings
from twn_lightning.stages.labelled_split import LabelledSplit

COUNT = 1200


def made_table(model_seed: int) -> pa.Table:
    return decisions(model_seed, COUNT)


def made_run(folder: Path, seed: int, table: pa.Table | None = None) -> Path:
    return write_evaluation(folder, f"outputs/gate/{seed}/adapters", made_table(seed) if table is None else table)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [made_run(root / str(seed), seed) for seed in range(3)]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study's folder with a README that has no numbers yet."""
    folder = tmp_path / "some_study"
    folder.mkdir()
    (folder / "README.md").write_text(
        "# Some study\n\n**Question.** Does it\nwork?\n\n```\ntwn train experiment=nano_gate \\\n    seed=1\n"
        "# then\ntwn evaluate\n```\n\n<!-- results -->\n<!-- /results -->\n\n**Verdict.** Yes.\n"
    )
    return folder


def test_seeds_are_read_in_the_same_order(runs: list[Path]) -> None:
    seeds = read_seeds(runs)
    assert all((seed.key_N == seeds[0].key_N).all() and (seed.kind_N == seeds[0].kind_N).all() for seed in seeds)
    assert all(key.endswith(kind) for key, kind in zip(seeds[2].key_N, seeds[2].kind_N, strict=True))
    assert (seeds[0].outcomes.hit_generative != seeds[1].outcomes.hit_generative).any()
    table = made_table(1)
    first = table.column("query_key").to_pylist().index(seeds[1].key_N[0])
    assert seeds[1].outcomes.probability[0] == table.column("probability")[first].as_py()
    assert (seeds[0].threshold, seeds[0].max_tokens) == (0.5, Settings().data.max_new_tokens)


def test_seeds_that_do_not_fit_each_other_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 evaluations of 1 trained models"):
        read_seeds([runs[0], runs[0]])
    fewer = made_run(tmp_path / "fewer", 7, made_table(7).slice(0, 100))
    with pytest.raises(DataError, match="share only 100"):
        read_seeds([runs[0], fewer])
    doubled = made_run(tmp_path / "doubled", 8, pa.concat_tables([made_table(8), made_table(8).slice(0, 3)]))
    with pytest.raises(DataError, match="3 of 1203 query keys occur twice"):
        read_seeds([doubled])
    (fewer / "summary.json").unlink()
    with pytest.raises(DataError, match="evaluate adapters that have a gate"):
        read_seeds([fewer])
    with pytest.raises(DataError, match="no run folder is given"):
        read_seeds([])


@pytest.mark.parametrize(
    ("interval", "bar", "verdict"),
    [
        (Interval(0.3, 0.1, 0.5), {"at_least": 0.1}, "holds"),
        (Interval(0.3, 0.1, 0.5), {"at_least": 0.2}, "holds partly"),
        (Interval(0.3, 0.1, 0.5), {"at_least": 0.4}, "does not hold here"),
        (Interval(0.3, 0.1, 0.5), {"at_most": 0.5}, "holds"),
        (Interval(0.3, 0.1, 0.5), {"at_most": 0.4}, "holds partly"),
        (Interval(0.3, 0.1, 0.5), {"at_most": 0.2}, "does not hold here"),
    ],
)
def test_the_interval_gives_the_verdict(interval: Interval, bar: dict[str, float], verdict: str) -> None:
    assert judged("x", "It works", interval, n_seeds=3, n_queries=10, **bar).verdict == verdict


def test_a_claim_has_one_bar() -> None:
    with pytest.raises(ValueError, match="one bar"):
        judged("x", "It works", Interval(0, 0, 0), n_seeds=1, n_queries=1)


@pytest.mark.parametrize(
    ("unit", "shown"),
    [
        ("points", "-1.2 [-2.0, +0.5] points"),
        ("percent", "-1.2 [-2.0, 0.5] %"),
        ("number", "-0.012 [-0.020, 0.005]"),
    ],
)
def test_numbers_are_shown_in_their_unit(unit: str, shown: str) -> None:
    assert number_of({"estimate": -0.012, "ci95": [-0.02, 0.005], "unit": unit}) == shown


def test_a_study_writes_its_numbers_its_claims_and_its_table(study: Path) -> None:
    claims = [judged("works", "It works", Interval(0.1, 0.0, 0.2), at_least=0.0, n_seeds=3, n_queries=10)]
    for value in (1, 2):  # the second time replaces the first
        write_study(study, {"value": np.float64(value)}, claims, lambda results: f"value {results['value']:.0f}")
    assert read_block(study / "README.md", "results") == "value 2\n"
    results = read_results(study)
    assert results["value"] == 2
    (claim,) = results["claims"]
    assert claim["study"] == "some_study"
    assert claim["command"] == "twn train experiment=nano_gate seed=1 && twn evaluate"


def test_a_page_without_markers_or_command_is_refused(study: Path) -> None:
    page = study / "README.md"
    with pytest.raises(DataError, match="<!-- claims -->"):
        replace_block(page, "claims", "table")
    page.write_text("no code")
    with pytest.raises(DataError, match="has no code block"):
        command_of(page)
    with pytest.raises(DataError, match="write the study's question"):
        write_study(study / "other", {}, [], str)


def test_gate_study_finds_what_was_made(runs: list[Path], study: Path) -> None:
    numbers, claims = gate_routing.collect(runs)
    verdicts = {claim.id: claim.verdict for claim in claims}
    assert set(verdicts) == set(gate_routing.CLAIMS)
    assert set(verdicts.values()) == {"holds"}
    routers, kinds = numbers["routers"], numbers["kinds"]
    assert set(kinds) == {"direct", "lookalike", "1 to 3 steps", "4 and more steps"}
    assert sum(kind["num_queries"] for kind in kinds.values()) == COUNT
    assert kinds["lookalike"]["always"]["mean"] < kinds["lookalike"]["never"]["mean"]
    assert routers["adaptive"]["adaptive_minus"]["mean"] == 0
    assert routers["random"]["think_rate"]["mean"] == pytest.approx(routers["adaptive"]["think_rate"]["mean"])
    assert numbers["curve"]["quality"][[0, -1]] == pytest.approx(
        [routers[n]["quality"]["mean"] for n in ("never", "always")]
    )
    gate_routing.draw_figures(numbers, study)
    assert {path.name for path in study.glob("*.svg")} == {"quality_tokens.svg", "think_rate.svg", "reliability.svg"}
    write_study(study, numbers, claims, gate_routing.table)
    text = read_block(study / "README.md", "results")
    assert f"{100 * routers['oracle']['quality']['mean']:.1f} [" in text
    assert all(len({line.count("|") for line in part.splitlines()}) == 1 for part in text.split("\n\n") if "|" in part)


def test_figures_are_the_same_for_the_same_numbers(runs: list[Path], tmp_path: Path) -> None:
    numbers, _ = gate_routing.collect(runs[:1])
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        gate_routing.draw_figures(numbers, tmp_path / name)
    first, second = (
        {path.name: path.read_text() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second


def test_token_study_calibrates_on_the_split_that_the_gate_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a gate stage leaves in its run folder is enough to calibrate again."""
    rng = np.random.default_rng(0)
    without, with_cot, loss, other_loss = (torch.from_numpy(rng.random(60)) for _ in range(4))
    split = LabelledSplit(torch.zeros(60, 2), loss, other_loss, without, with_cot, torch.arange(60))
    gate = RoutingGate(2, 4)
    split.save(tmp_path / "gate" / "gate_labels" / "calibration.safetensors")
    adapters = tmp_path / "gate" / "adapters"
    adapters.mkdir()
    torch.save(gate.state_dict(), adapters / "gate_mlp.pt")
    outcomes = deployed.calibration_outcomes(adapters)
    assert outcomes is not None
    assert (outcomes.probability == 0.5).all(), "an untrained gate"
    assert (outcomes.hit_discriminative == without.numpy()).all()
    assert (outcomes.hit_generative == with_cot.numpy()).all()
    assert (outcomes.tokens == np.arange(60)).all()

    seeds = read_seeds([made_run(tmp_path / "run", 0)])
    assert deployed.deployed_cells(seeds) == [], "no such run folder"
    monkeypatch.setattr(deployed, "calibration_outcomes", lambda _: seeds[0].outcomes)
    cells = deployed.deployed_cells(seeds)
    assert all(cell["num_calibration"] == COUNT for cell in cells)
    for cell in cells:
        value = cell["quality_loss"] if cell["target"] == "quality" else cell["token_share"]
        assert value is None or value["mean"] <= cell["level"] + 1e-9, "kept where it was calibrated"
    assert any(claim.id == "tokens, own split" for claim in token_budgets.claims_of([], cells, (1, COUNT)))


def test_token_study_sees_the_guarantee_kept_and_the_curve_break_it(
    runs: list[Path], study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_budgets, "DRAWS", 60)
    monkeypatch.setattr(token_budgets, "NUM_CALIBRATION", (50, 100, 2000))
    numbers, claims = token_budgets.collect(runs)
    cells = numbers["cells"]
    assert {cell["num_calibration"] for cell in cells} == {50, 100}, "2,000 of 1,200 queries cannot calibrate"
    infeasible = [cell for cell in cells if cell["measured"] is None]
    assert infeasible
    assert all(cell["rule"] != token_budgets.RULES[0] for cell in infeasible)
    for cell in cells:
        if cell["rule"] == "conformal" and cell["measured"]:
            assert cell["measured"]["promised"]["mean"] <= cell["level"]
    broken = [c for c in cells if c["rule"] == "read off the curve" and c["measured"]["promised"]["mean"] > c["level"]]
    assert any(cell["target"] == "quality" for cell in broken)
    verdicts = {claim.id: claim.verdict for claim in claims}
    assert verdicts["quality, conformal"] == verdicts["tokens, conformal"] == "holds"
    token_budgets.draw_coverage(cells, study / "coverage.svg")
    write_study(study, numbers, claims, token_budgets.table)
    assert "too few queries" in read_block(study / "README.md", "results")
    json.loads((study / "results.json").read_text())
