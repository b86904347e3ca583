"""What decides a benchmark number besides the model, as explicit switches; recorded in every score file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from twn_lightning.benchmark.registry import VERSIONS
from twn_lightning.errors import ConfigError, unknown_name

Prompts = Literal["vlm2vec", "qwen3"]
Ties = Literal["pessimistic", "optimistic", "first"]
NdcgPairing = Literal["correct", "compat"]
Mode = Literal["discriminative", "generative", "adaptive"]


@dataclass(frozen=True)
class Protocol:
    """One way of running MMEB-V2. Defaults: VLM2Vec-V2's, with correct graded NDCG and ties against the system."""

    prompts: Prompts = "vlm2vec"
    """vlm2vec: instructions on both sides; qwen3: on queries only, reworded, and NExTQA's candidates have letters."""
    version: str = "2.1"
    """Of the benchmark's data: page-level labels changed in 2.1, MomentSeeker in 2.0.1."""
    num_frames: int = 8
    """Frames of a video, evenly spaced over those saved."""
    min_pixels: int | None = None
    """Smallest area of an image in pixels; None: the processor's."""
    max_pixels: int | None = None
    """Largest area of an image in pixels; None: the processor's."""
    ndcg_pairing: NdcgPairing = "correct"
    """compat: pair grades with documents in Python's set order, as the reference evaluator does (integer ids only)."""
    ties: Ties = "pessimistic"
    """Candidates of equal score: irrelevant ones first, relevant ones first, or in the order they are listed."""
    query_mode: Mode = "adaptive"
    candidate_mode: Mode = "discriminative"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        problems = []
        for field in fields(self):
            choices = VERSIONS if field.name == "version" else get_args(hints[field.name])
            value = getattr(self, field.name)
            if choices and isinstance(choices[0], str) and value not in choices:
                problems.append(unknown_name(f"protocol.{field.name}", str(value), choices))
        if self.num_frames < 1:
            problems.append(f"protocol.num_frames must be at least 1, got {self.num_frames}")
        if problems:
            raise ConfigError(problems)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def digest(self) -> str:
        """Eight hex digits over all switches."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:8]


PROTOCOLS = {
    "vlm2vec": Protocol(max_pixels=28 * 28 * 1280, min_pixels=28 * 28 * 4),
    "qwen3": Protocol(prompts="qwen3", num_frames=64, max_pixels=1800 * 32 * 32),
    "nano": Protocol(),
}
"""Named protocols: VLM2Vec-V2's evaluation, that of the Qwen3-VL-Embedding report (64 frames, 1,800 tokens), and
MMEB-nano's, whose images are of the size they are drawn in."""


def get_protocol(protocol: str | Protocol, **changes: Any) -> Protocol:
    """A named protocol, or the one given, with some switches changed.

    Raises:
        ConfigError: unknown name or value.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            raise ConfigError(unknown_name("protocol", protocol, PROTOCOLS))
        protocol = PROTOCOLS[protocol]
    return replace(protocol, **changes)
