"""A whole stage-1 step: the detached interface in chunks against re-encoding, with and without cached representations.

    python -m experiments.benchmarks.sft_step              # Qwen3-VL-4B shape in bf16 on a GPU, else nano
    python -m experiments.benchmarks.sft_step --batch 64 --chunk 8

Every way runs `DualLoRASFT.joint_step` on the same batch of queries with CoTs and candidates without, and AdamW. The
peers' embedding adapter reads prompt, CoT and queries again from the tokens, as embedders without a shared cache do.
`joint_step` also runs pass R over the candidates, which re-encoding has no use for: it is timed apart and taken off the
peers' time. Without cached representations the peer holds the activations of a whole batch together, so that part has
a batch of its own size. Memory is what the device's allocator held; on a CPU, by how much a process grew in one step,
and the part without cached representations, whose bar is one of memory, is timed in those processes, too. Writes
sft_step_<device>.json beside this file, or in the folder OUT.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmarks.pairs import Timing, in_turn, speedup, write_result
from experiments.benchmarks.random_qwen3vl import SIZES, image_prompts, random_model
from twn_lightning.backbone.compiling import compile_layers
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.run import RunFolder
from twn_lightning.settings import (
    AdapterSettings,
    DataSettings,
    InterfaceSettings,
    LoraSettings,
    ModelSettings,
    Settings,
    SFTSettings,
)
from twn_lightning.stages import DualLoRASFT
from twn_lightning.stages.cache_memory import CacheMemory
from twn_lightning.types import ContrastiveBatch, CotBatch

TEXT_TOKENS = 66
OURS, PEER = "ours", "re-encode"
WAYS = {OURS: ("kv_detached", True), "ours, caches read again": ("kv_detached", False), PEER: ("reencode", True)}
"""Interface, and whether caches stay in memory where they fit."""
UNUSED = "pass R of the candidates"
WHOLE, CHUNKED = "without cached representations", "with cached representations"
BARS = {"memory_without_grad_cache": 0.5, "speedup_over_grad_cache": 1.5, "memory_with_grad_cache": 1.2}


class FullMemory(CacheMemory):
    """No cache stays: pass R reads every chunk again for pass E."""

    def has_room(self) -> bool:
        return False


class StepAlone(DualLoRASFT):
    """Stage 1 without a Trainer."""

    keeps_caches = True

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        loss.backward()

    def cache_memory(self) -> CacheMemory:
        return super().cache_memory() if self.keeps_caches else FullMemory(self.device)


def build_stage(backbone: DualLoRABackbone, interface: str, keeps_caches: bool, chunk: int, folder: str) -> StepAlone:
    """A stage on a backbone that it may share with others: the interface is set before every step."""
    settings = Settings(stage=SFTSettings(chunk_size=chunk), interface=InterfaceSettings(interface))  # type: ignore[arg-type]
    data: Any = None  # batches are made here
    stage = StepAlone(settings, backbone, RunFolder(folder), data).to(backbone.device)
    stage.keeps_caches = keeps_caches
    return stage


def make_batch(backbone: DualLoRABackbone, rows: int, side: int, cot_tokens: int) -> ContrastiveBatch:
    """Queries of one image, text and CoT each; as many candidates of one image and text."""
    device = backbone.device
    model: Any = backbone.model
    ids_BT = torch.randint(5, 256, (rows, cot_tokens), generator=torch.Generator().manual_seed(1)).to(device)
    numbers = torch.arange(rows, device=device)
    return ContrastiveBatch(
        queries=image_prompts(model, [(side, side)] * rows, TEXT_TOKENS, device),
        query_cots=CotBatch(ids_BT, torch.ones_like(ids_BT), torch.ones(rows, dtype=torch.bool, device=device)),
        candidates=image_prompts(model, [(side, side)] * rows, TEXT_TOKENS, device),
        candidate_cots=None,
        positive_B=numbers,
        target_hash_Q=numbers,
        target_hash_C=numbers,
        candidate_is_negative_C=torch.zeros(rows, dtype=torch.bool, device=device),
        source="random",
    )


def step(stage: StepAlone, optimizer: torch.optim.Optimizer, batch: ContrastiveBatch) -> dict[str, float]:
    """All losses of a batch, backward, AdamW."""
    stage.backbone.interface = stage.settings.interface
    device = stage.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        values = stage.joint_step(batch)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {key: float(value) for key, value in values.items()}


@torch.no_grad()
def read_candidates(backbone: DualLoRABackbone, batch: ContrastiveBatch, chunk: int) -> None:
    """Pass R over the candidates, chunk by chunk."""
    device = backbone.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        for start in range(0, len(batch.candidates), chunk):
            backbone.reason(batch.candidates.select(list(range(start, min(start + chunk, len(batch.candidates))))))


@dataclass(frozen=True)
class Grown:
    """A step in a process of its own."""

    gib: float
    seconds: float
    loss_cot: float


@dataclass
class Part:
    """Steps of all ways on one batch."""

    backbone: DualLoRABackbone
    batch: ContrastiveBatch
    chunk: int
    peer_chunk: int
    """Rows that the peer's forward passes hold: all of them without cached representations."""

    def stages(self, folder: str) -> dict[str, StepAlone]:
        """One for each way, over the same weights."""
        return {
            name: build_stage(self.backbone, *way, self.peer_chunk if name == PEER else self.chunk, folder)
            for name, way in WAYS.items()
        }

    def optimizer(self) -> torch.optim.Optimizer:
        """Every step of every way meets the same weights: the learning rate is 0."""
        groups = DualLoRASFT.trained_groups
        return torch.optim.AdamW([p for group in groups for p in self.backbone.group_parameters(group)], lr=0.0)

    def measure(self, rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
        """Times of all ways, and the CoT loss of each one's first step, which no interface changes."""
        losses: dict[str, float] = {}
        optimizer = self.optimizer()
        with tempfile.TemporaryDirectory() as folder:
            stages = self.stages(folder)

            def run(name: str) -> None:
                losses.setdefault(name, step(stages[name], optimizer, self.batch)["train/loss_cot"])

            calls = {
                **{name: partial(run, name) for name in WAYS},
                UNUSED: partial(read_candidates, self.backbone, self.batch, self.peer_chunk),
            }
            warmups = int(self.backbone.device.type == "cuda")  # nothing compiles on a CPU, where a round is a minute
            return in_turn(calls, self.backbone.device, rounds=rounds, warmups=warmups), losses

    def grow(self, way: str) -> Grown:
        """One step, and the memory that this process grows by in it."""
        with tempfile.TemporaryDirectory() as folder:
            stage, optimizer = self.stages(folder)[way], self.optimizer()
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts again from what is held now
            before, began = peak_gib(), time.perf_counter()
            values = step(stage, optimizer, self.batch)
            return Grown(peak_gib() - before, time.perf_counter() - began, values["train/loss_cot"])


def peak_gib() -> float:
    """The most memory that this process has held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 2**20


def record(timings: dict[str, Timing], losses: dict[str, float], rows: int) -> dict[str, Any]:
    """Times and memory of all ways, and how ours compare with the peer."""
    found = {name: timing.record() for name, timing in timings.items()}
    peer, unused = timings[PEER], timings[UNUSED]
    needed = [whole - part for whole, part in zip(peer.seconds, unused.seconds, strict=False)]
    for name in WAYS.keys() & timings.keys():
        ours = timings[name]
        if ours.error:
            continue
        found[name]["items_per_second"] = rows / ours.median
        if name != PEER:
            found[name]["speedup"] = speedup(replace(peer, seconds=needed), ours)
            if ours.peak_memory_gib and peer.peak_memory_gib:
                found[name]["memory_ratio"] = ours.peak_memory_gib / peer.peak_memory_gib
    agree = bool(losses) and max(losses.values()) - min(losses.values()) < 0.01 * max(losses.values())
    return {"ways": found, "cot_losses": losses, "outputs_agree": agree}


def build_backbone(size: str, device: torch.device) -> DualLoRABackbone:
    """nano as packaged, or random weights with adapters as for the Qwen3-VL experiments."""
    if size == "nano":
        return load_backbone(ModelSettings(), AdapterSettings(), InterfaceSettings(), device)
    model, processor = random_model(size, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model.set_attn_implementation("sdpa")
    pack_vision_attention(model.model.visual)
    project_patches_linearly(model.model.visual)
    adapters = AdapterSettings(
        reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), dropout=0.05, num_queries=16, query_std=0.02
    )
    return DualLoRABackbone(model, processor, adapters, InterfaceSettings(), size).to(device)


def build_part(backbone: DualLoRABackbone, args: argparse.Namespace, name: str) -> Part:
    """The batch of one part."""
    rows = args.whole_batch if name == WHOLE else args.batch
    if args.size == "nano":
        settings = Settings(stage=SFTSettings(batch_size=rows), data=DataSettings(train_pairs=2 * rows))
        batch = next(iter(TWNDataModule(settings, backbone.processor).train_dataloader())).to(backbone.device)
    else:
        batch = make_batch(backbone, rows, args.side, args.cot_tokens)
    return Part(backbone, batch, args.chunk, rows if name == WHOLE else args.chunk)


def grown(name: str) -> dict[str, Grown]:
    """One step of each way that has a bar, each in a process of its own with this one's arguments."""
    found = {}
    for way in (OURS, PEER):
        command = [sys.executable, "-m", "experiments.benchmarks.sft_step", *sys.argv[1:], "--grow", name, way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[way] = Grown(**json.loads(done.stdout.splitlines()[-1]))
    return found


def measure(part: Part, name: str, rounds: int) -> tuple[dict[str, Timing], dict[str, float]]:
    """Times, memory and CoT losses of a part."""
    if part.backbone.device.type == "cuda":
        return part.measure(rounds)
    steps = grown(name)
    if name == WHOLE:
        read = partial(read_candidates, part.backbone, part.batch, part.peer_chunk)
        timings = in_turn({UNUSED: read}, "cpu", rounds=1)
        timings |= {way: Timing([found.seconds]) for way, found in steps.items()}
        losses = {way: found.loss_cot for way, found in steps.items()}
    else:
        timings, losses = part.measure(rounds)
    for way, found in steps.items():
        timings[way].peak_memory_gib = found.gib
    return timings, losses


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="qwen3vl_4b" if cuda else "nano", choices=["nano", *SIZES])
    parser.add_argument("--batch", type=int, default=256 if cuda else 1024)
    parser.add_argument("--whole-batch", type=int, default=8 if cuda else 1024, help="of the part without chunks")
    parser.add_argument("--chunk", type=int, default=8 if cuda else 128)
    parser.add_argument("--side", type=int, default=32, help="patches along an image's side; nano has its own images")
    parser.add_argument("--cot-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the decoder layers, for all ways")
    parser.add_argument("--out", help="folder of the result")
    parser.add_argument("--grow", nargs=2, metavar=("PART", "WAY"), help="take one step and print the memory it took")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    backbone = build_backbone(args.size, device)
    if args.compile:
        compile_layers(backbone.language_model.layers)
    if args.grow:
        print(json.dumps(asdict(build_part(backbone, args, args.grow[0]).grow(args.grow[1]))))
        return
    results: dict[str, Any] = {}
    for name in (WHOLE, CHUNKED):
        part = build_part(backbone, args, name)
        timings, losses = measure(part, name, args.rounds)
        rows = len(part.batch.queries)
        found = record(timings, losses, rows)
        results[name] = {"batch": rows, "chunk": part.chunk, "peer_chunk": part.peer_chunk, **found}
        print(name, json.dumps(results[name], indent=2), flush=True)
    settings = {"model": args.size, "compiled": args.compile, "bars": BARS}
    write_result(f"sft_step_{device.type}", {**settings, **results}, args.out)


if __name__ == "__main__":
    main()
