"""MMEB-nano evaluated with an empty embedding cache, and again with the cache that this leaves, in one process.

    python -m experiments.benchmarks.suite
    python -m experiments.benchmarks.suite --queries 220 --rounds 1

Both ways do what `twn evaluate task=mmeb_nano/all` does, into a new run folder each time: load the packaged adapters
and the tasks, encode, score under every router, bootstrap, write every file. The suite's own files, which are drawn
once on a machine, are there before the clock starts. Writes suite_cpu.json or suite_cuda.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.pairs import in_turn, speedup, write_result
from twn_lightning.config import load_settings
from twn_lightning.evaluate import evaluate_nano_tasks
from twn_lightning.run import RunFolder

COLD, WARM = "cold", "warm"
BAR = 20.0


class Suite:
    """Evaluations of one suite, each in a run folder of its own.

    Args:
        folder: of the suite's files, the caches and the runs.
        queries: of all tasks together.
        device: of the model.
    """

    def __init__(self, folder: Path, queries: int, device: str) -> None:
        self.folder, self.device = folder, device
        self.settings = load_settings(
            ["task=mmeb_nano/all", f"data.test_pairs={queries}", f"paths.output_root={folder}"]
        )
        self.runs = 0
        self.scores: dict[str, list[dict[str, Any]]] = {COLD: [], WARM: []}
        self.reused: dict[str, int] = {}

    def evaluate(self, way: str) -> None:
        """One evaluation; the last cold one's cache is the next warm one's."""
        if way == COLD:
            self.runs += 1
        run = RunFolder(self.folder / f"run_{self.runs}_{way}")
        cache = str(self.folder / f"cache_{self.runs}")
        settings = replace(self.settings, task=replace(self.settings.task, cache_root=cache))
        result, _, summary = evaluate_nano_tasks(settings, run, device=self.device)
        assert summary is not None, "there is one process, and the encoder is TWN"
        self.scores[way].append(
            {
                "tasks": {name: scores["score"] for name, scores in result.scores.items()},
                "routers": {name: mode["hit@1"] for name, mode in summary["modes"].items()},
            }
        )
        self.reused[way] = sum(sum(scores["from_cache"].values()) for scores in result.scores.values())

    def outputs_agree(self) -> bool:
        """Whether all evaluations have the same scores, and the warm ones encoded nothing for the tasks' scores."""
        first, *others = [*self.scores[COLD], *self.scores[WARM]]
        return all(scores == first for scores in others) and self.reused[COLD] < self.reused[WARM]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1100, help="of the 11 tasks together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(Path(folder), args.queries, device)
        ways = {way: partial(suite.evaluate, way) for way in (COLD, WARM)}
        timings = in_turn(ways, device, rounds=args.rounds, warmups=1)
    result = {
        "model": "nano",
        "queries": args.queries,
        "speedup": speedup(timings[COLD], timings[WARM]),
        "bar": BAR,
        "outputs_agree": suite.outputs_agree(),
        "scores": suite.scores[COLD][0],
        "items_from_cache": suite.reused,
        "timings": {name: timing.record() for name, timing in timings.items()},
    }
    write_result(f"suite_{device}", result, args.out)
    print(f"suite: {result['speedup']}, outputs agree: {result['outputs_agree']}")


if __name__ == "__main__":
    main()
