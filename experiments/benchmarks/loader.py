"""Loading while a consumer computes: worker processes against one process that does both in turn.

    python -m experiments.benchmarks.loader
    python -m experiments.benchmarks.loader --workers 4 --batches 40

Files are made first: photographs as JPEG, pages as PNG, clips as H.264. Both ways run `TWNDataModule.train_dataloader`
on them, decoding, patches and tokens included, from the start of the workers to the last batch; the consumer sleeps for
each batch, as a host does while its GPU computes. What it waits is `--step` times what one process needs to load a
batch, measured here: a step of 1 could gain a factor of 2 at most, of .5 a factor of 3 with two workers or more. That
holds where workers do not slow each other down; `loading_gain` says how much faster they load without any step, and
`bound_here` what that leaves. Writes loader_cuda.json or loader_cpu.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from experiments.benchmarks.pairs import in_turn, speedup, write_result
from experiments.benchmarks.random_qwen3vl import MERGE, PATCH
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.data.datamodule import ResumableLoader, TWNDataModule
from twn_lightning.settings import DataSettings, Settings, SFTSettings
from twn_lightning.types import ContrastiveBatch

ONE, WORKERS = "one process", "workers"
BAR = 2.0
COT = "<think> it is seen </think><answer> seen </answer>"


def photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Coloured blobs with a little noise: it compresses as a photograph does."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-8, 9, smooth.shape, dtype=np.int16)
    return noisy.clip(0, 255).astype(np.uint8)


def write_page(path: Path, number: int) -> None:
    """A page of text lines."""
    page = Image.new("RGB", (850, 1100), "white")
    draw = ImageDraw.Draw(page)
    for line in range(48):
        draw.text((60, 40 + 21 * line), f"page {number}, line {line}: " + "some words of a report " * 4, fill="black")
    page.save(path)


def write_clip(path: Path, rng: np.random.Generator, frames: int) -> None:
    """A picture that moves sideways, at 24 frames a second."""
    picture = photograph(rng, 640, 240)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(24))
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(frames):
            shown = np.ascontiguousarray(np.roll(picture, -4 * number, axis=1)[:, :320])
            for packet in stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def make_corpus(folder: Path, pairs: int, frames: int) -> None:
    """Pairs in turn: image to text, text to page, clip to text."""
    rng, rows = np.random.default_rng(0), []
    for number in range(pairs):
        kind = ("image", "page", "clip")[number % 3]
        words: dict[str, Any] = {"text": f"number {number}"}
        if kind == "image":
            Image.fromarray(photograph(rng, 1024, 768)).save(folder / f"{number}.jpg", quality=90)
            query, positive = {"instruction": "Name the picture.", "image": f"{number}.jpg"}, words
        elif kind == "page":
            write_page(folder / f"{number}.png", number)
            query, positive = {"instruction": "Find the page.", **words}, {"image": f"{number}.png"}
        else:
            write_clip(folder / f"{number}.mp4", rng, frames)
            query, positive = {"instruction": "Name the clip.", "video": f"{number}.mp4"}, words
        rows.append({"query": query, "positive": positive, "query_cot": COT, "split": "train"})
    rows.append({"query": {"text": "held out"}, "positive": {"text": "other"}, "query_cot": COT, "split": "val"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class Consumer:
    """Takes all batches of a loader and waits a step for each.

    Args:
        loader: whose batches come again in every round.
    """

    def __init__(self, loader: ResumableLoader) -> None:
        self.loader, self.start = loader, loader.state_dict()
        self.waiting_shares: list[float] = []

    def batches(self) -> Iterator[ContrastiveBatch]:
        """All of them, from the first."""
        self.loader.load_state_dict(self.start)
        return iter(self.loader)

    def run(self, step: float) -> float:
        """One round, with a step of so many seconds; returns how long it took."""
        began, waited = time.perf_counter(), 0.0
        batches, asked = self.batches(), time.perf_counter()
        for _ in batches:
            waited += time.perf_counter() - asked
            time.sleep(step)
            asked = time.perf_counter()
        taken = time.perf_counter() - began
        self.waiting_shares.append(waited / taken)
        return taken

    def digest(self) -> str:
        """Of all tensors of all batches."""
        digest = hashlib.sha256()
        for batch in self.batches():
            prompts = (batch.queries, batch.candidates)
            media = [patches for part in prompts for patches in (part.images, part.videos) if patches is not None]
            for part in (batch, *prompts, batch.query_cots, *media):
                for name, value in sorted(vars(part).items()):
                    if isinstance(value, Tensor):
                        digest.update(f"{name} {tuple(value.shape)}".encode() + value.numpy().tobytes())
        return digest.hexdigest()


def build_loader(folder: Path, pairs: int, batches: int, batch_size: int, workers: int) -> ResumableLoader:
    """Training batches of the corpus, as stage 1 has them."""
    half = (0.5, 0.5, 0.5)
    pixels = (PATCH * MERGE) ** 2
    processor = PromptProcessor(tiny_tokenizer(), PatchSettings(PATCH, MERGE, 2, 4 * pixels, 512 * pixels, half, half))
    data = DataSettings(
        source="pairs",
        annotations_root=str(folder),
        num_workers=workers,
        rows_per_source_global=batch_size,
        train_pairs=pairs,
        val_pairs=1,
    )
    settings = Settings(stage=SFTSettings(batch_size=batch_size, max_steps=batches), data=data)
    return TWNDataModule(settings, processor).train_dataloader()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=48, help="of the corpus; batches go over it again and again")
    parser.add_argument("--frames", type=int, default=240, help="of a clip")
    parser.add_argument("--step", type=float, default=0.5, help="of the consumer, in times of loading a batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_corpus(Path(folder), args.pairs, args.frames)
        consumers = {
            name: Consumer(build_loader(Path(folder), args.pairs, args.batches, args.batch_size, workers))
            for name, workers in ((ONE, 0), (WORKERS, args.workers))
        }
        digests = {name: consumer.digest() for name, consumer in consumers.items()}
        loading, loading_by_workers = (consumers[name].run(0.0) / args.batches for name in (ONE, WORKERS))
        step = args.step * loading
        ways = {name: lambda consumer=consumer: consumer.run(step) for name, consumer in consumers.items()}
        timings = in_turn(ways, "cpu", rounds=args.rounds, warmups=0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "workers": args.workers,
        "batches": args.batches,
        "batch_size": args.batch_size,
        "loading_seconds": loading,
        "step_seconds": step,
        "speedup": speedup(timings[ONE], timings[WORKERS]),
        "bar": BAR,
        "loading_gain": loading / loading_by_workers,
        "bound": (1 + args.step) / max(args.step, 1 / args.workers),
        "bound_here": (1 + args.step) / max(args.step, loading_by_workers / loading),
        "outputs_agree": digests[ONE] == digests[WORKERS],
        "waiting_share": {name: float(np.median(c.waiting_shares[-args.rounds :])) for name, c in consumers.items()},
        "timings": {name: timing.record() for name, timing in timings.items()},
    }
    write_result(f"loader_{device}", result, args.out)
    print(f"loader: {result['speedup']} of at most {result['bound']}, here {result['bound_here']:.2f}; workers load")
    print(f"{result['loading_gain']:.2f} times as fast as one process; waiting {result['waiting_share']}")


if __name__ == "__main__":
    main()
