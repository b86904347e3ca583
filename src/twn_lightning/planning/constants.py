"""How fast devices are and how long items are: constants.yaml, which names the source of every number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.planning.work import Kind, Load, Work
from twn_lightning.settings import ModelSettings

FILE = Path(__file__).with_name("constants.yaml")
GIB = 2**30


@dataclass(frozen=True)
class Rate:
    """Speed of one kind of work."""

    share: float
    """Of the device's rate for large matrix products."""
    seconds_per_layer: float = 0.0
    """Fixed cost of calling a layer."""


@dataclass(frozen=True)
class Device:
    """One device, and how several are connected."""

    name: str
    description: str
    memory_gib: float
    reserved_gib: float
    """Taken by the runtime, or lost between the allocator's blocks."""
    matmul_tflops: float
    memory_gb_per_second: float
    rates: Mapping[Kind, Rate]
    seconds_per_item: float
    """To turn an item into tokens and patches, where no loader's workers do."""
    checkpointing: float
    """Time of a training pass with activation checkpointing, relative to one without."""
    dropout_mask_bytes: int | None
    """Of one value's dropout mask; None: as many as the value has."""
    gb_per_second_within_node: float
    gb_per_second_across_nodes: float
    devices_per_node: int
    sources: tuple[str, ...] = field(default=(), repr=False)
    """Where the numbers come from, and how far predictions were off where both are known."""

    @property
    def unit(self) -> str:
        """What tables call one device."""
        return "CPU" if self.name == "cpu" else "GPU"

    def seconds(self, work: Work, checkpointing: bool = False) -> dict[str, float]:
        """Time of each kind of work."""
        found: dict[str, float] = {kind: self._seconds_of(kind, load) for kind, load in work.items()}
        if checkpointing and "train" in found:
            found["train"] *= self.checkpointing
        return found

    def _seconds_of(self, kind: Kind, load: Load) -> float:
        """The slower of arithmetic and memory, and the calls of layers."""
        rate = self.rates[kind]
        arithmetic = load.operations / (rate.share * self.matmul_tflops * 1e12)
        return max(arithmetic, load.bytes / (self.memory_gb_per_second * 1e9)) + load.layers * rate.seconds_per_layer

    def seconds_to_gather(self, size: float, world: int) -> float:
        """Time of an all-gather of `size` bytes that are spread over `world` devices."""
        speed = self.gb_per_second_within_node if world <= self.devices_per_node else self.gb_per_second_across_nodes
        return size * (world - 1) / world / (speed * 1e9)


@dataclass(frozen=True)
class Items:
    """What a stage reads: mean lengths in tokens. Assumptions, unless they are set to those of a corpus."""

    text_tokens: float
    """Of a query's prompt, besides visual ones."""
    visual_tokens: float
    """Of a query's image or video."""
    candidate_text_tokens: float
    candidate_visual_tokens: float
    """Mean over candidates with and without an image."""
    cot_tokens: float
    longest_cot: float
    """Of the rows that are read or decoded together, relative to the mean: the others are padded, or wait."""
    hard_negatives: float
    """That a pair has."""
    sources: float
    """Tasks or corpora that pairs come from: each has a pool of targets in stage 3."""
    corpus: float | None
    """Candidates that queries of a split are ranked among; None: as many as it has pairs."""

    @property
    def prompt_tokens(self) -> float:
        return self.text_tokens + self.visual_tokens

    @property
    def padded_cot(self) -> float:
        """Tokens of a batch's longest CoT."""
        return self.cot_tokens * self.longest_cot

    @property
    def candidate_tokens(self) -> float:
        return self.candidate_text_tokens + self.candidate_visual_tokens

    def scaled_to(self, tokens: float) -> Items:
        """The same proportions with `tokens` columns of prompt and padded CoT a query."""
        factor = tokens / (self.prompt_tokens + self.padded_cot)
        lengths = {name: getattr(self, name) * factor for name in vars(self) if name.endswith("_tokens")}
        return replace(self, **lengths)


@cache
def _constants() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def device_named(name: str) -> Device:
    """The constants of a device.

    Raises:
        ConfigError: one that constants.yaml does not know.
    """
    known = _constants()["devices"]
    if name not in known:
        raise ConfigError(unknown_name("device", name, known))
    entry = dict(known[name])
    entry["rates"] = {kind: Rate(**rate) for kind, rate in entry["rates"].items()}
    entry["sources"] = tuple(entry["sources"])
    return Device(name=name, **entry)


def usual_device(model: ModelSettings) -> Device:
    """What a backbone is made for: a GPU for Qwen3-VL, a CPU for the small ones."""
    return device_named("h100" if model.name.startswith("qwen3vl") else "cpu")


def items_of(model: ModelSettings) -> Items:
    """What items a backbone is assumed to read: the offline world's for the small ones."""
    family = "qwen3vl" if model.name.startswith("qwen3vl") else "nano"
    return Items(**_constants()["items"][family])
