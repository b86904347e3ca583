"""A backbone with random weights and its peers in plain transformers + PEFT: equal weights, adapters and prompts."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from experiments.benchmarks.random_qwen3vl import image_prompts, random_model
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.positions import prompt_positions
from twn_lightning.backbone.vision import pack_vision_attention, project_patches_linearly
from twn_lightning.data.sources import get_source
from twn_lightning.settings import AdapterSettings, DataSettings, InterfaceSettings, LoraSettings, ModelSettings
from twn_lightning.types import CotBatch, PromptBatch

ADAPTERS = AdapterSettings(reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), num_queries=16)
VISUAL_SIDE, TEXT_TOKENS = 32, 66
"""Patches of an image's side, 256 visual tokens; with the text 322 tokens a prompt."""
NANO_TOKENS = 64
"""Cap of nano's CoTs."""


@dataclass
class Decoders:
    """What the benchmarks of decoding compare."""

    ours: DualLoRABackbone
    peer: DualLoRABackbone
    """Plain: transformers' vision attention and generation, PEFT's LoRA; pass E reads everything again."""
    merged_peer: Any
    """The transformers model with the reasoning LoRA merged into its weights; None where it is not compared."""
    prompts: PromptBatch


@torch.no_grad()
def build_decoders(
    size: str, device: torch.device, dtype: torch.dtype, rows: int, *, merged_peer: bool = True
) -> Decoders:
    """Build a model and its peers, whose weights and adapters are drawn from one seed.

    Args:
        size: of the model, as in `random_qwen3vl`.
        device: of all of them; the 4B shape takes 9 GiB for each of the three models.
        dtype: of the frozen weights; adapters are fp32, as PEFT makes them.
        rows: prompts, one image each.
        merged_peer: whether to build that one too.
    """
    model, processor = random_model(size, device, dtype)
    model.generation_config.eos_token_id = None  # every way writes the same number of tokens
    plain = copy.deepcopy(model)
    merged = copy.deepcopy(model) if merged_peer else None
    pack_vision_attention(model.model.visual)
    project_patches_linearly(model.model.visual)
    ours = DualLoRABackbone(model, processor, ADAPTERS, InterfaceSettings(), size).to(device).eval()
    peer = DualLoRABackbone(plain, processor, ADAPTERS, InterfaceSettings("reencode"), size).to(device).eval()
    peer.adapters.fuse_linears(False)
    generator = torch.Generator(device).manual_seed(1)
    for name in ("reasoning", "embedding"):
        for parameter in ours.group_parameters(name):
            parameter.normal_(0.0, 0.02, generator=generator)
    peer.load_trainable_state(ours.trainable_state())
    if merged is not None:
        merge_reasoning(merged, ours)
    prompts = image_prompts(model, [(VISUAL_SIDE, VISUAL_SIDE)] * rows, TEXT_TOKENS, device)
    return Decoders(ours, peer, merged, prompts)


def nano_decoders(rows: int) -> Decoders:
    """The packaged nano backbone with its adapters, on a CPU: CoTs end where they do, each at its own length.

    Args:
        rows: test queries of its grid world.
    """
    adapters = AdapterSettings(init_from="nano")
    ours, peer = (load_backbone(ModelSettings(), adapters, InterfaceSettings()).eval() for _ in range(2))
    peer.interface = InterfaceSettings("reencode")
    peer.adapters.fuse_linears(False)
    peer.model.generation_config.eos_token_id = ours.processor.eot_id
    items = [pair.query for pair in get_source("nano", DataSettings()).pairs("test", rows)]
    return Decoders(ours, peer, None, ours.processor(items))


def merge_reasoning(model: nn.Module, backbone: DualLoRABackbone) -> None:
    """Add the reasoning LoRA of a backbone to the weights of a model without adapters."""
    matrices = backbone.adapters.named_parameters("reasoning")
    config = backbone.adapters.config("reasoning")
    weights = dict(model.named_parameters())
    for name in [name for name in matrices if name.endswith(".lora_A.weight")]:
        path = name.removesuffix(".lora_A.weight")
        weight = weights[f"{path}.weight"]
        delta = matrices[f"{path}.lora_B.weight"] @ matrices[name]
        weight.copy_(weight.float() + config.lora_alpha / config.r * delta)


@dataclass
class Generated:
    """What `generate` wrote, and how long it took to write all but the first token of each prompt."""

    ids_BT: Tensor
    seconds_after_first: float


class FirstToken(StoppingCriteria):
    """Notes the time at which a first token is there, and stops nothing: prompts are read until then."""

    def __init__(self, device: torch.device):
        self.device = device
        self.time: float | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        if self.time is None:
            self.time = self.now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@torch.no_grad()
def generate(model: Any, prompts: PromptBatch, tokens: int, *, processor: Any, static: bool = False) -> Generated:
    """Hugging Face's greedy generation of so many tokens per prompt.

    Args:
        model: a `Qwen3VLForConditionalGeneration`.
        prompts: left-padded.
        tokens: new ones; there is no stop.
        processor: knows padding and the ids that are not to be written.
        static: a cache of fixed size, for which transformers compiles the decoding step on a GPU.
    """
    options = {"cache_implementation": "static"} if static else {}
    first = FirstToken(prompts.input_ids_BL.device)
    written: Tensor = model.generate(
        input_ids=prompts.input_ids_BL,
        attention_mask=prompts.attention_mask_BL,
        mm_token_type_ids=prompts.mm_token_type_ids_BL,
        pixel_values=prompts.pixel_values,
        image_grid_thw=prompts.image_grid_thw,
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=processor.pad_id,
        suppress_tokens=[processor.image_id, processor.video_id],
        stopping_criteria=StoppingCriteriaList([first]),
        **options,
    )
    assert first.time is not None
    return Generated(written[:, prompts.input_ids_BL.shape[1] :], first.now() - first.time)


def peer_generate(decoders: Decoders, tokens: int, static: bool = False) -> Generated:
    """`generate` of the peer under its reasoning adapter."""
    with decoders.peer.adapters.pin("reasoning"):
        return generate(decoders.peer.model, decoders.prompts, tokens, processor=decoders.peer.processor, static=static)


def cots_until(ids_BT: Tensor, end_id: int | None) -> CotBatch:
    """What `generate` wrote, without what follows an end of turn; with no such id all of it."""
    mask_BT = torch.ones_like(ids_BT) if end_id is None else ((ids_BT == end_id).cumsum(1) == 0).long()
    return CotBatch(ids_BT, mask_BT, torch.ones_like(ids_BT[:, 0], dtype=torch.bool))


@torch.no_grad()
def reencode(peer: DualLoRABackbone, prompts: PromptBatch, cots: CotBatch) -> Tensor:
    """The generative embedding (B, D) as the peer makes it: prompt, CoT and queries are read again."""
    _, end_B = prompt_positions(prompts, peer.merge_size)
    state = ReasonerState(
        layers=[],
        prompt_mask_BL=prompts.attention_mask_BL,
        cot_mask_BT=cots.mask_BT,
        prompt_end_B=end_B,
        readable_end_B=end_B + cots.lengths_B,
        last_hidden_BD=peer.queries.new_zeros(len(cots), peer.hidden_size, dtype=peer.language_model.dtype),
        cot_logits_BTV=None,
        prompts=prompts,
        cots=cots,
    )
    found = peer.embed(state, ["generative"]).generative_BD
    assert found is not None
    return found
