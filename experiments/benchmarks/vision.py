"""The vision tower over a batch of images, and the positions of their prompts: ours against transformers' loops.

    python -m experiments.benchmarks.vision             # on a GPU the tower of Qwen3-VL-4B in bf16, else a small one
    python -m experiments.benchmarks.vision --rounds 9 --compile

Writes vision_<device>.json beside this file, or in the folder OUT.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from experiments.benchmarks.pairs import in_turn, speedup, write_result
from experiments.benchmarks.random_qwen3vl import MERGE, draw_weights, image_prompts, qwen3vl_config
from twn_lightning.backbone import vision
from twn_lightning.backbone.positions import prompt_positions
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.backbone.vision import (
    FrameGroup,
    PackedFrames,
    frame_groups,
    pack_vision_attention,
    packed_attention,
    project_patches_linearly,
    visual_inputs,
)
from twn_lightning.types import PromptBatch

TEXT_TOKENS = 16
BARS = {"512 x 64": 10.0, "32 x 1,024": 1.5}
"""Required ratios on an H100."""
BF16_ERROR = 0.02
"""Relative error allowed between two bf16 computations of the tower; bf16 rounds to .004."""


def cases(cuda: bool) -> dict[str, list[tuple[int, int]]]:
    """Rows and columns of patches of each image of a batch."""
    rng = np.random.default_rng(0)
    sides = 2 * rng.integers(4, 17, (128 if cuda else 24, 2))
    mixed = [(int(rows), int(columns)) for rows, columns in sides]
    if not cuda:
        return {"64 x 64": [(8, 8)] * 64, "8 x 256": [(16, 16)] * 8, "2 x 1,024": [(32, 32)] * 2, "24 mixed": mixed}
    square = {"512 x 64": (512, 8), "32 x 1,024": (32, 32), "8 x 4,096": (8, 64)}
    return {**{name: [(side, side)] * count for name, (count, side) in square.items()}, "128 mixed": mixed}


@dataclass
class Towers:
    """One vision tower, as transformers runs it and as we do."""

    model: Any
    """The model around it, without weights: transformers computes positions there."""
    plain: Any
    ours: Any
    compiled: Any | None

    @classmethod
    def build(cls, size: str, device: torch.device, dtype: torch.dtype, compile_blocks: bool) -> Towers:
        """Random weights, the same in all towers."""
        with torch.device("meta"):
            model = Qwen3VLModel(qwen3vl_config(size, tiny_tokenizer()))
        config = model.visual.config
        config._attn_implementation = "sdpa"
        towers = [type(model.visual)(deepcopy(config)).to(device, dtype).eval() for _ in range(2 + compile_blocks)]
        for tower in towers:
            draw_weights(tower, seed=0)
        for tower in towers[1:]:
            pack_vision_attention(tower)
            project_patches_linearly(tower)
        for block in towers[2].blocks if compile_blocks else ():
            block.compile()
        return cls(model, towers[0], towers[1], towers[2] if compile_blocks else None)


@torch.no_grad()
def measure(images: list[tuple[int, int]], towers: Towers, rounds: int) -> dict[str, Any]:
    """One batch of images: times of tower and positions together, and of the tower alone; whether outputs agree."""
    model, plain, ours = towers.model, towers.plain, towers.ours
    device = plain.device
    prompts = image_prompts(model, images, TEXT_TOKENS, device)

    def loop_positions() -> Tensor:
        positions, _ = model.get_rope_index(
            prompts.input_ids_BL,
            prompts.mm_token_type_ids_BL,
            image_grid_thw=prompts.image_grid_thw,
            attention_mask=prompts.attention_mask_BL,
        )
        return positions

    def features(tower: Any) -> Tensor:
        found = visual_inputs(tower, prompts)
        assert found is not None
        return found.features

    def packed_positions() -> Tensor:
        return prompt_positions(prompts, MERGE)[0]

    ways: dict[str, Callable[[], Any]] = {
        "transformers": lambda: (features(plain), loop_positions()),
        "ours": lambda: (features(ours), packed_positions()),
        "transformers, tower": lambda: features(plain),
        "ours, tower": lambda: features(ours),
    }
    if towers.compiled is not None:
        ways["ours, tower compiled"] = lambda: features(towers.compiled)
    valid_BL = prompts.attention_mask_BL.bool()
    same_positions = torch.equal(loop_positions()[:, valid_BL], packed_positions()[:, valid_BL])
    first, second = features(plain).float(), features(ours).float()
    error = float((first - second).norm() / first.norm())
    allowed = BF16_ERROR if plain.dtype == torch.bfloat16 else 1e-5
    timings = in_turn(ways, device, rounds=rounds)
    return {
        "images": len(images),
        "patches": sum(rows * columns for rows, columns in images),
        "positions_equal": same_positions,
        "relative_error": error,
        "outputs_agree": same_positions and error < allowed,
        "speedup": speedup(timings["transformers"], timings["ours"]),
        "speedup_of_tower": speedup(timings["transformers, tower"], timings["ours, tower"]),
        "ways": {way: timing.record() for way, timing in timings.items()},
        "attention_of_one_layer": attention_ways(prompts, ours, rounds),
    }


def attention_ways(prompts: PromptBatch, tower: Any, rounds: int) -> dict[str, Any]:
    """Attention of one layer alone, in the three ways there are: where each is the fastest decides between them."""
    grids = prompts.image_grid_thw
    assert grids is not None
    lengths = grids.prod(-1).tolist()
    device, dtype, config = tower.device, tower.dtype, tower.config
    ends = torch.tensor([0, *lengths], device=device).cumsum(0, dtype=torch.int32)
    query, key, value = torch.randn(
        3, 1, config.num_heads, sum(lengths), config.hidden_size // config.num_heads, device=device, dtype=dtype
    )

    def attend(groups: list[FrameGroup] | None) -> Tensor:
        frames = None if groups is None else PackedFrames(ends, groups)
        found, _ = packed_attention(
            None, query, key, value, cu_seq_lens_q=ends, max_length_q=max(lengths), frames=frames
        )
        return found

    def loop() -> Tensor:
        frames = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*frame).transpose(1, 2) for frame in frames], dim=1)

    ways: dict[str, Callable[[], Any]] = {"loop": loop, "by length": lambda: attend(frame_groups(lengths, device))}
    if device.type == "cuda" and vision.HAS_VARLEN:
        ways["variable length"] = lambda: attend(None)
    return {way: timing.record() for way, timing in in_turn(ways, device, rounds=rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also time the tower with compiled blocks")
    parser.add_argument("--out", help="folder of the result")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    size, dtype = ("qwen3vl_4b", torch.bfloat16) if cuda else ("midsize", torch.float32)
    towers = Towers.build(size, device, dtype, args.compile)
    results: dict[str, Any] = {}
    for name, images in cases(cuda).items():
        try:
            results[name] = {**measure(images, towers, args.rounds), "bar": BARS.get(name) if cuda else 1.0}
        except Exception as error:  # the other cases' results stay
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    write_result(f"vision_{device.type}", {"model": size, "dtype": str(dtype), "cases": results}, args.out)
    for name, result in results.items():
        print(name, line(result))


def line(result: dict[str, Any]) -> str:
    """One case for the terminal."""
    if "error" in result:
        return result["error"]
    speedups = [result[key] for key in ("speedup", "speedup_of_tower")]
    ratios = ", ".join("failed" if s is None else f"{s['ratio']:.2f} x" for s in speedups)
    attention = {way: t.get("median_seconds") for way, t in result["attention_of_one_layer"].items()}
    seconds = {way: t.get("median_seconds", t.get("error")) for way, t in result["ways"].items()}
    return (
        f"with positions, tower alone: {ratios}; outputs agree: {result['outputs_agree']} "
        f"({result['relative_error']:.1e}); seconds {seconds}; attention of one layer {attention}"
    )


if __name__ == "__main__":
    main()
