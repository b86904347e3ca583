"""What samples the completions of stage 3: the protocol, the built-in decoder, and the check that both sides agree.

Shape letters: B completions (prompt-major), T completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.errors import RolloutError
from twn_lightning.settings import RLSettings, Settings
from twn_lightning.strategy import sum_over_ranks
from twn_lightning.types import CotBatch, Item, PromptBatch

LOG_PROB_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}
"""Mean absolute difference per token between what an engine reports and our own forward pass, by the precision of the
latter. experiments/benchmarks/rollout_engines.py measures them: .000002 and .025 with steep random logits."""


@dataclass
class Completions:
    """What an engine sampled: the same number of completions of every prompt, prompt-major."""

    cots: CotBatch
    log_probs_BT: Tensor
    """fp32 log-probabilities of the sampled tokens at the sampling temperature, 0 at padding. The ban on visual tokens
    is not in them, so they equal the teacher-forced ones."""
    state: ReasonerState | None
    """The reasoner's state grown over the completions, where the engine ends with it; None: read them again."""


class RolloutEngine(Protocol):
    """Samples completions from the policy that trains; how many and how long is settled when it is built."""

    def take_weights(self, version: int) -> None:
        """Sample from the reasoning adapter as it is now.

        Args:
            version: names these weights, from 0; other weights need another one.
        """
        ...

    def generate(self, prompts: PromptBatch, items: Sequence[Item], generator: torch.Generator) -> Completions:
        """Sample completions of some prompts with the weights taken last; visual tokens are never among them.

        Args:
            prompts: the rendered prompts, on the backbone's device.
            items: what they were rendered from, in the same order.
            generator: random numbers; equally seeded ones give equal completions.
        """
        ...


class BuiltinEngine:
    """Decodes with the backbone that trains.

    Args:
        backbone: samples under its reasoning adapter.
        stage: completions per prompt and sampling temperature.
        max_new_tokens: the cap on a completion.
    """

    def __init__(self, backbone: DualLoRABackbone, stage: RLSettings, max_new_tokens: int) -> None:
        self.backbone, self.stage, self.max_new_tokens = backbone, stage, max_new_tokens

    def take_weights(self, version: int) -> None:
        """The decoder reads the weights where they train: there is nothing to bring over."""

    def generate(self, prompts: PromptBatch, items: Sequence[Item], generator: torch.Generator) -> Completions:
        """See `RolloutEngine.generate`."""
        decoded = decode_cots(
            self.backbone,
            self.backbone.reason(prompts),
            max_new_tokens=self.max_new_tokens,
            temperature=self.stage.sampling_temperature,
            completions=self.stage.completions_per_prompt,
            generator=generator,
        )
        return Completions(decoded.cots, decoded.log_probs_BT, decoded.state)


def build_rollout_engine(settings: Settings, backbone: DualLoRABackbone) -> RolloutEngine:
    """The engine that `stage.rollout_engine` names.

    Raises:
        ConfigError: its package is missing, or it cannot load this backbone.
    """
    assert isinstance(settings.stage, RLSettings)
    if settings.stage.rollout_engine == "builtin":
        return BuiltinEngine(backbone, settings.stage, settings.data.max_new_tokens)
    from twn_lightning.stages.vllm_engine import VLLMEngine

    return VLLMEngine(backbone, settings)


def check_log_probs(sampled_BT: Tensor, read_BT: Tensor, mask_BT: Tensor, dtype: torch.dtype, engine: str) -> None:
    """Compare what an engine says of its completions with what the policy that trains says of them.

    Args:
        sampled_BT: the engine's log-probabilities, fp32.
        read_BT: those of a forward pass of the policy, fp32.
        mask_BT: 1 at tokens.
        dtype: what that pass computes in; the tolerance depends on it.
        engine: the engine's name, for the message.

    Raises:
        RolloutError: over the tokens of all ranks the mean absolute difference is above the tolerance, or not a number.
    """
    differences = (sampled_BT - read_BT).abs()[mask_BT.bool()].double()
    sums = torch.stack([differences.sum(), torch.tensor(float(differences.numel())).to(differences)])
    total, tokens = sum_over_ranks(sums, sums.device).tolist()
    mean, tolerance = total / max(tokens, 1), LOG_PROB_TOLERANCE[dtype]
    if not mean <= tolerance:
        raise RolloutError(
            f"the rollout engine '{engine}' does not sample from the policy that trains: over {int(tokens)} tokens its "
            f"log-probabilities differ from those of our own forward pass by {mean:.3g} on average, allowed are "
            f"{tolerance} in {str(dtype).removeprefix('torch.')}. It runs other weights (a stale or missing adapter, "
            "another backbone or revision) or prepares images differently. Compare model.path, model.revision and "
            "model.dtype with what it has loaded, or set stage.rollout_engine=builtin"
        )
