"""How time and memory grow with the batch, the prompt, the CoT, the candidates and the ranks, on a CPU.

    python -m experiments.benchmarks.growth
    python -m experiments.benchmarks.growth --rounds 5

Every size of a series is timed once a round. The exponent is the slope of a line through log time over log size, fitted
to each round's times, with a 95 % interval over rounds: 1 is linear. Memory is what the process grew by in one call, to
which a line is fitted alike. Two ranks share one batch, and a training step takes them so much of one rank's time: -1
would be half. Writes growth_cpu.json and growth.svg beside this file, or in the folder OUT.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.decoders import ADAPTERS
from experiments.benchmarks.growth_figure import draw
from experiments.benchmarks.pairs import write_result
from experiments.benchmarks.random_qwen3vl import image_prompts, random_model
from experiments.benchmarks.sft_step import WAYS, build_stage, peak_gib, step
from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.evaluation.index import Document, SearchIndex
from twn_lightning.metrics import score_embeddings
from twn_lightning.metrics.statistics import bootstrap_mean
from twn_lightning.settings import (
    AdapterSettings,
    DataSettings,
    InterfaceSettings,
    LoggerSettings,
    ModelSettings,
    PathSettings,
    Settings,
    SFTSettings,
    TrainerSettings,
)
from twn_lightning.stages import DualLoRASFT
from twn_lightning.train import train
from twn_lightning.types import RankingItem

Call = Callable[[], Any]
CHUNK, PROMPTS, QUERIES, WIDTH, FOUND = 32, 4, 100, 256, 10
RANK_STEPS = 8


@dataclass(frozen=True)
class Series:
    """One axis along which work grows.

    Args:
        axis: what is counted.
        work: what is done.
        sizes: ascending.
        prepare: a size -> the call to measure.
        time_bar: the largest exponent of time that passes. A little above 1 where the work is linear: fixed costs pull
            the slope below 1, and caches of the processor push it up; more where attention has a share.
        memory_bar: of memory.
    """

    axis: str
    work: str
    sizes: tuple[int, ...]
    prepare: Callable[[int], Call]
    time_bar: float = 1.15
    memory_bar: float = 1.15


# --- work ------------------------------------------------------------------------------------------------------------


def training_steps(folder: str) -> Callable[[int], Call]:
    """Stage-1 steps on nano, chunks of one size."""
    backbone = load_backbone(ModelSettings(), AdapterSettings(), InterfaceSettings())
    stage = build_stage(backbone, *WAYS["ours"], CHUNK, folder)
    parameters = [p for group in DualLoRASFT.trained_groups for p in backbone.group_parameters(group)]
    optimizer = torch.optim.AdamW(parameters, lr=0.0)

    def prepare(pairs: int) -> Call:
        settings = Settings(stage=SFTSettings(batch_size=pairs), data=DataSettings(train_pairs=2 * pairs))
        batch = next(iter(TWNDataModule(settings, backbone.processor).train_dataloader()))
        return partial(step, stage, optimizer, batch)

    return prepare


def reader_and_writer() -> tuple[Callable[[int], Call], Callable[[int], Call]]:
    """Pass R over prompts of so many tokens, and decoding of CoTs of so many, by a random model that never stops."""
    model, processor = random_model("midsize", "cpu", torch.float32)
    backbone = DualLoRABackbone(model, processor, ADAPTERS, InterfaceSettings(), "midsize").eval()

    @torch.no_grad()
    def read(tokens: int) -> Any:
        return backbone.reason(image_prompts(model, [(2, 2)] * PROMPTS, tokens, "cpu"))

    def write(tokens: int) -> Call:
        return partial(decode_cots, backbone, read(64), max_new_tokens=tokens)

    return lambda tokens: partial(read, tokens), write


def unit_vectors(rows: int) -> np.ndarray:
    """Random embeddings."""
    vectors = np.random.default_rng(rows).standard_normal((rows, WIDTH), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ranking(candidates: int) -> Call:
    """Scores of a task over a whole corpus."""
    keys = [str(number) for number in range(candidates)]
    items = [RankingItem((keys[query],)) for query in range(QUERIES)]
    return partial(score_embeddings, unit_vectors(QUERIES), unit_vectors(candidates), keys, items)


def search(candidates: int) -> Call:
    """The best documents of each query in an exact index."""
    index = SearchIndex.create(WIDTH, {"name": "random"})
    index.add(unit_vectors(candidates), [Document(str(number)) for number in range(candidates)])
    return partial(index.search, unit_vectors(QUERIES), FOUND)


def all_series(folder: str) -> list[Series]:
    """Every series of one process."""
    read, write = reader_and_writer()
    return [
        Series("pairs", "a stage-1 step in chunks of 32", (32, 64, 128, 256), training_steps(folder)),
        Series("prompt tokens", "reading 4 prompts", (64, 128, 256, 512, 1024), read, time_bar=1.4),
        Series("CoT tokens", "writing 4 CoTs", (16, 32, 64, 128), write, time_bar=1.25),
        Series("candidates", "scoring 100 queries", (2_000, 4_000, 8_000, 16_000), ranking),
        # From sizes on that no cache of a processor holds.
        Series("documents", "searching for 100 queries", (80_000, 160_000, 320_000, 640_000), search),
    ]


# --- measurement -----------------------------------------------------------------------------------------------------


def grown_mib(call: Call) -> float:
    """Memory that this process grows by, at the most, during a call; less than 1 MiB counts as 1. Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls have freed would be taken first and hide the growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is held now
    before = peak_gib()
    call()
    return max(1.0, 1024 * (peak_gib() - before))


