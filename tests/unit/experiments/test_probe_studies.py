"""The studies that read `twn probe` and the measured gradients of training runs, on made run folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.cot_probe import collect as cot_probe
from experiments.gradient_conflict import collect as gradient_conflict
from experiments.mode_matrix import collect as mode_matrix
from experiments.studies.probes import read_probes
from twn_lightning.errors import DataError
from twn_lightning.evaluation.cot_probe import BORROWING, CONDITIONS
from twn_lightning.evaluation.probes import write_columns
from twn_lightning.probe import COT_PROBE_FILE, MODE_MATRIX_FILE
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, InterfaceSettings, Settings

COUNT = 300
QUALITY = {"own": 0.95, "none": 0.5, "shuffled": 0.94, "other": 0.05, "teacher": 0.95}


def query_columns(rows: np.ndarray) -> dict[str, Any]:
    kind = np.array(["direct", "lookalike", "steps"], dtype=object)[rows % 3]
    return {
        "query_key": np.array([f"mmeb_nano/test/{row}" for row in rows], dtype=object),
        "task": np.full(len(rows), "made", dtype=object),
        "kind": kind,
        "steps": np.where(kind == "steps", 1 + rows % 8, 0),
    }


def write_cot_probe(folder: Path, seed: int, rows: np.ndarray) -> Path:
    """A probe of one training seed; a query's difficulty is the same in all conditions."""
    columns = query_columns(rows)
    difficulty = np.random.default_rng(seed).random(COUNT)[rows]
    for name in CONDITIONS:
        columns[f"hit/{name}"] = (difficulty < QUALITY.get(name, 0.3)).astype(float)
        columns[f"cosine/{name}"] = np.full(len(rows), 0.5)
        columns[f"tokens/{name}"] = np.full(len(rows), 9.0)
        columns[f"unchanged/{name}"] = np.full(len(rows), float(name == "own"))
    for name in BORROWING:
        columns[f"hit/{name}"][rows == rows[0]] = np.nan
        columns[f"follows/{name}"] = np.where(np.isnan(columns[f"hit/{name}"]), np.nan, 1.0)
    columns["cosine_of_two_queries"] = np.full(len(rows), 0.25)
    write_columns(columns, folder / COT_PROBE_FILE)
    run = RunFolder(folder).create(Settings(adapters=AdapterSettings(init_from=f"seed{seed}")))
    run.finish({"malformed_cot_rate": 0.0})
    return folder


