"""A LoRA step on prompts with CoTs: ours against plain transformers + PEFT, as a share of the measured matmul rate.

    python -m experiments.benchmarks.train_step             # Qwen3-VL-4B shape in bf16 on a GPU, else a small model
    python -m experiments.benchmarks.train_step --rows 8 16 --profile

One step reads an image of 256 visual tokens, 66 text tokens and a CoT for each row, learns the CoT, and updates the
reasoning adapter. MFU counts 4 operations for each token and each parameter of the decoder layers, and 2 for each
patch and each parameter of the vision tower. Writes train_step_<device>.json beside this file, or in
the folder OUT.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.benchmarks.pairs import in_turn, speedup, write_result
from experiments.benchmarks.random_qwen3vl import SIZES, image_prompts, random_model
from twn_lightning.backbone.adapters import TARGET_REGEX
from twn_lightning.backbone.compiling import compile_layers
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import IGNORED_TARGET, cot_targets
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.objectives import cot_cross_entropy
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings
from twn_lightning.types import CotBatch, PromptBatch

TEXT_TOKENS = 66
LORA = LoraSettings(32, 64)
DROPOUT = 0.05
PLAIN, COMPILED = "ours, plain layers", "ours, compiled layers"
ALL = "ours, compiled layers and vision, cuDNN attention"
KERNELS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
BAR = 0.30
LOSS_DIFFERENCE = 0.02
"""Allowed between the two first losses, relative: bf16 sums in another order."""


@dataclass
class Batch:
    """What one step learns from."""

    prompts: PromptBatch
    cots: CotBatch
    eot_id: int

    @property
    def tokens(self) -> int:
        """Prompt and CoT tokens that the language model reads."""
        return int(self.prompts.attention_mask_BL.sum() + self.cots.mask_BT.sum())

    @property
    def patches(self) -> int:
        assert self.prompts.images is not None
        return len(self.prompts.images)


def make_batch(model: Any, eot_id: int, rows: int, side: int, cot_tokens: int, device: torch.device) -> Batch:
    """Rows of one square image each, and random CoTs of one length."""
    prompts = image_prompts(model, [(side, side)] * rows, TEXT_TOKENS, device)
    ids_BT = torch.randint(5, 256, (rows, cot_tokens), generator=torch.Generator().manual_seed(1)).to(device)
    cots = CotBatch(ids_BT, torch.ones_like(ids_BT), torch.ones(rows, dtype=torch.bool, device=device))
    return Batch(prompts, cots, eot_id)


class Peer:
    """transformers' forward with labels, LoRA by PEFT."""

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype):
        model, self.processor = random_model(size, device, dtype)
        model.set_attn_implementation("sdpa")
        config = LoraConfig(
            r=LORA.r, lora_alpha=LORA.alpha, lora_dropout=DROPOUT, target_modules=TARGET_REGEX, bias="none"
        )
        self.model: Any = get_peft_model(model, config).train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.attention: Callable[[], AbstractContextManager[None]] = nullcontext

    def loss(self, batch: Batch) -> Tensor:
        prompts, cots = batch.prompts, batch.cots
        end_B1 = torch.full_like(cots.ids_BT[:, :1], batch.eot_id)
        answer = torch.cat([cots.ids_BT, end_B1], dim=1)
        ignored = torch.full_like(prompts.input_ids_BL, IGNORED_TARGET)
        output = self.model(
            input_ids=torch.cat([prompts.input_ids_BL, answer], dim=1),
            attention_mask=F.pad(prompts.attention_mask_BL, (0, answer.shape[1]), value=1),
            mm_token_type_ids=F.pad(prompts.mm_token_type_ids_BL, (0, answer.shape[1])),
            pixel_values=prompts.pixel_values,
            image_grid_thw=prompts.image_grid_thw,
            labels=torch.cat([ignored, answer], dim=1),
            use_cache=False,
        )
        found: Tensor = output.loss
        return found


class Ours:
    """Pass R of the dual-LoRA backbone and the CoT loss of stage 1."""

    def __init__(self, size: str, device: torch.device, dtype: torch.dtype):
        model, self.processor = random_model(size, device, dtype)
        model.set_attn_implementation("sdpa")
        pack_vision_attention(model.model.visual)
        project_patches_linearly(model.model.visual)
        adapters = AdapterSettings(reasoning=LORA, embedding=LoraSettings(64, 128), dropout=DROPOUT, num_queries=16)
        self.backbone = DualLoRABackbone(model, self.processor, adapters, InterfaceSettings()).to(device)
        self.backbone.train_only("reasoning")
        self.backbone.train()
        self.trained = self.backbone.group_parameters("reasoning")
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        self.attention: Callable[[], AbstractContextManager[None]] = nullcontext

    def loss(self, batch: Batch) -> Tensor:
        state = self.backbone.reason(batch.prompts, batch.cots, want_logits=True)
        assert state.cot_logits_BTV is not None
        return cot_cross_entropy(state.cot_logits_BTV, cot_targets(batch.cots, batch.eot_id))


