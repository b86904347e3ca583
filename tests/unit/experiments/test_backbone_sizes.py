"""The study of both backbone sizes, on made runs of the studies that it repeats."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from experiments.backbone_sizes import collect as backbone_sizes
from experiments.cot_probe import collect as cot_probe
from experiments.gate_routing import collect as gate_routing
from experiments.interface import collect as interface
from experiments.studies.probes import read_probes
from tests.support.study_runs import decisions, write_cot_probe, write_evaluation
from tests.support.variant_models import COUNT, SEEDS, interface_models, is_rectangular
from twn_lightning.errors import DataError
from twn_lightning.json_object import write_json
from twn_lightning.probe import COT_PROBE_FILE

Runs = dict[str, list[Path]]


def runs_of(root: Path, model: str, *, gate_errs: bool) -> Runs:
    """The runs that three studies need, of one backbone."""
    runs: Runs = {"interface_models": interface_models(root / "interface", model), "gate_runs": [], "cot_runs": []}
    for seed in SEEDS:
        table = decisions(seed, COUNT)
        if gate_errs:
            column = table.column_names.index("probability")
            table = table.set_column(column, "probability", pa.array(1 - table.column(column).to_numpy()))
        folder = root / "gate" / str(seed)
        runs["gate_runs"].append(write_evaluation(folder, f"{folder}/adapters", table, model))
        runs["cot_runs"].append(write_cot_probe(root / "cot" / str(seed), seed, np.arange(COUNT), COUNT, model))
    return runs


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    """Both backbones alike, but for micro's gate, which thinks exactly where nano's does not."""
    root = tmp_path_factory.mktemp("sizes")
    return {model: runs_of(root / model, model, gate_errs=model == "micro") for model in ("nano", "micro")}


def collect_nano(root: Path, runs: Runs) -> dict[str, dict[str, Any]]:
    """Nano's studies, collected into results.json files and read back."""
    studies = {
        "interface": interface.collect(runs["interface_models"]),
        "gate_routing": gate_routing.collect(runs["gate_runs"]),
        "cot_probe": ({}, cot_probe.claims_of(read_probes(runs["cot_runs"], COT_PROBE_FILE))),
    }
    for name, (numbers, claims) in studies.items():
        write_json(root / name / "results.json", {"claims": [asdict(claim) for claim in claims], **numbers})
    return backbone_sizes.nano_results(root)


def test_both_sizes_are_compared_claim_by_claim(tmp_path: Path, sizes: dict[str, Runs]) -> None:
    nano = collect_nano(tmp_path, sizes["nano"])
    results, claims = backbone_sizes.collect(nano, **sizes["micro"])
    compared = {entry["id"]: entry for entry in results["compared"]}
    assert len(compared) == sum(len(study["claims"]) for study in nano.values())
    assert [claim.id for claim in claims] == list(backbone_sizes.HEADLINES)
    assert all(claim.claim.startswith("On micro: ") for claim in claims)
    alike = compared["cot_probe/own_minus_none"]
    assert alike["same_side"]
    assert alike["nano"]["estimate"] == alike["micro"]["estimate"]
    other = compared["gate_routing/above_random"]
    assert (other["nano"]["verdict"], other["micro"]["verdict"]) == ("holds", "does not hold here")
    assert not other["same_side"]
    assert not other["same_sign"]
    text = backbone_sizes.table(results)
    assert is_rectangular(text)
    assert "nano: language model of 1,259,040 parameters, 584,960 added; micro: language model of" in text
    assert f"{sum(entry['same_side'] for entry in compared.values())} of {len(compared)} claims" in text
    figure = backbone_sizes.draw(results["compared"])
    in_points = [id for id, entry in compared.items() if entry["nano"]["unit"] == "points"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == in_points


def test_the_interface_may_be_left_out(tmp_path: Path, sizes: dict[str, Runs]) -> None:
    nano = collect_nano(tmp_path, sizes["nano"])
    whole, _ = backbone_sizes.collect(nano, **sizes["micro"])
    results, claims = backbone_sizes.collect(nano, **{**sizes["micro"], "interface_models": []})
    left = [entry for entry in whole["compared"] if entry["study"] != "interface"]
    assert 0 < len(left) < len(whole["compared"])
    assert results == {**whole, "compared": left}
    assert [claim.id for claim in claims] == [id for id in backbone_sizes.HEADLINES if not id.startswith("interface")]


def test_what_cannot_be_compared_across_sizes(tmp_path: Path, sizes: dict[str, Runs]) -> None:
    with pytest.raises(DataError, match=r"interface, gate_routing, cot_probe: no results\.json"):
        backbone_sizes.nano_results(tmp_path)
    with pytest.raises(DataError, match=r"not made with model\.name=micro: .*gate/0 \(nano\), .*gate/1 \(nano\)"):
        backbone_sizes.collect({}, **{**sizes["micro"], "gate_runs": sizes["nano"]["gate_runs"]})
