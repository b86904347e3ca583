"""Queries a second under never, adaptive and always, on the packaged nano adapters: runs taken in turn, medians.

    make bench                               # python experiments/benchmarks/encode.py
    make bench ARGS="--queries 200 --rounds 3"

Writes experiments/benchmarks/encode.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from twn_lightning.backbone.encoding import encode
from twn_lightning.data.sources import get_source
from twn_lightning.evaluate import load_trained
from twn_lightning.settings import Settings
from twn_lightning.types import EmbeddingMode

MODES = {
    "never": EmbeddingMode.DISCRIMINATIVE,
    "adaptive": EmbeddingMode.ADAPTIVE,
    "always": EmbeddingMode.GENERATIVE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=200)
    args = parser.parse_args()
    settings = Settings()
    backbone, gate, threshold = load_trained(settings)
    pairs = get_source("nano", settings.data).pairs("test", args.queries)
    items = [pair.query for pair in pairs]
    seconds: dict[str, list[float]] = {name: [] for name in MODES}
    tokens: dict[str, float] = {}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, mode in MODES.items():
            began = time.perf_counter()
            encoded = encode(backbone, items, mode, gate=gate, threshold=threshold, batch_size=args.batch_size)
            seconds[name].append(time.perf_counter() - began)
            tokens[name] = float(encoded.tokens_N.float().mean())
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    result = {
        "command": f"make bench ARGS='--queries {args.queries} --rounds {args.rounds} --batch-size {args.batch_size}'",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "queries_per_second": {name: round(args.queries / value, 1) for name, value in medians.items()},
        "tokens_per_query": {name: round(value, 2) for name, value in tokens.items()},
        "adaptive_over_always": round(medians["always"] / medians["adaptive"], 2),
        "seconds": {name: [round(v, 3) for v in values[1:]] for name, values in seconds.items()},
    }
    Path(__file__).with_name("encode.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