def step(way: Peer | Ours, batch: Batch) -> float:
    """Forward under autocast on a GPU, backward, AdamW."""
    device = batch.cots.ids_BT.device.type
    with way.attention(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        loss = way.loss(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(way.trained, 1.0)
    way.optimizer.step()
    way.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large square product, the best of several."""
    size = 8192 if device.type == "cuda" else 1024
    first, second = torch.randn(2, size, size, device=device, dtype=dtype)
    timing = in_turn({"matmul": lambda: [first @ second for _ in range(10)]}, device, rounds=8)["matmul"]
    return 10 * 2 * size**3 / min(timing.seconds)


def utilisation(size: str, batch: Batch, vision_parameters: int, seconds: float, rate: float) -> dict[str, float]:
    """Tokens a second of a step, and the share of the matmul rate that its arithmetic is."""
    shape = SIZES[size]
    layers = shape.parameters - shape.vocabulary * shape.hidden * (1 if shape.tied_embeddings else 2)
    operations = 4 * layers * batch.tokens + 2 * vision_parameters * batch.patches
    return {"tokens_per_second": batch.tokens / seconds, "mfu": operations / seconds / rate}


def measure(args: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Every number of rows: the peer and ours in turn; first with plain layers, then with what is compiled besides."""
    peer, ours = Peer(args.size, device, dtype), Ours(args.size, device, dtype)
    model: Any = ours.backbone.model
    vision_parameters = sum(p.numel() for p in model.model.visual.parameters())
    rate = matmul_rate(device, dtype)
    eot_id = ours.processor.eot_id
    batches = {rows: make_batch(model, eot_id, rows, args.side, args.cot_tokens, device) for rows in args.rows}
    first = batches[args.rows[0]]
    losses = {"transformers": step(peer, first), "ours": step(ours, first)}
    agree = abs(losses["ours"] - losses["transformers"]) < LOSS_DIFFERENCE * losses["transformers"]
    result: dict[str, Any] = {"matmul_tflops": rate / 1e12, "first_losses": losses, "outputs_agree": agree, "rows": {}}
    for name in (PLAIN, COMPILED, ALL) if args.compile else (PLAIN,):
        try:
            if name != PLAIN:
                began = time.perf_counter()
                compile_parts(ours, name)
                step(ours, first)
                result[f"seconds until the first step of {name}"] = time.perf_counter() - began
            for rows, batch in batches.items():
                calls = {"transformers": partial(step, peer, batch), name: partial(step, ours, batch)}
                timings = in_turn(calls, device, rounds=args.rounds)
                found: dict[str, Any] = {way: timing.record() for way, timing in timings.items()}
                for way, timing in timings.items():
                    if not timing.error:
                        found[way] |= utilisation(args.size, batch, vision_parameters, timing.median, rate)
                found["speedup"] = speedup(timings["transformers"], timings[name])
                result["rows"].setdefault(str(rows), {})[name] = found
            if args.profile:
                profile(partial(step, ours, first), device, name, args.out)
        except Exception as error:  # what was measured until then stays
            traceback.print_exc()
            result[f"error of {name}"] = f"{type(error).__name__}: {str(error)[:1000]}"
    return result


def compile_parts(ours: Ours, name: str) -> None:
    """Compile the decoder layers; for ALL also the blocks of the vision tower, and attend by cuDNN's kernels."""
    model: Any = ours.backbone.model
    if name == COMPILED:
        compile_layers(model.model.language_model.layers)
        return
    torch.compiler.reset()  # which kernel attends is decided while compiling
    for block in model.model.visual.blocks:
        block.compile()
    ours.attention = partial(sdpa_kernel, KERNELS, set_priority=True)


def profile(run: Callable[[], Any], device: torch.device, name: str, out: str | None) -> None:
    """Write the time of a step by operator to profile_<name>.txt."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    folder = Path(out or os.environ.get("OUT") or Path(__file__).parent)
    folder.mkdir(parents=True, exist_ok=True)
    table = profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=70)
    (folder / f"profile_{name.replace(', ', '_').replace(' ', '_')}.txt").write_text(table)


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="qwen3vl_4b" if cuda else "midsize", choices=list(SIZES))
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16] if cuda else [4])
    parser.add_argument("--side", type=int, default=32 if cuda else 16, help="patches along an image's side")
    parser.add_argument("--cot-tokens", type=int, default=128 if cuda else 32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--profile", action="store_true", help="also write the time of a step by operator")
    parser.add_argument("--out", help="folder of the results")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    result = measure(args, device, dtype)
    write_result(
        f"train_step_{device.type}", {"model": args.size, "dtype": str(dtype), "bar_mfu": BAR, **result}, args.out
    )
    for rows, by_way in result["rows"].items():
        for found in by_way.values():
            for way, timing in found.items():
                print(rows, "rows", way, {k: v for k, v in timing.items() if k != "seconds"} if timing else "failed")


if __name__ == "__main__":
    main()
