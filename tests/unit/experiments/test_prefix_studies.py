"""The studies beyond the paper, on made probes and evaluations whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments.distillation import collect as distillation
from experiments.early_exit import collect as early_exit
from experiments.early_exit.figures import draw_quality_tokens
from experiments.graded_thinking import collect as graded_thinking
from experiments.studies.prefixes import read_prefix_runs
from twn_lightning.errors import DataError
from twn_lightning.evaluation.prefix_outcomes import PrefixOutcomes
from twn_lightning.json_object import write_json
from twn_lightning.reporting.decisions import COLUMNS
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, GateSettings, Settings

CUTS = np.array([0, 4, 8, 12, 16, 20, 24])
COUNTS = {"gate": 600, "calibration": 300, "test": 500}


def made_outcomes(count: int, settles: bool, model_seed: int) -> PrefixOutcomes:
    """A third of the queries is right at once, a third after 8 tokens, a third after all 24; features say which.

    Where embeddings settle, they stand still from then on; else they never do, and prefixes embed badly.
    """
    queries = np.random.default_rng(count)
    need = queries.choice([0, 8, 24], count)
    rng = np.random.default_rng(model_seed)
    right = (need[:, None] <= CUTS) & (settles | (CUTS == 0) | (CUTS == 24))
    hits = (right & (rng.random(count) < 0.95)[:, None]).astype(float)
    moved = np.where(settles & (need[:, None] < CUTS), 1e-4, 0.5)
    features = rng.normal(size=(count, 4)).astype(np.float32)
    features[np.arange(count), np.searchsorted([0, 8, 24], need)] += 6
    keys = np.array([f"made/{row}/steps" for row in range(count)])
    return PrefixOutcomes(
        query_key=keys,
        task=np.full(count, "made"),
        kind=np.full(count, "steps"),
        steps=need,
        cuts_P=CUTS,
        hit_NP=hits,
        loss_NP=5 * (1 - hits),
        moved_NP=np.where(CUTS == 0, 0.0, moved),
        tokens_N=np.full(count, 24),
        probability_N=np.where(need > 0, 0.9, 0.1) + rng.uniform(-0.05, 0.05, count),
        features_NF=features,
    )


def made_probe(folder: Path, seed: int, settles: bool, change: Any = lambda outcomes: outcomes) -> Path:
    name = f"outputs/gate/{folder.name}/adapters"
    settings = Settings(seed=seed, adapters=AdapterSettings(init_from=name), gate=GateSettings(hidden=16))
    run = RunFolder(folder)
    run.create(settings)
    for split, count in COUNTS.items():
        change(made_outcomes(count, settles, seed)).write(folder / "prefixes" / f"{split}.npz")
    run.finish({"threshold": 0.5})
    return folder


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    root = tmp_path_factory.mktemp("probes")
    return {
        arm: [made_probe(root / f"{arm}_{seed}", seed, arm == "anytime") for seed in range(2)]
        for arm in ("plain", "anytime")
    }


def test_leaving_early_pays_where_embeddings_settle(arms: dict[str, list[Path]], tmp_path: Path) -> None:
    numbers, claims = early_exit.collect(arms["plain"], arms["anytime"])
    verdicts = {claim.id: claim.verdict for claim in claims if not claim.id.startswith("plain")}
    assert verdicts == {
        "anytime_keeps_quality": "holds",
        "anytime_saves_tokens": "holds",
        "anytime_exit_above_gate": "holds",
        "anytime_both_above_gate": "holds",
        "cutting_costs_nothing": "holds",
        "cutting_above_plain_gate": "holds",
    }
    shares = {name: row["token_share"]["mean"] for name, row in numbers["arms"]["anytime"]["systems"].items()}
    assert shares["early exit"] == pytest.approx((4 + 12 + 24) / 3 / 24, abs=0.05)
    assert shares["gate + early exit"] == pytest.approx((12 + 24) / 3 / 24, abs=0.05)
    assert shares["gate, tokens of early exit"] == pytest.approx(shares["early exit"], abs=0.01)
    assert shares["gate, tokens of gate + early exit"] == pytest.approx(shares["gate + early exit"], abs=0.01)
    draw_quality_tokens(numbers, tmp_path / "figure.svg")
    assert "anytime training" in (tmp_path / "figure.svg").read_text()


def test_without_a_rule_that_leaves_early_exit_is_thinking_in_full(arms: dict[str, list[Path]], tmp_path: Path) -> None:
    """Of plain adapters alone, whose embeddings never settle: nothing is lost, and a difference of 0 is not above."""
    numbers, claims = early_exit.collect(arms["plain"])
    assert {claim.id: (claim.verdict, claim.n_seeds, claim.n_queries) for claim in claims} == {
        "plain_keeps_quality": ("holds", 2, 500),
        "plain_saves_tokens": ("does not hold here", 2, 500),
        "plain_exit_above_gate": ("does not hold here", 2, 500),
        "plain_both_above_gate": ("does not hold here", 2, 500),
    }
    never = [(0.0, 1)] * 2
    stopped = numbers["arms"]["plain"]["stopped_after"]["quality"]
    assert stopped[[0, 1, -1]] == pytest.approx([0.95 / 3, 0, 0.95], abs=0.05)
    assert numbers["arms"]["plain"]["rules"] == {"early exit": never, "gate + early exit": never}
    assert "plain, early exit: never, never;" in early_exit.table(numbers)
    draw_quality_tokens(numbers, tmp_path / "figure.svg")
    figure = (tmp_path / "figure.svg").read_text()
    assert "plain training" in figure
    assert "anytime" not in figure


def test_a_short_budget_pays_where_it_is_enough(
    arms: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graded_thinking, "PRICES", (0.5,))
    numbers, claims = graded_thinking.collect(arms["anytime"])
    assert [claim.verdict for claim in claims] == ["holds", "holds"]
    (point,) = [point for point in numbers["points"] if point["short"] == 8]
    assert point["choices"] == pytest.approx({"none": 1 / 3, "short": 1 / 3, "full": 1 / 3}, abs=0.06)
    assert point["token_share"]["mean"] == pytest.approx((8 + 24) / 3 / 24, abs=0.04)
    assert point["difference"]["mean"] > 0.1
    graded_thinking.draw(numbers, tmp_path / "figure.svg")
    assert "three budgets, short = 8" in (tmp_path / "figure.svg").read_text()
    assert "| 0.5 | 8 |" in graded_thinking.table(numbers)


def test_probes_that_do_not_fit_each_other_are_refused(arms: dict[str, list[Path]], tmp_path: Path) -> None:
    first = arms["plain"][0]
    with pytest.raises(DataError, match="2 probes of 1 trained models"):
        read_prefix_runs([first, first])
    other = made_probe(tmp_path / "other", 5, True, lambda found: replace(found, cuts_P=found.cuts_P * 2))
    with pytest.raises(DataError, match="differ in cuts_P"):
        read_prefix_runs([first, other])
    ungated = made_probe(
        tmp_path / "ungated", 5, True, lambda found: replace(found, probability_N=np.full(len(found), np.nan))
    )
    with pytest.raises(DataError, match="have no gate"):
        read_prefix_runs([ungated])
    with pytest.raises(DataError, match="is no run folder of `twn probe prefixes`"):
        read_prefix_runs([tmp_path])
    with pytest.raises(DataError, match="no run folder is given"):
        read_prefix_runs([])
    with pytest.raises(DataError, match="1 plain and 2 anytime probes"):
        early_exit.collect(arms["plain"][:1], arms["anytime"])


def made_evaluation(folder: Path, seed: int, never: float) -> Path:
    """300 queries that need a CoT, of which `never` are right without one, and 300 that do not."""
    rng = np.random.default_rng(seed)
    steps = np.repeat([0, 3], 300)
    hit_d = np.where(steps == 0, 1.0, (np.arange(600) % 100 < 100 * never).astype(float))
    probability = np.where(hit_d > 0, 0.1, 0.9) + rng.uniform(-0.05, 0.05, 600)
    columns: dict[str, Any] = {
        "query_key": [f"made/{row}" for row in range(600)],
        "kind": np.where(steps == 0, "direct", "steps"),
        "steps": steps,
        "probability": probability,
        "think": probability > 0.5,
        "hit_discriminative": hit_d,
        "hit_generative": np.ones(600),
        "gain": 1 - hit_d,
        "tokens": np.full(600, 10),
        "query_length": np.full(600, 5),
        "margin": rng.random(600),
        "malformed": np.zeros(600, dtype=bool),
        "task": np.full(600, "made"),
    }
    rest = {name: ["" if "loss" not in name else 0.0] * 600 for name in COLUMNS if name not in columns}
    RunFolder(folder).create(Settings(adapters=AdapterSettings(init_from=f"{folder.name}/adapters")))
    pq.write_table(pa.table({**columns, **rest}), folder / "gate_decisions.parquet")
    write_json(folder / "summary.json", {"threshold": 0.5})
    return folder


def test_distillation_pays_where_fewer_queries_need_a_cot(tmp_path: Path) -> None:
    plain, distilled = (
        [made_evaluation(tmp_path / f"{arm}_{seed}", seed, never) for seed in range(2)]
        for arm, never in (("plain", 0.1), ("distilled", 0.4))
    )
    numbers, claims = distillation.collect(plain, distilled)
    assert [claim.verdict for claim in claims] == ["holds"] * 3
    assert numbers["modes"]["never"]["difference"]["mean"] == pytest.approx(0.15)
    assert numbers["never_by_kind"]["direct"]["difference"]["mean"] == 0
    assert numbers["modes"]["adaptive"]["tokens_distilled"]["mean"] == pytest.approx(3.0)
    assert numbers["adaptive_at_equal_tokens"]["tokens_plain"]["mean"] == pytest.approx(3.0)
    assert "| never, steps | 10.0 [" in distillation.table(numbers)
    with pytest.raises(DataError, match="1 plain and 2 distilled evaluations must pair up"):
        distillation.collect(plain[:1], distilled)
