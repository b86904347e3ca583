"""Collect the seeds of the RL study into results.json: held-out reward and hit@1 before and after, paired intervals.

twn train experiment=demo_sft stage.max_steps=30 data.train_pairs=6000 data.val_pairs=300 paths.run_dir=outputs/rl_start
twn train --multirun experiment=nano_rl seed=0,1,2 adapters.init_from=outputs/rl_start/adapters data.val_pairs=1000 \\
    trainer.val_every_steps=60
python experiments/rl_nano/collect.py outputs/sweeps/nano_rl/TIME
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from twn_lightning.metrics import paired_bootstrap_difference
from twn_lightning.run import RunFolder

VALUES = ("rl/held_out_reward", "val/hit@1_generative", "val/hit@1_discriminative", "val/cot_tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    folder = parser.parse_args().sweep
    runs = [RunFolder(path.parent) for path in sorted(folder.rglob("metrics.json"))]
    seeds, before, after = {}, [], []
    for run in runs:
        metrics = run.metrics()
        rewards = torch.load(run.last_checkpoint, map_location="cpu", weights_only=True)["twn"]["rewards"]
        before.append(np.asarray(rewards["before"], dtype=np.float64))
        after.append(np.asarray(rewards["after"], dtype=np.float64))
        gain = paired_bootstrap_difference(after[-1], before[-1])
        seeds[str(run.settings().seed)] = {
            "held_out_gain": {"mean": gain.mean, "ci95": [gain.low, gain.high]},
            **{f"{name}/{when}": metrics[f"{name}/{when}"] for name in VALUES for when in ("before", "after")},
        }
    pooled = paired_bootstrap_difference(np.mean(after, 0), np.mean(before, 0))
    result = {
        "seeds": seeds,
        "num_queries": len(before[0]),
        "held_out_gain_mean_over_seeds": {"mean": pooled.mean, "ci95": [pooled.low, pooled.high]},
    }
    Path(__file__).with_name("results.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
