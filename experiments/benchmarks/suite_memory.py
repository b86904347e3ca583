"""Time and peak memory of a whole suite from cached embeddings: digests, cache, scores, intervals, predictions, files.

    python experiments/benchmarks/suite_memory.py
    python experiments/benchmarks/suite_memory.py --tasks 12 --dimensions 4096

A first pass fills the cache with vectors drawn from each item's text; the second (`only-cache`) is the measurement, in
a process of its own for each number of tasks. Writes experiments/benchmarks/suite_memory.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.benchmark import EvalTask, get_protocol, select_tasks
from twn_lightning.evaluation.benchmark_suite import run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.types import EmbeddingMode, Item, RankingItem, Side

PROTOCOL = get_protocol("vlm2vec", query_mode="discriminative")


@dataclass
class DrawnEncoder:
    """Unit vectors drawn from what an item says: no model, so that the suite alone is measured."""

    dimension: int
    name: str = "drawn"
    modes: tuple[EmbeddingMode, ...] = (EmbeddingMode.DISCRIMINATIVE,)

    def identity(self, side: Side, mode: EmbeddingMode) -> dict[str, Any]:
        return {"model": self.name, "dimension": self.dimension}

    def encode(
        self, items: Sequence[Item], side: Side, mode: EmbeddingMode, progress: Callable[[int], None] | None = None
    ) -> EncodedItems:
        seeds = [int.from_bytes(hashlib.sha256(item.text.encode()).digest()[:8], "big") for item in items]
        drawn = np.stack([np.random.default_rng(seed).standard_normal(self.dimension) for seed in seeds])
        return EncodedItems((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32))


def made_task(number: int, size: int) -> EvalTask:
    """A local task of `size` queries, each with a list of its own of the `size` candidates."""
    row = replace(select_tasks(["image"])[number % 36], num_queries=size, num_candidates=size)
    candidates = [Item(f"{number}/c{i}", "", f"candidate {i} of task {number}") for i in range(size)]
    queries = [Item(f"{number}/q{i}", "Find", f"query {i} of task {number}") for i in range(size)]
    keys = tuple(item.key for item in candidates)
    items = [RankingItem((keys[i],), None, (*keys[i:], *keys[:i])) for i in range(size)]
    return EvalTask(row, PROTOCOL, queries, candidates, items)


def worker(tasks: int, size: int, dimensions: int, folder: Path, policy: str) -> dict[str, float]:
    """One pass over the suite."""
    started = time.monotonic()
    encoder, cache = DrawnEncoder(dimensions), EmbeddingCache(folder / "cache", policy)
    for number in range(tasks):  # one at a time, as names from the registry are loaded
        run_suite(encoder, [made_task(number, size)], output=folder / policy, protocol=PROTOCOL, cache=cache)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(time.monotonic() - started, 2), "peak_memory_mib": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=36)
    parser.add_argument("--size", type=int, default=1000, help="queries, and candidates, of each task")
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--worker", nargs=2, metavar=("FOLDER", "POLICY"), help="one pass here, printed as JSON")
    args = parser.parse_args()
    if args.worker:
        folder, policy = args.worker
        print(json.dumps(worker(args.tasks, args.size, args.dimensions, Path(folder), policy)))
        return
    runs = {}
    for tasks in sorted({max(1, args.tasks // 6), args.tasks}):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, f"--tasks={tasks}", f"--size={args.size}"]
            command += [f"--dimensions={args.dimensions}", "--worker", folder]
            passes = [
                subprocess.run([*command, policy], check=True, capture_output=True, text=True).stdout
                for policy in ("only-missing", "only-cache")
            ]
        runs[str(tasks)] = dict(zip(("fill", "from_cache"), map(json.loads, passes), strict=True))
    result = {
        "command": f"python experiments/benchmarks/suite_memory.py --tasks={args.tasks} --size={args.size} "
        f"--dimensions={args.dimensions}",
        "machine": f"{platform.machine()}, numpy {np.__version__}",
        "by_number_of_tasks": runs,
    }
    Path(__file__).with_name("suite_memory.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
