"""Rollout engines against our own forward pass: do completions come from the policy that trains?

    python -m experiments.benchmarks.rollout_engines --dtype float32      # needs the extra vllm; also bfloat16

A random Qwen3-VL with a small vocabulary and steep logits is saved to a folder and loaded from there. Each engine
samples for prompts with and without images, under two versions of the reasoning adapter; the forward pass reads the
completions. Mean absolute differences of log-probabilities are reported for the engine's adapter and for the weights
before it, which at first are the bare backbone's. Fails where the one is above the tolerance that stage 3 allows, the
other is not, or a visual token was sampled. Writes rollout_engines_<dtype>_<device>.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import packages_distributions, version
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from experiments.benchmarks.pairs import write_result
from experiments.benchmarks.random_qwen3vl import MERGE, PATCH, draw_weights, qwen3vl_config
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.pixels import PatchSettings
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.objectives import token_log_probs
from twn_lightning.settings import DataSettings, ModelSettings, RLSettings, Settings
from twn_lightning.stages.rollout_engine import LOG_PROB_TOLERANCE, Completions, RolloutEngine, build_rollout_engine
from twn_lightning.types import Item, Media, PromptBatch

COMPLETIONS, NEW_TOKENS = 4, 32
SIDES = (32, 64, 96)
"""Of the images, in pixels."""


def save_model(folder: str) -> None:
    """A random model with the tokenizer's small vocabulary: visual tokens would be sampled if they were allowed."""
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = tiny_tokenizer()
    config = qwen3vl_config("midsize", tokenizer)
    config.text_config.vocab_size = len(tokenizer)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False  # tied, it repeats its last token
    model = Qwen3VLForConditionalGeneration(config)
    draw_weights(model, seed=0)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # logits that differ by several nats
    model.save_pretrained(folder)
    pixels, half = (PATCH * MERGE) ** 2, (0.5, 0.5, 0.5)
    PromptProcessor(tokenizer, PatchSettings(PATCH, MERGE, 2, pixels, 1024 * pixels, half, half)).save(folder)


def draw_adapter(backbone: DualLoRABackbone, seed: int) -> None:
    """Another reasoning adapter, large enough to change what is sampled."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.adapters.parameters("reasoning"):
            parameter.copy_(0.03 * torch.randn(parameter.shape, generator=generator))


def make_items(count: int) -> list[Item]:
    """Prompts of different lengths with no, one or two images."""
    random = np.random.default_rng(0)

    def image() -> Media:
        height, width = random.choice(SIDES, 2)
        return Media("image", random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    return [
        Item(f"item-{i}", "Describe:", "word " * (1 + 3 * i), tuple(image() for _ in range(i % 3)))
        for i in range(count)
    ]


@torch.no_grad()
def read(backbone: DualLoRABackbone, prompts: PromptBatch, found: Completions, adapter: str) -> Tensor:
    """Teacher-forced log-probabilities (B, T) of completions under an adapter."""
    with backbone.pin(adapter):
        state = backbone.reason(prompts, found.cots, want_logits=True, completions=COMPLETIONS)
    assert state.cot_logits_BTV is not None
    return token_log_probs(state.cot_logits_BTV[:, :-1], found.cots.ids_BT, temperature=1.0)


def gap(found: Completions, read_BT: Tensor) -> dict[str, float]:
    """Mean and largest absolute difference per token."""
    differences = (found.log_probs_BT - read_BT).abs()[found.cots.mask_BT.bool()]
    return {"mean": float(differences.mean()), "largest": float(differences.max())}


def compare(engine: RolloutEngine, backbone: DualLoRABackbone, items: list[Item]) -> dict[str, Any]:
    """Two versions of the adapter: the gap of each, and the gap to the weights before it."""
    prompts = backbone.processor(items).to(backbone.device)
    visual = torch.tensor([backbone.processor.image_id, backbone.processor.video_id], device=backbone.device)
    results: dict[str, Any] = {}
    for number in range(2):
        backbone.add_reference()  # keeps the weights before
        draw_adapter(backbone, seed=number)
        engine.take_weights(number)
        found = engine.generate(prompts, items, torch.Generator(backbone.device).manual_seed(number))
        results[f"version {number}"] = {
            "tokens": int(found.cots.mask_BT.sum()),
            "visual tokens": int(torch.isin(found.cots.ids_BT, visual).sum()),
            "closed": int(found.cots.closed_B.sum()),
            "distinct completions": len({tuple(row) for row in found.cots.ids_BT.tolist()}),
            "its adapter": gap(found, read(backbone, prompts, found, "reasoning")),
            "the weights before": gap(found, read(backbone, prompts, found, "reasoning_reference")),
        }
    return results


def failures(results: dict[str, Any], tolerance: float) -> list[str]:
    """What makes an engine unusable."""
    found = []
    for name, result in results.items():
        if not result["its adapter"]["mean"] <= tolerance:
            found.append(f"{name}: its log-probabilities are {result['its adapter']['mean']:.3g} off on average")
        if result["the weights before"]["mean"] <= tolerance:
            found.append(f"{name}: a tolerance of {tolerance} would not notice the weights before")
        if result["visual tokens"]:
            found.append(f"{name}: {result['visual tokens']} visual tokens were sampled")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder of the result; by default this one")
    chosen = parser.parse_args()
    tolerance = LOG_PROB_TOLERANCE[getattr(torch, chosen.dtype)]
    packages = {package: version(package) for package in packages_distributions().get("vllm", [])}
    record: dict[str, Any] = {"packages": packages, "dtype": chosen.dtype, "tolerance": tolerance}
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder)
        for name in get_args(get_type_hints(RLSettings)["rollout_engine"]):
            settings = Settings(
                stage=RLSettings(rollout_engine=name, completions_per_prompt=COMPLETIONS),
                model=ModelSettings(name="random", path=folder, dtype=chosen.dtype),
                data=DataSettings(max_new_tokens=NEW_TOKENS),
            )
            backbone = load_backbone(settings.model, settings.adapters, settings.interface, chosen.device)
            record[name] = compare(build_rollout_engine(settings, backbone), backbone, make_items(chosen.prompts))
            problems += [f"{name}, {problem}" for problem in failures(record[name], tolerance)]
    write_result(f"rollout_engines_{chosen.dtype}_{chosen.device}", {**record, "failures": problems}, chosen.out)
    print("\n".join(problems) or "no failure")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
