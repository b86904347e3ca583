"""Time and peak memory of scoring as many tasks as MMEB-V2 has image tasks, from embeddings: half of them with a list
of candidates of its own for each query, half over the whole corpus. Includes ranking for predictions.jsonl.

    python experiments/benchmarks/score.py
    python experiments/benchmarks/score.py --tasks 12 --dimensions 4096

Each number of tasks runs in a process of its own, whose peak memory is measured. Writes
experiments/benchmarks/score.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from twn_lightning.metrics import rank_candidates, score_embeddings
from twn_lightning.types import RankingItem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=36)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--dimensions", type=int, default=1024)
    parser.add_argument("--worker", action="store_true", help="score here and print one line of JSON")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(score(args.tasks, args.queries, args.candidates, args.dimensions)))
        return
    sizes = [f"--{name}={getattr(args, name)}" for name in ("queries", "candidates", "dimensions")]
    runs = {}
    for tasks in sorted({1, 2, max(1, args.tasks // 4), args.tasks}):
        command = [sys.executable, __file__, "--worker", f"--tasks={tasks}", *sizes]
        runs[str(tasks)] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    result = {
        "command": f"python experiments/benchmarks/score.py --tasks={args.tasks} {' '.join(sizes)}",
        "machine": f"{platform.machine()}, numpy {np.__version__}",
        "by_number_of_tasks": runs,
    }
    Path(__file__).with_name("score.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def score(tasks: int, num_queries: int, num_candidates: int, dimensions: int) -> dict[str, float]:
    """Wall seconds in scoring and in ranking, CPU seconds of both, and the process's peak memory."""
    seconds = {"score_seconds": 0.0, "rank_seconds": 0.0, "cpu_seconds": 0.0}
    for number in range(tasks):
        rng = np.random.default_rng(number)
        queries, candidates = unit(rng, num_queries, dimensions), unit(rng, num_candidates, dimensions)
        keys = [f"candidate {i}" for i in range(num_candidates)]
        items = [ranking_item(rng, keys, query, local=number % 2 == 0) for query in range(num_queries)]
        began, cpu_began = time.perf_counter(), time.process_time()
        score_embeddings(queries, candidates, keys, items)
        scored = time.perf_counter()
        for _ in rank_candidates(queries, candidates, keys, items):
            pass
        seconds["score_seconds"] += scored - began
        seconds["rank_seconds"] += time.perf_counter() - scored
        seconds["cpu_seconds"] += time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {name: round(value, 2) for name, value in seconds.items()} | {"peak_memory_mib": round(peak)}


def unit(rng: np.random.Generator, rows: int, dimensions: int) -> np.ndarray:
    """Random unit vectors."""
    vectors = rng.standard_normal((rows, dimensions), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ranking_item(rng: np.random.Generator, keys: list[str], query: int, local: bool) -> RankingItem:
    """A label, and for local ranking all keys in an order of the query's own."""
    order = tuple(keys[i] for i in rng.permutation(len(keys))) if local else None
    return RankingItem((keys[query % len(keys)],), candidate_keys=order)


if __name__ == "__main__":
    main()
