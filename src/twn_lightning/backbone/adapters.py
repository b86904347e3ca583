"""The LoRA adapters on the frozen language model: injecting them, and switching between them.

PEFT's own `set_adapter` resets `requires_grad` (and takes milliseconds): under a wrapped strategy that silently trains
the wrong parameters. `AdapterSet.pin` therefore sets PEFT's private switches itself. This file is the only one that
touches them; a test fails loudly if a new PEFT release renames them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from twn_lightning import checks
from twn_lightning.backbone.lora_linear import LoraLinear, fuse
from twn_lightning.errors import AdapterError, unknown_name
from twn_lightning.settings import AdapterSettings, LoraSettings

REASONING, EMBEDDING, REFERENCE = "reasoning", "embedding", "reasoning_reference"
TARGET_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYER_REGEX = r".*\blanguage_model\.layers\.\d+"
TARGET_REGEX = r".*\blanguage_model\.layers\.\d+\.(?:self_attn|mlp)\.(?:" + "|".join(TARGET_LINEARS) + ")"
"""Anchored at `language_model`, else the vision tower gets LoRA too."""


def lora_settings(settings: AdapterSettings) -> dict[str, LoraSettings]:
    """The adapters an arrangement trains: two, or one at their total rank.

    Returns:
        adapter name -> rank and alpha. `shared` sums both, which keeps the scaling alpha / r where the two agree.
    """
    if settings.arrangement == "shared":
        rank = settings.reasoning.r + settings.embedding.r
        return {REASONING: LoraSettings(rank, settings.reasoning.alpha + settings.embedding.alpha)}
    return {REASONING: settings.reasoning, EMBEDDING: settings.embedding}


class AdapterSet:
    """The adapters of one model, by name.

    Args:
        model: the frozen transformers model; its language model's linears are wrapped in place.
        settings: ranks, alphas, dropout and arrangement.

    Raises:
        AdapterError: no linear matched, or one outside the language model did.
    """

    def __init__(self, model: nn.Module, settings: AdapterSettings):
        self.settings = settings
        self._model = model
        self._configs: dict[str, LoraConfig] = {}
        self._layers: dict[str, LoraLayer] = {}
        self._pinned: str | None = REASONING
        for name, lora in lora_settings(settings).items():
            self._inject(name, lora)
        self._switch(REASONING)

    @property
    def names(self) -> list[str]:
        return list(self._configs)

    @property
    def pinned(self) -> str | None:
        """The adapter in use now; None is the bare backbone."""
        return self._pinned

    @property
    def modules_per_tower(self) -> dict[str, int]:
        """Adapted linears in the language model and in the vision tower."""
        language = sum("language_model" in path for path in self._layers)
        return {"language": language, "vision": len(self._layers) - language}

    def config(self, name: str) -> LoraConfig:
        return self._configs[self.resolve(name)]

    def resolve(self, name: str) -> str:
        """The adapter that plays a role: in the shared arrangement `embedding` is `reasoning`."""
        if name == EMBEDDING and EMBEDDING not in self._configs:
            return REASONING
        if name not in self._configs:
            raise AdapterError(unknown_name("adapter", name, self._configs))
        return name

    def _inject(self, name: str, lora: LoraSettings) -> None:
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=self.settings.dropout,
            target_modules=TARGET_REGEX,
            bias="none",
        )
        trainable = {id(p) for p in self._model.parameters() if p.requires_grad}
        training = self._model.training
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, self._model, name)
        self._model.train(training)
        self._configs[name] = config
        self._layers = {path: m for path, m in self._model.named_modules() if isinstance(m, LoraLayer)}
        self._check_targets(name)
        for layer in self._layers.values():
            fuse(layer)
        for parameter in self.parameters(name):
            parameter.data = parameter.data.float()
        own = {id(p) for p in self.parameters(name)}
        for parameter in self._model.parameters():
            parameter.requires_grad_(id(parameter) in trainable or (id(parameter) in own and name != REFERENCE))

    def _check_targets(self, name: str) -> None:
        """Every language layer has its seven linears adapted, and nothing else is.

        Raises:
            AdapterError: another number.
        """
        layers = sum(re.fullmatch(LAYER_REGEX, path) is not None for path, _ in self._model.named_modules())
        towers, expected = self.modules_per_tower, len(TARGET_LINEARS) * layers
        if not layers or towers["vision"] or towers["language"] != expected:
            checks.report(
                "lora_targets",
                f"adapter '{name}' was put on {towers['language']} language and {towers['vision']} vision linears: "
                f"expected {expected} ({', '.join(TARGET_LINEARS)} of {layers} layers) "
                f"and none; the pattern is {TARGET_REGEX}. Does model.path lead to a Qwen3-VL?",
                AdapterError,
            )

    def _switch(self, name: str | None) -> None:
        self._pinned = name
        for layer in self._layers.values():
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]

    def cast_inputs(self, wanted: bool) -> None:
        """Whether PEFT casts what a LoRA reads to the LoRA's float32. Under autocast that is a detour: its products
        are computed in the lower precision anyway.
        """
        for layer in self._layers.values():
            layer.cast_input_dtype_enabled = wanted

    def fuse_linears(self, wanted: bool = True) -> None:
        """Whether plain linears run as `LoraLinear`, as they do from the start, or with PEFT's own forward."""
        for layer in self._layers.values():
            if isinstance(layer, LoraLinear):
                layer.fused = wanted

    @contextmanager
    def pin(self, name: str | None) -> Iterator[None]:
        """Run the body under one adapter (None: the bare backbone), whatever was pinned before; nests.

        Touches neither `requires_grad` nor any tensor. A backward pass recomputing a checkpointed layer pins again.
        """
        previous = self._pinned
        wanted = None if name is None else self.resolve(name)
        if wanted == previous:
            yield
            return
        self._switch(wanted)
        try:
            yield
        finally:
            self._switch(previous)

    def named_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Plain names (`<module>.lora_A.weight`) to the LoRA matrices of one adapter."""
        found = {}
        for path, layer in self._layers.items():
            for matrix in ("lora_A", "lora_B"):
                found[f"{path}.{matrix}.weight"] = getattr(layer, matrix)[name].weight
        return found

    def parameters(self, name: str) -> list[nn.Parameter]:
        return list(self.named_parameters(name).values())

    def train(self, mode: bool) -> None:
        """LoRA's dropout and precision follow train mode, although the backbone around it stays in eval mode."""
        for layer in self._layers.values():
            layer.lora_dropout.train(mode)
            if isinstance(layer, LoraLinear):
                layer.rounds_adapter = not mode

    @torch.no_grad()
    def add_reference(self) -> None:
        """Add (or refresh) `reasoning_reference`: a frozen copy of the reasoning adapter as it is now."""
        if REFERENCE not in self._configs:
            self._inject(REFERENCE, lora_settings(self.settings)[REASONING])
            self._switch(self._pinned)
        source = self.named_parameters(REASONING)
        for key, parameter in self.named_parameters(REFERENCE).items():
            parameter.copy_(source[key])


