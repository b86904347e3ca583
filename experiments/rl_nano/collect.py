"""Collect the seeds of the RL study: held-out reward and hit@1 before and after, paired intervals.

    python -m experiments.rl_nano.collect outputs/sweeps/nano_rl/TIME

Writes results.json and the table of README.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.studies.study import as_dict, judged, markdown_table, show, write_study
from twn_lightning.metrics import paired_bootstrap_difference, paired_bootstrap_over_seeds
from twn_lightning.run import RunFolder

FOLDER = Path(__file__).parent
VALUES = ("rl/held_out_reward", "val/hit@1_generative", "val/hit@1_discriminative", "val/cot_tokens")


def collect(sweep: Path) -> tuple[dict[str, Any], list[Any]]:
    """The numbers and the claim of the study, from the run folders of a sweep over seeds."""
    runs = [RunFolder(path.parent) for path in sorted(sweep.rglob("metrics.json"))]
    seeds, before, after = {}, [], []
    for run in runs:
        metrics = run.metrics()
        rewards = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)["twn"]["rewards"]
        before.append(np.asarray(rewards["before"], dtype=np.float64))
        after.append(np.asarray(rewards["after"], dtype=np.float64))
        seeds[str(run.settings().seed)] = {
            "held_out_gain": as_dict(paired_bootstrap_difference(after[-1], before[-1])),
            **{f"{name}/{when}": metrics[f"{name}/{when}"] for name in VALUES for when in ("before", "after")},
        }
    gain = paired_bootstrap_over_seeds(np.stack(after), np.stack(before))
    claim = judged(
        "reward",
        "Embedding-guided RL raises the held-out reward of a stage 1 that leaves errors",
        gain,
        at_least=0.0,
        unit="number",
        n_seeds=len(runs),
        n_queries=len(before[0]),
    )
    return {"seeds": seeds, "num_queries": len(before[0]), "held_out_gain": as_dict(gain)}, [claim]


def table(results: Mapping[str, Any]) -> str:
    """Every seed before and after, from results.json."""
    rows = []
    for seed, row in results["seeds"].items():
        reward, hit, without, tokens = ([row[f"{name}/{when}"] for when in ("before", "after")] for name in VALUES)
        rows.append(
            [
                seed,
                f"{reward[0]:.3f} -> {reward[1]:.3f}",
                show(row["held_out_gain"], scale=1, digits=3, sign="+"),
                f"{hit[0]:.3f} -> {hit[1]:.3f}",
                f"{without[0]:.3f} -> {without[1]:.3f}",
                f"{tokens[0]:.1f} -> {tokens[1]:.1f}",
            ]
        )
    rows.append(["all", "", show(results["held_out_gain"], scale=1, digits=3, sign="+"), "", "", ""])
    header = ["seed", "reward", "gain", "generative hit@1", "discriminative hit@1", "CoT tokens"]
    return markdown_table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    write_study(FOLDER, *collect(parser.parse_args().sweep), table)


if __name__ == "__main__":
    main()