def slope(sizes: tuple[int, ...], values: list[float]) -> float:
    """Of a line through log value over log size."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponent(sizes: tuple[int, ...], rounds: list[list[float]], bar: float) -> dict[str, float]:
    """The mean slope of the rounds (R, sizes), with a 95 % bootstrap interval."""
    found = bootstrap_mean([slope(sizes, values) for values in rounds])
    return {"exponent": found.mean, "low": found.low, "high": found.high, "bar": bar}


def measure(series: Series, rounds: int) -> dict[str, Any]:
    """Seconds and memory of every size, round by round, after one round that warms up."""
    calls = [series.prepare(size) for size in series.sizes]
    seconds: list[list[float]] = []
    for _ in range(rounds + 1):
        seconds.append([])
        for call in calls:
            began = time.perf_counter()
            call()
            seconds[-1].append(time.perf_counter() - began)
    memory = [[grown_mib(call) for call in calls] for _ in range(2)]
    return {
        "work": series.work,
        "sizes": series.sizes,
        "seconds": seconds[1:],
        "mib": memory,
        "time": exponent(series.sizes, seconds[1:], series.time_bar),
        "memory": exponent(series.sizes, memory, series.memory_bar),
    }


# --- ranks -----------------------------------------------------------------------------------------------------------


def rank_settings(ranks: int, folder: Path) -> Settings:
    """A few steps of stage 1 on nano, whose global batch does not depend on the ranks."""
    return Settings(
        stage=SFTSettings(batch_size=128, chunk_size=CHUNK, max_steps=RANK_STEPS),
        data=DataSettings(train_pairs=512, val_pairs=4),
        trainer=TrainerSettings(accelerator="cpu", devices=ranks, log_every_steps=1, deterministic=False),
        logger=LoggerSettings(),
        paths=PathSettings(run_dir=str(folder)),
    )


def measure_ranks() -> dict[str, Any]:
    """Seconds of a step on one and on two ranks of one thread each, every run in processes of its own."""
    sizes, seconds, losses = (1, 2), [], []
    for ranks in sizes:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = [sys.executable, "-m", "experiments.benchmarks.growth", "--train-on", str(ranks), str(run)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, capture_output=True, env=environment)
            lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        timed, lost = "throughput/seconds_per_step", "train/loss_cot"
        seconds.append([line[timed] for line in lines if timed in line])
        losses.append([line[lost] for line in lines if lost in line])
    rounds = [list(pair) for pair in zip(*seconds, strict=True)][2:]  # the first steps warm up
    return {
        "work": "a stage-1 step of 128 pairs, one thread a rank",
        "sizes": sizes,
        "seconds": rounds,
        "time": exponent(sizes, rounds, bar=0.0),
        "loss_difference": float(np.abs(np.subtract(*losses)).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="folder of the results")
    parser.add_argument("--train-on", nargs=2, metavar=("RANKS", "FOLDER"), help="train a few steps, and nothing else")
    args = parser.parse_args()
    if args.train_on:
        train(rank_settings(int(args.train_on[0]), Path(args.train_on[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {series.axis: measure(series, args.rounds) for series in all_series(folder)}
    found["ranks"] = measure_ranks()
    path = write_result("growth_cpu", {"series": found}, args.out)
    draw(found, path.with_name("growth.svg"))
    for axis, result in found.items():
        for kind in ("time", "memory"):
            if kind in result:
                print(f"{axis}: {kind} grows with exponent {result[kind]}")


if __name__ == "__main__":
    main()
