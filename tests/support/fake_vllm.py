"""A stand-in for the public surface of vLLM that the package uses: `LLM`, `SamplingParams`, `LoRARequest`.

It samples with a backbone of its own, loaded from the folder it is given, under the adapter that a request names. As in
vLLM, an adapter is read from disk once and known by its id from then on; prompts come with one placeholder per image.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.layout import PEFT_PREFIX
from twn_lightning.backbone.loading import load_backbone
from twn_lightning.backbone.pixels import patchify_images
from twn_lightning.settings import AdapterSettings, InterfaceSettings, LoraSettings, ModelSettings
from twn_lightning.types import Media, PromptBatch


@dataclass
class SamplingParams:
    """Those of vLLM's parameters that the package sets."""

    n: int = 1
    seed: int | None = None
    temperature: float = 1.0
    max_tokens: int = 16
    logprobs: int | None = None
    bad_words: list[str] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    ignore_eos: bool = False
    stop_token_ids: list[int] = field(default_factory=list)


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Samples prompt by prompt."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.calls: list[tuple[list[dict[str, Any]], list[SamplingParams], LoRARequest]] = []
        self._backbone: DualLoRABackbone | None = None
        self._adapters: dict[int, dict[str, Tensor]] = {}

    def generate(
        self,
        prompts: list[dict[str, Any]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest,
    ) -> list[SimpleNamespace]:
        self.calls.append((prompts, sampling_params, lora_request))
        backbone = self._under(lora_request)
        return [self._sample(backbone, *pair) for pair in zip(prompts, sampling_params, strict=True)]

    def _under(self, request: LoRARequest) -> DualLoRABackbone:
        folder = Path(request.lora_path)
        if request.lora_int_id not in self._adapters:
            self._adapters[request.lora_int_id] = load_file(folder / "adapter_model.safetensors")
        if self._backbone is None:
            config = json.loads((folder / "adapter_config.json").read_text())
            lora = LoraSettings(config["r"], config["lora_alpha"])
            model = ModelSettings(name="fake", path=self.arguments["model"], dtype=self.arguments["dtype"])
            self._backbone = load_backbone(model, AdapterSettings(reasoning=lora), InterfaceSettings())
        with torch.no_grad():
            for name, parameter in self._backbone.adapters.named_parameters("reasoning").items():
                parameter.copy_(self._adapters[request.lora_int_id][PEFT_PREFIX + name])
        return self._backbone

    def _sample(self, backbone: DualLoRABackbone, prompt: dict[str, Any], wanted: SamplingParams) -> SimpleNamespace:
        batch = self._expanded(backbone, prompt)
        decoded = decode_cots(
            backbone,
            backbone.reason(batch),
            max_new_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            completions=wanted.n,
            generator=torch.Generator().manual_seed(wanted.seed or 0),
        )
        outputs = []
        for row, length in enumerate(decoded.cots.lengths_B.tolist()):
            ids = decoded.cots.ids_BT[row, :length].tolist()
            log_probs = decoded.log_probs_BT[row, :length].tolist()
            entries = [{i: SimpleNamespace(logprob=value)} for i, value in zip(ids, log_probs, strict=True)]
            outputs.append(SimpleNamespace(index=row, token_ids=ids, logprobs=entries))
        # vLLM promises no order of the completions of a prompt.
        return SimpleNamespace(prompt_token_ids=batch.input_ids_BL[0].tolist(), outputs=outputs[::-1])

    def _expanded(self, backbone: DualLoRABackbone, prompt: dict[str, Any]) -> PromptBatch:
        processor = backbone.processor
        images: list[Image.Image] = prompt.get("multi_modal_data", {}).get("image", [])
        media = [("fake", Media("image", np.asarray(image))) for image in images]
        patches = patchify_images(media, processor.patches)
        counts = iter((patches.grid_thw.prod(-1) // processor.patches.merge_size**2).tolist() if patches else [])
        ids = [
            token
            for given in prompt["prompt_token_ids"]
            for token in [given] * (next(counts) if given == processor.image_id else 1)
        ]
        ids_BL = torch.tensor([ids])
        is_image_BL = (ids_BL == processor.image_id).long()
        return PromptBatch(ids_BL, torch.ones_like(ids_BL), is_image_BL, patches, None, (len(images),), (0,))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import vllm` find this module's classes."""
    package, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.__dict__.update(LLM=LLM, SamplingParams=SamplingParams)
    request.__dict__.update(LoRARequest=LoRARequest)
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
