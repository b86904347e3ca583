"""The studies that read `twn probe` on made run folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.cot_probe import collect as cot_probe
from experiments.studies.probes import read_probes
from tests.support.study_runs import PROBE_QUALITY, write_cot_probe
from twn_lightning.errors import DataError
from twn_lightning.probe import COT_PROBE_FILE, MODE_MATRIX_FILE

COUNT = 300


def test_seeds_are_aligned_on_the_queries_they_share(tmp_path: Path) -> None:
    first = write_cot_probe(tmp_path / "0", 0, np.arange(COUNT), COUNT)
    second = write_cot_probe(tmp_path / "1", 1, np.arange(COUNT)[::-2], COUNT)
    seeds = read_probes([first, second], COT_PROBE_FILE)
    assert seeds.size == (2, COUNT // 2)
    assert seeds.shared == pytest.approx(0.75)
    assert seeds.columns[0]["query_key"].tolist() == seeds.columns[1]["query_key"].tolist()
    row_N = np.array([int(key.rpartition("/")[2]) for key in seeds.columns[0]["query_key"]])
    wanted = np.stack([np.random.default_rng(seed).random(COUNT)[row_N] < PROBE_QUALITY["own"] for seed in (0, 1)])
    np.testing.assert_array_equal(seeds.values("hit/own"), wanted)
    groups = seeds.groups()
    assert list(groups) == ["all", "direct", "lookalike", "1 to 3 steps", "4 and more steps"]
    assert sum(rows_N.sum() for name, rows_N in groups.items() if name != "all") == COUNT // 2


def test_probes_that_cannot_be_pooled(tmp_path: Path) -> None:
    first = write_cot_probe(tmp_path / "0", 0, np.arange(10), COUNT)
    with pytest.raises(DataError, match="2 probes of 1 trained models"):
        read_probes([first, first], COT_PROBE_FILE)
    with pytest.raises(DataError, match="share no query"):
        read_probes([first, write_cot_probe(tmp_path / "1", 1, np.arange(10, 20), COUNT)], COT_PROBE_FILE)
    with pytest.raises(DataError, match=f"no {MODE_MATRIX_FILE} in"):
        read_probes([first], MODE_MATRIX_FILE)


def test_what_the_cot_is_worth(tmp_path: Path) -> None:
    runs = [write_cot_probe(tmp_path / str(seed), seed, np.arange(COUNT), COUNT) for seed in range(3)]
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
