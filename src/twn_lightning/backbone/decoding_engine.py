"""What decodes the CoTs of a backbone: a model for single steps, how its steps are executed, and which is chosen.

`fused` is the default where it can run; it equals `plain` up to rounding. `merged` reads fewer weights, at the price of
a copy of the language model's linears and of rounding W + B A to their dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch

from twn_lightning.backbone.decoding_rows import TokenRules
from twn_lightning.backbone.decoding_steps import Buffers, DirectSteps, RecordedSteps
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.backbone.step_model import PlainModel, StepModel, why_only_plain
from twn_lightning.errors import ConfigError, unknown_name

DecodingWay = Literal["plain", "fused", "merged"]
KEPT_SHARE = 0.05
"""Of the GPU's memory: larger buffers are freed after a run, and what was recorded over them."""


class DecodingEngine:
    """Runs steps, and keeps buffers and recordings for the next run where they are worth it.

    Args:
        model: runs one token per row.
        steps: executes the model's steps.
    """

    def __init__(self, model: PlainModel | StepModel, steps: DirectSteps):
        self.model, self.steps = model, steps
        self._kept: Buffers | None = None
        self._rules: dict[float, TokenRules] = {}

    def rules(self, backbone: DualLoRABackbone, temperature: float) -> TokenRules:
        """The rules at a temperature: the same tensors in every run, as recordings need them."""
        if temperature not in self._rules:
            self._rules[temperature] = TokenRules.of(backbone, temperature)
        return self._rules[temperature]

    def buffers(self, state: ReasonerState, new_tokens: int) -> Buffers:
        """Buffers with room for a run: those of an earlier one where they have it."""
        rows = self.steps.rows(len(state))
        columns = self.steps.columns(state.prompt_mask_BL.shape[1] + new_tokens)
        found = self._kept
        if found is None or rows > found.capacity[0] or columns > found.capacity[1]:
            self.release()
            found = self._kept = Buffers(state, rows, columns, self.model.dtype)
        return found

    def release(self) -> None:
        """Free the buffers and what was recorded over them."""
        self._kept = None
        self.steps.forget()

    def end_run(self) -> None:
        """Free buffers that serve no other run or are too large to be kept."""
        if self._kept is not None and not self._worth_keeping(self._kept):
            self.release()

    def _worth_keeping(self, buffers: Buffers) -> bool:
        if not isinstance(self.steps, RecordedSteps):
            return False
        device = buffers.cache.column.device
        if device.type != "cuda":
            return True
        return buffers.num_bytes <= KEPT_SHARE * torch.cuda.get_device_properties(device).total_memory


_FUSED: WeakKeyDictionary[DualLoRABackbone, DecodingEngine] = WeakKeyDictionary()
_CHOSEN: WeakKeyDictionary[DualLoRABackbone, DecodingEngine] = WeakKeyDictionary()


def engine_for(backbone: DualLoRABackbone) -> DecodingEngine:
    """The engine chosen by `decoding_with`, else `fused` where it can run, else `plain`; with the current adapter.

    Raises:
        ConfigError: an engine was chosen and another reasoner than the one it merged is pinned.
    """
    engine = _CHOSEN.get(backbone)
    if engine is None and why_only_plain(backbone):
        return make_engine(backbone, "plain")
    if engine is None:
        engine = _FUSED.get(backbone)
        if engine is None or not _fits(engine, backbone):
            engine = _FUSED[backbone] = make_engine(backbone, "fused")
    if isinstance(engine.model, StepModel):
        engine.model.follow(backbone.reasoner)
    return engine


@contextmanager
def decoding_with(backbone: DualLoRABackbone, way: DecodingWay | DecodingEngine) -> Iterator[None]:
    """Decode a backbone's CoTs in one way inside the block; by default it is `fused` where that can run.

    Args:
        backbone: its weights and adapters stay where and, for `merged`, as they are inside the block.
        way: as for `make_engine`, whose engine is freed at the end; or an engine.

    Raises:
        ConfigError: an unknown way, or one that this backbone cannot be decoded in.
    """
    previous = _CHOSEN.get(backbone)
    _CHOSEN[backbone] = way if isinstance(way, DecodingEngine) else make_engine(backbone, way)
    try:
        yield
    finally:
        del _CHOSEN[backbone]
        if previous is not None:
            _CHOSEN[backbone] = previous


def make_engine(backbone: DualLoRABackbone, way: DecodingWay, *, recorded: bool | None = None) -> DecodingEngine:
    """An engine for `decoding_with`.

    Args:
        backbone: whose weights it shares.
        way: `plain` runs the backbone through PEFT, `fused` applies LoRA in few products, `merged` multiplies by a
            merged copy of the weights.
        recorded: replay steps as CUDA graphs; by default on CUDA, and never for `plain`.

    Raises:
        ConfigError: an unknown way, or one that this backbone cannot be decoded in.
    """
    if way not in get_args(DecodingWay):
        raise ConfigError(unknown_name("way of decoding", way, get_args(DecodingWay)))
    if way == "plain":
        return DecodingEngine(PlainModel(backbone), DirectSteps())
    if recorded is None:
        recorded = backbone.device.type == "cuda"
    return DecodingEngine(StepModel(backbone, way == "merged"), RecordedSteps() if recorded else DirectSteps())


def _fits(engine: DecodingEngine, backbone: DualLoRABackbone) -> bool:
    return isinstance(engine.model, StepModel) and engine.model.fits(backbone.reasoner)