def full_tensor(tensor: Tensor) -> Tensor:
    """A plain copy of a parameter on the CPU, gathered first where a strategy has sharded it."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().clone()


@torch.no_grad()
def assign(parameter: nn.Parameter, value: Tensor) -> None:
    """Copy a plain tensor into a parameter, sharded or not."""
    value = value.to(parameter.device, parameter.dtype)
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def check_tensors(what: str, found: dict[str, Tensor], wanted: dict[str, torch.Size], strict: bool = True) -> None:
    """Compare keys and shapes.

    Raises:
        AdapterError: naming the first few offenders of each kind. Without the check `adapter_keys` only shapes count.
    """
    missing = sorted(wanted.keys() - found.keys())
    unexpected = sorted(found.keys() - wanted.keys())
    wrong = [
        f"{k}: found {tuple(found[k].shape)}, expected {tuple(wanted[k])}"
        for k in sorted(wanted.keys() & found.keys())
        if found[k].shape != wanted[k]
    ]
    problems = [("wrong shape", wrong)]
    if strict:
        problems += [("missing", missing), ("unexpected", unexpected)]
    lines = [
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for kind, names in problems
        if names
    ]
    message = f"{what} does not fit these adapters. " + "; ".join(lines)
    if wrong:
        raise AdapterError(message)
    if lines:
        checks.report("adapter_keys", message, AdapterError)


def check_update(what: str, tensors: dict[str, Tensor]) -> None:
    """Report an adapter whose second factors are all zero: with it the backbone computes what it does without."""
    second = [tensor for key, tensor in tensors.items() if "lora_B" in key]
    if second and not any(bool(tensor.any()) for tensor in second):
        checks.report(
            "loaded_weights",
            f"{what} changes nothing: all {len(second)} of its lora_B matrices are zero, as before the first step of "
            "training. Was it exported before training?",
        )