def test_seeds_are_aligned_on_the_queries_they_share(tmp_path: Path) -> None:
    first = write_cot_probe(tmp_path / "0", 0, np.arange(COUNT))
    second = write_cot_probe(tmp_path / "1", 1, np.arange(COUNT)[::-2])
    seeds = read_probes([first, second], COT_PROBE_FILE)
    assert seeds.size == (2, COUNT // 2)
    assert seeds.shared == pytest.approx(0.75)
    assert seeds.columns[0]["query_key"].tolist() == seeds.columns[1]["query_key"].tolist()
    row_N = np.array([int(key.rpartition("/")[2]) for key in seeds.columns[0]["query_key"]])
    wanted = np.stack([np.random.default_rng(seed).random(COUNT)[row_N] < QUALITY["own"] for seed in (0, 1)])
    np.testing.assert_array_equal(seeds.values("hit/own"), wanted)
    groups = seeds.groups()
    assert list(groups) == ["all", "direct", "lookalike", "1 to 3 steps", "4 and more steps"]
    assert sum(rows_N.sum() for name, rows_N in groups.items() if name != "all") == COUNT // 2


def test_probes_that_cannot_be_pooled(tmp_path: Path) -> None:
    first = write_cot_probe(tmp_path / "0", 0, np.arange(10))
    with pytest.raises(DataError, match="2 probes of 1 trained models"):
        read_probes([first, first], COT_PROBE_FILE)
    with pytest.raises(DataError, match="share no query"):
        read_probes([first, write_cot_probe(tmp_path / "1", 1, np.arange(10, 20))], COT_PROBE_FILE)
    with pytest.raises(DataError, match=f"no {MODE_MATRIX_FILE} in"):
        read_probes([first], MODE_MATRIX_FILE)


def test_what_the_cot_is_worth(tmp_path: Path) -> None:
    runs = [write_cot_probe(tmp_path / str(seed), seed, np.arange(COUNT)) for seed in range(3)]
    seeds = read_probes(runs, COT_PROBE_FILE)
    numbers = cot_probe.condition_numbers(seeds, np.full(COUNT, True))
    assert numbers["own"]["minus_own"] == {"mean": 0.0, "ci95": [0.0, 0.0]}
    assert numbers["none"]["minus_own"]["mean"] == pytest.approx(-0.45, abs=0.05)
    assert numbers["other"]["num_queries"] == COUNT - 1
    assert numbers["other"]["follows"]["mean"] == 1
    verdicts = {claim.id: claim.verdict for claim in cot_probe.claims_of(seeds)}
    assert verdicts["own_minus_none"] == verdicts["own_minus_other"] == "holds"
    assert verdicts["own_minus_shuffled"] != "holds"
    groups = {name: cot_probe.condition_numbers(seeds, rows_N) for name, rows_N in seeds.groups().items()}
    table = cot_probe.table(
        {"n_seeds": 3, "n_queries": COUNT, "shared": 1.0, "cosine_of_two_queries": 0.25, "groups": groups}
    )
    assert f"{100 * numbers['other']['hit@1']['mean']:.1f} [" in table
    assert len(cot_probe.draw({"groups": groups}).axes[0].containers) >= 4


def test_the_matrix_of_a_model(tmp_path: Path) -> None:
    rows = np.arange(COUNT)
    for seed in range(2):
        columns = query_columns(rows) | {"tokens": np.full(COUNT, 6.0), "think": (rows % 2).astype(float)}
        for query in mode_matrix.MODES:
            for candidate in mode_matrix.MODES:
                right = query != "discriminative" and candidate != "generative"
                columns[f"hit/{query}/{candidate}"] = np.full(COUNT, float(right))
        write_columns(columns, tmp_path / str(seed) / MODE_MATRIX_FILE)
        run = RunFolder(tmp_path / str(seed)).create(Settings(adapters=AdapterSettings(init_from=f"seed{seed}")))
        sides = {"candidates": 10, "tokens": 7.0, "malformed_cot_rate": 0.5, "think_rate": 0.0}
        run.finish({"candidates": {"one": sides, "other": {**sides, "candidates": 30, "malformed_cot_rate": 0.1}}})
    seeds = read_probes([tmp_path / "0", tmp_path / "1"], MODE_MATRIX_FILE)
    model = mode_matrix.model_numbers(seeds)
    assert model["groups"]["all"]["generative/discriminative"]["mean"] == 1
    assert model["groups"]["all"]["generative/generative"]["mean"] == 0
    assert model["candidates"]["malformed_cot_rate"] == pytest.approx((10 * 0.5 + 30 * 0.1) / 40)
    crossed, thinking = mode_matrix.claims_of("made", seeds)
    assert (crossed.verdict, crossed.estimate) == ("holds", 1)
    assert (thinking.verdict, thinking.estimate) == ("does not hold here", -1)
    assert "| generative | 100.0 [100.0, 100.0] | 0.0 [0.0, 0.0] |" in mode_matrix.table({"models": {"made": model}})


def training_run(folder: Path, interface: str, cosines: list[float] | None, steps: tuple[int, ...]) -> RunFolder:
    settings = Settings(interface=InterfaceSettings(name=interface))  # type: ignore[arg-type]
    run = RunFolder(folder).create(replace(settings, seed=int(folder.name[-1])))
    for index, step in enumerate(steps):
        values = {"conflict/norm_cot": 2.0, "conflict/norm_contrastive": 0.0 if cosines is None else 1.0}
        if cosines is not None:
            values |= {"conflict/cosine": cosines[index], "conflict/cosine_layer_0": cosines[index] / 2}
        run.log(step, values)
        run.log(step, {"train/loss_cot": 1.0})
    return run


def test_the_cosine_over_training(tmp_path: Path) -> None:
    steps = (1, 10, 20)
    joint = [
        training_run(tmp_path / f"joint{seed}", "kv_joint", cosines, steps)
        for seed, cosines in enumerate(([-0.1, -0.2, -0.3], [-0.3, -0.2, -0.1]))
    ]
    model = gradient_conflict.model_numbers(joint)
    assert model["steps"] == [1, 10, 20]
    assert model["cosine"]["mean"] == pytest.approx(-0.2)
    assert model["share_negative"]["mean"] == 1
    assert model["phases"]["last third"]["mean"] == pytest.approx(-0.2)
    assert model["layers"]["layer_0"]["mean"] == pytest.approx(-0.1)
    assert model["cosine_by_step"] == pytest.approx([-0.2, -0.2, -0.2])
    detached = gradient_conflict.model_numbers([training_run(tmp_path / "detached0", "kv_detached", None, steps)])
    assert detached["cosine"] is None
    assert gradient_conflict.model_of(joint[0]) == "kv_joint, dual"
    models = {"kv_joint, dual": model, "kv_detached, dual": detached}
    (claim,) = gradient_conflict.claims_of(models)
    assert claim.verdict == "holds"
    table = gradient_conflict.table({"models": models})
    assert "| kv_joint, dual | -0.200 [" in table
    assert "none: a gradient is 0" in table
    assert len(gradient_conflict.draw({"models": models}).axes[0].lines) == 2  # one model, and the zero


def test_runs_that_measured_nothing_or_elsewhere(tmp_path: Path) -> None:
    plain = RunFolder(tmp_path / "plain0").create(Settings())
    plain.log(1, {"train/loss_cot": 1.0})
    with pytest.raises(DataError, match="conflict_every_steps above 0"):
        gradient_conflict.model_numbers([plain])
    runs = [
        training_run(tmp_path / "a0", "kv_joint", [0.1, 0.1], (1, 10)),
        training_run(tmp_path / "b1", "kv_joint", [0.1, 0.1], (1, 20)),
    ]
    with pytest.raises(DataError, match="measured at different steps"):
        gradient_conflict.model_numbers(runs)
