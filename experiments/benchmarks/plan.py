"""How far `twn plan` is off: its formulas with rates measured here on nano, against steps of other configurations.

    python -m experiments.benchmarks.plan                  # nano, micro and a mid-size random model on one CPU thread
    python -m experiments.benchmarks.plan --rounds 5

Reading, training, vision and decoding are timed apart on nano at three batch sizes. A least-squares fit gives each a
share of the matmul rate and a fixed cost per layer, in the form of planning/constants.yaml. With them steps of all
three stages are predicted: other batches, chunks, lengths and models. Times are the process's own seconds on one
thread, which other programs disturb less than the clock; memory is what its allocator held. Writes plan.json
beside this file, or in the folder OUT.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.pairs import write_result
from experiments.benchmarks.plan_cases import (
    CASES,
    Case,
    build_backbone,
    cpu_seconds,
    first_batch,
    matmul_rate,
    measure,
)
from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.interface import cot_targets
from twn_lightning.backbone.vision import visual_inputs
from twn_lightning.objectives import cot_cross_entropy
from twn_lightning.planning import Device, ModelShape, device_named, plan_stage
from twn_lightning.planning.constants import GIB, Rate
from twn_lightning.planning.work import Costs, Kind, Load
from twn_lightning.settings import SFTSettings

CALIBRATION_ROWS = (8, 32, 96)
STEP_PARTS = ("activations", "caches")
"""Memory that is held during a step only."""


def fitted(loads: list[Load], seconds: list[float], rate: float) -> Rate:
    """Share of the matmul rate, at most 1, and seconds per layer, with the least relative errors."""
    columns = np.array([[load.operations / rate, load.layers] for load in loads]) / np.array(seconds)[:, None]
    inverse_share, per_layer = np.linalg.lstsq(columns, np.ones(len(seconds)), rcond=None)[0]
    if per_layer < 0:
        inverse_share, per_layer = columns[:, 0].sum() / (columns[:, 0] ** 2).sum(), 0.0
    if inverse_share < 1:
        rest = 1 - columns[:, 0]
        inverse_share, per_layer = 1.0, max((rest * columns[:, 1]).sum() / (columns[:, 1] ** 2).sum(), 0.0)
    return Rate(float(1 / inverse_share), float(per_layer))


def calibrated(rounds: int) -> Device:
    """The CPU's constants, from the parts of stages on nano."""
    case = Case("nano", SFTSettings(batch_size=max(CALIBRATION_ROWS)))
    backbone = build_backbone(case)
    rate = matmul_rate()
    shape = ModelShape.from_config(backbone.model.config)
    costs = Costs(shape, case.settings.adapters.reasoning.r, 4, 4)
    whole = first_batch(case, backbone)
    loads: dict[Kind, list[Load]] = {kind: [] for kind in ("read", "train", "vision", "decode")}
    seconds: dict[Kind, list[float]] = {kind: [] for kind in loads}
    for rows in CALIBRATION_ROWS:
        assert whole.query_cots is not None
        prompts, cots = whole.queries.select(list(range(rows))), whole.query_cots.select(list(range(rows)))
        width = prompts.input_ids_BL.shape[1]
        columns = width + cots.ids_BT.shape[1]
        visual = float((prompts.mm_token_type_ids_BL > 0).sum())

        def learn(prompts: Any = prompts, cots: Any = cots) -> None:
            state = backbone.reason(prompts, cots, want_logits=True)
            assert state.cot_logits_BTV is not None
            cot_cross_entropy(state.cot_logits_BTV, cot_targets(cots, backbone.processor.eot_id)).backward()

        model: Any = backbone.model
        with torch.no_grad():
            state = backbone.reason(prompts)
            decoded = decode_cots(backbone, state, max_new_tokens=64).cots.lengths_B.float()
            look = statistics.median(cpu_seconds(partial(visual_inputs, model.model.visual, prompts), rounds))
            read = statistics.median(cpu_seconds(partial(backbone.reason, prompts, cots), rounds))
            write = statistics.median(cpu_seconds(partial(decode_cots, backbone, state, max_new_tokens=64), rounds))
        backbone.train_only("reasoning")
        train = statistics.median(cpu_seconds(learn, rounds))
        found: dict[Kind, tuple[Load, float]] = {
            "vision": (costs.see(visual, 1, visual / rows)["vision"], look),
            "read": (costs.read(rows * columns, columns, 1)["read"], read - look),
            "train": (costs.train(rows * columns, columns, 1, rows * cots.ids_BT.shape[1])["train"], train - look),
            "decode": (costs.decode(rows, width, float(decoded.mean()), float(decoded.max()))["decode"], write),
        }
        for kind, (load, value) in found.items():
            loads[kind].append(load)
            seconds[kind].append(value)
    rates = {kind: fitted(loads[kind], seconds[kind], rate) for kind in loads}
    queries = [pair.query for pair in whole.pairs]
    prepare = statistics.median(cpu_seconds(partial(backbone.processor, queries), rounds)) / len(queries)
    return replace(device_named("cpu"), matmul_tflops=rate / 1e12, rates=rates, seconds_per_item=prepare)


def compare(case: Case, device: Device, rounds: int) -> dict[str, Any]:
    """Predicted and measured values of one configuration."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(case, folder, rounds)
    plan = plan_stage(ModelShape.from_config(found.shape), case.settings, device, found.items)
    seconds = statistics.median(found.seconds)
    record: dict[str, Any] = {
        "model": case.model,
        "seconds_predicted": plan.seconds_per_step,
        "seconds_measured": seconds,
        "seconds_error": plan.seconds_per_step / seconds - 1,
        "rounds": found.seconds,
    }
    if found.peak_bytes:
        predicted = sum(plan.memory.parts[part] for part in STEP_PARTS)
        record |= {
            "gib_predicted": predicted / GIB,
            "gib_measured": found.peak_bytes / GIB,
            "gib_error": predicted / found.peak_bytes - 1,
        }
    return record


def summary(cases: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Median and largest absolute errors."""
    found = {}
    for quantity in ("seconds_error", "gib_error"):
        errors = [abs(case[quantity]) for case in cases.values() if quantity in case]
        if errors:
            found |= {f"{quantity}_median": statistics.median(errors), f"{quantity}_largest": max(errors)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = calibrated(args.rounds)
    rates = {kind: asdict(rate) for kind, rate in device.rates.items()}
    constants = {
        "matmul_tflops": device.matmul_tflops,
        "rates": rates,
        "seconds_per_item": device.seconds_per_item,
    }
    print(json.dumps(constants, indent=2), flush=True)
    found = {}
    for name in args.cases:
        found[name] = compare(CASES[name], device, args.rounds)
        print(name, json.dumps(found[name]), flush=True)
    write_result("plan", {"errors": summary(found), "constants": constants, "cases": found}, args.out)


if __name__ == "__main__":
    main()
