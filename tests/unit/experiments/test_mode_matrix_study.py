"""The mode-matrix study, on made probes of three models whose hits and tokens are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.mode_matrix import collect as study
from tests.support.study_runs import probe_queries
from twn_lightning.errors import DataError
from twn_lightning.evaluation.probes import write_columns
from twn_lightning.probe import MODE_MATRIX_FILE
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, Settings

COUNT = 120
SHOWN = np.arange(COUNT) % 2 == 0
"""Every other query has candidates that can think."""
HIT = {"discriminative": 0.5, "adaptive": 0.8, "generative": 0.9}
TOKENS = {"discriminative": 0.0, "adaptive": 2.0, "generative": 4.0}


def write_probe(folder: Path, model: str, seed: int, rows: np.ndarray | None = None) -> Path:
    """Candidates that think are worth as much as queries that do; without the cross-mode terms mixed cells lose .2."""
    rows = np.arange(COUNT) if rows is None else rows
    columns = probe_queries(rows) | {"think": (rows % 3 == 0).astype(float)}
    difficulty = np.random.default_rng(seed).random(COUNT)[rows]
    for mode in study.MODES:
        columns[f"tokens/{mode}"] = np.full(len(rows), TOKENS[mode])
        columns[f"candidate_tokens/{mode}"] = np.where(SHOWN[rows], TOKENS[mode], 0)
        for other in study.MODES:
            quality = (HIT[mode] + HIT[other]) / 2 - 0.2 * (model == "both_no_cross" and mode != other)
            columns[f"hit/{mode}/{other}"] = (difficulty < quality).astype(float)
    path = folder / f"{model}{seed}"
    write_columns(columns, path / MODE_MATRIX_FILE)
    adapters = AdapterSettings(init_from=f"{model}/{seed}")
    words = {"candidates": 90, "tokens": 0.0, "malformed_cot_rate": 0.0, "think_rate": 0.0}
    shown = {"candidates": 10, "tokens": 4.0, "malformed_cot_rate": 0.1, "think_rate": 0.6}
    more = {"candidates": 30, "tokens": 4.0, "malformed_cot_rate": 0.5, "think_rate": 0.2}
    RunFolder(path).create(Settings(name=model, seed=seed, adapters=adapters)).finish(
        {"gate_trained_on": "query", "candidates": {"words": words, "shown": shown, "more": more}}
    )
    return path


def test_the_study_finds_what_was_made(tmp_path: Path) -> None:
    runs = [write_probe(tmp_path, model, seed) for seed in (1, 0) for model in study.MODELS]
    models = study.read_models(runs)
    assert list(models) == list(study.MODELS)
    verdicts = {claim.id: claim.verdict for claim in study.claims_of(models)}
    assert verdicts == dict.fromkeys(study.CLAIMS, "holds") | {"mixed_cell": "does not hold here"}
    for claim in study.claims_of(models):
        assert (claim.n_seeds, claim.n_queries) == (2, SHOWN.sum())
    cross = next(claim for claim in study.claims_of(models) if claim.id == "cross_query_generative")
    difficulty = np.stack([np.random.default_rng(seed).random(COUNT)[SHOWN] for seed in (0, 1)])
    assert cross.estimate == pytest.approx(np.mean((difficulty >= 0.5) & (difficulty < 0.7)))

    results = {"models": {name: study.model_numbers(model) for name, model in models.items()}}
    both = results["models"]["both"]
    assert both["think_rate"]["candidates"] == pytest.approx((10 * 0.6 + 30 * 0.2) / 40)
    assert both["malformed_candidate_cots"] == pytest.approx((10 * 0.1 + 30 * 0.5) / 40)
    joint = both["shown"]["adaptive/adaptive"]
    assert joint["tokens_at_reuse"] == pytest.approx({"1": 4.0, "10": 2.2, "100": 2.02})
    assert both["all"]["adaptive/adaptive"]["tokens_per_candidate"] == pytest.approx(1.0)

    text = study.table(results)
    assert "2 seeds x 60 queries whose candidates are shown (of 120" in text
    row = next(line for line in text.splitlines() if line.startswith("| both sides think | adaptive, adaptive |"))
    assert row.endswith("| 2.0 | 2.0 | 4.0 | 2.2 | 2.0 |")
    assert all(len({line.count("|") for line in part.splitlines()}) == 1 for part in text.split("\n\n") if "|" in part)
    assert len(study.draw(results).axes[0].containers) >= len(study.MODELS)


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    runs = [write_probe(tmp_path, model, 0) for model in study.MODELS]
    with pytest.raises(DataError, match="named both, query; the models are query, both, both_no_cross"):
        study.read_models(runs[:2])
    with pytest.raises(DataError, match="other seeds each"):
        study.read_models([*runs, write_probe(tmp_path, "both", 1)])
    fewer = write_probe(tmp_path / "fewer", "query", 0, np.arange(10))
    with pytest.raises(DataError, match=r"probed on other queries \(\{'query': 10, 'both': 120"):
        study.read_models([fewer, *runs[1:]])
