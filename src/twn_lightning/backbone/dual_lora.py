"""DualLoRABackbone: one frozen Qwen3-VL, a reasoning LoRA, an embedding LoRA, and K learnable queries.

Pass R (reasoning adapter) reads the prompt and its CoT and leaves a key-value cache. Pass E (embedding adapter) runs
the K queries over that cache; their mean is the embedding. Vision runs once, in pass R (`reencode` reads again).

Shape letters: B rows, L padded prompt length, T padded CoT length, S = L + T, K queries, M query tokens of one pass,
D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twn_lightning.backbone import layout
from twn_lightning.backbone.adapters import (
    EMBEDDING,
    REASONING,
    REFERENCE,
    AdapterSet,
    assign,
    check_tensors,
    full_tensor,
)
from twn_lightning.backbone.checkpointing import checkpoint_layers
from twn_lightning.backbone.compiling import compile_layers
from twn_lightning.backbone.interface import ReasonerState
from twn_lightning.backbone.parameters import LanguageModelShape, added_parameter_ratio_for, added_parameters
from twn_lightning.backbone.passes import TwoPasses
from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.settings import AdapterSettings, InterfaceSettings
from twn_lightning.types import CotBatch, EmbeddingMode, EmbeddingOutput, PromptBatch

__all__ = ["DualLoRABackbone", "added_parameter_ratio_for"]

GROUPS = (REASONING, EMBEDDING, "queries")


class DualLoRABackbone(TwoPasses):
    """The frozen backbone with its trained parts.

    Args:
        model: a transformers `Qwen3VLForConditionalGeneration`; frozen and kept in eval mode from here on.
        processor: renders items for it.
        adapters: ranks, arrangement, prefix adapter, queries.
        interface: what pass E sees, and whether activations are recomputed.
        name: what the backbone is called in saved adapters, such as `nano` or a hub id.

    Raises:
        ConfigError: Hugging Face's gradient checkpointing is on.

    Reference: arXiv 2605.14448; the reading of it in docs/method.md, section 2.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: PromptProcessor,
        adapters: AdapterSettings,
        interface: InterfaceSettings,
        name: str = "unnamed",
    ):
        super().__init__()
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise ConfigError(
                "the model has Hugging Face's gradient checkpointing on, which drops the KV cache that the embedder "
                "reads: call model.gradient_checkpointing_disable(), and set interface.activation_checkpointing=true"
            )
        self.model = model.requires_grad_(False)
        self.processor = processor
        self.settings = adapters
        self.interface = interface
        self.name = name
        config: Any = model.config
        tokenizer = processor.tokenizer
        tokenizer.model_max_length = min(tokenizer.model_max_length, config.text_config.max_position_embeddings)
        self.hidden_size: int = config.text_config.hidden_size
        self.merge_size: int = config.vision_config.spatial_merge_size
        self.shape = LanguageModelShape.from_config(config)
        self.digest = layout.backbone_digest(model)
        self.queries = nn.Parameter(torch.randn(adapters.num_queries, self.hidden_size) * adapters.query_std)
        self.adapters = AdapterSet(model, adapters)
        if interface.compile_layers:
            compile_layers(self.language_model.layers)
        if interface.activation_checkpointing:
            checkpoint_layers(self.language_model.layers, self.adapters)
        self.train(self.training)

    # --- the only doorway to the transformers submodules -------------------------------------------------------------

    def forward(self, operation: Literal["reason", "embed", "step", "logits"], **arguments: Any) -> Any:
        """Run one operation. FSDP2 shards at the module whose forward is called, so everything comes through here.

        Returns:
            Plain dictionaries of tensors, for a strategy's hooks to see; the public methods give them names.
        """
        operations: dict[str, Callable[..., dict[str, Any]]] = {
            "reason": self._reason,
            "embed": self._embed,
            "step": self._step,
            "logits": self._logits,
        }
        if operation not in operations:
            raise ConfigError(unknown_name("operation", operation, operations))
        return operations[operation](**arguments)

    def reason(
        self,
        prompts: PromptBatch,
        cots: CotBatch | None = None,
        *,
        want_logits: bool = False,
        completions: int = 1,
    ) -> ReasonerState:
        """Pass R: read prompts, and CoTs where given, under the reasoning adapter.

        Args:
            prompts: left-padded prompts with their pixels.
            cots: teacher-forced or generated CoTs, right-padded, `completions` per prompt, prompt-major.
            want_logits: also predict the next tokens, `cot_logits_BTV`.
            completions: CoTs of each prompt; the prompt is read once for all of them.

        Returns:
            The state that pass E and the decoder read, one row per CoT. Carries a graph where grad is enabled.
        """
        found = self("reason", prompts=prompts, cots=cots, want_logits=want_logits, completions=completions)
        if completions > 1:
            prompts = prompts.select([row for row in range(len(prompts)) for _ in range(completions)])
        return ReasonerState(
            layers=found["layers"],
            prompt_mask_BL=prompts.attention_mask_BL,
            cot_mask_BT=None if cots is None else cots.mask_BT,
            prompt_end_B=found["prompt_end"],
            readable_end_B=found["readable_end"],
            last_hidden_BD=found["last_hidden"],
            cot_logits_BTV=found.get("logits"),
            prompts=prompts,
            cots=cots,
        )

    def embed(
        self, state: ReasonerState, modes: Sequence[str | EmbeddingMode] = ("discriminative", "generative")
    ) -> EmbeddingOutput:
        """Pass E: run the queries over what the interface lets them read.

        Args:
            state: from `reason`, or grown by the decoder. Not modified.
            modes: `discriminative` reads the prompt, `generative` prompt and CoT; both together cost one pass.

        Returns:
            Unit-norm fp32 embeddings (B, D) for the modes asked for.

        Raises:
            ConfigError: an unknown mode, or `generative` of a state without CoTs.
        """
        names = [EmbeddingMode(m).value for m in modes]
        if not names or EmbeddingMode.ADAPTIVE.value in names:
            raise ConfigError(
                f"pass E embeds discriminative or generative, not {names or 'nothing'}: see encoding.encode"
            )
        if "generative" in names and state.cots is None:
            raise ConfigError("a generative embedding reads a CoT and this state has none: pass `cots` to `reason`")
        columns = [k.shape[2] for k, _ in state.layers]
        found = self("embed", state=state, modes=names)
        assert columns == [k.shape[2] for k, _ in state.layers], "pass E must leave the cache as it found it"
        return EmbeddingOutput(found.get("discriminative"), found.get("generative"))

    def gate_features(self, state: ReasonerState, e_d_BD: Tensor) -> Tensor:
        """The routing gate's input: stopgrad([last hidden state of P(x); e_d]), (B, 2 D) fp32."""
        return torch.cat([state.last_hidden_BD.float(), e_d_BD.float()], dim=-1).detach()

    @property
    def device(self) -> torch.device:
        return self.queries.device

    # --- what trains -------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> DualLoRABackbone:
        """Train mode reaches LoRA dropout only: the frozen model stays in eval mode."""
        super().train(mode)
        self.model.eval()
        self.adapters.train(mode)
        return self

    def group_parameters(self, group: str) -> list[nn.Parameter]:
        """The parameters of `reasoning`, `embedding` or `queries`; shared LoRA counts as `reasoning`, once."""
        if group not in GROUPS:
            raise ConfigError(unknown_name("parameter group", group, GROUPS))
        if group == "queries":
            return [self.queries]
        return self.adapters.parameters(group) if group in self.adapters.names else []

    def train_only(self, *groups: str) -> None:
        """Let exactly these groups require grad. Call before the strategy wraps; nothing changes the flags later."""
        wanted = {id(p) for group in groups for p in self.group_parameters(self._trained_as(group))}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in wanted)

    def _trained_as(self, group: str) -> str:
        return self.adapters.resolve(group) if group in (REASONING, EMBEDDING) else group

    def trainable_state(self) -> dict[str, Tensor]:
        """Adapters (the stage-3 reference too, where there is one) and queries by plain names, on the CPU."""
        named = {"queries": self.queries}
        for adapter in self.adapters.names:
            named |= {f"{adapter}.{k}": p for k, p in self.adapters.named_parameters(adapter).items()}
        return {k: full_tensor(p) for k, p in named.items()}

    def load_trainable_state(self, state: dict[str, Tensor], strict: bool = True) -> None:
        """Restore what `trainable_state` returned.

        Raises:
            AdapterError: a missing, unexpected (strict) or wrongly shaped tensor; it is named.
        """
        if any(k.startswith(f"{REFERENCE}.") for k in state):
            self.add_reference()
        own = {"queries": self.queries}
        for adapter in self.adapters.names:
            own |= {f"{adapter}.{k}": p for k, p in self.adapters.named_parameters(adapter).items()}
        check_tensors("checkpoint", state, {k: p.shape for k, p in own.items()}, strict)
        for key in sorted(own.keys() & state.keys()):  # one order on all ranks: assigning to shards communicates
            assign(own[key], state[key])

    def add_reference(self) -> None:
        """Freeze a copy of the reasoning adapter as `reasoning_reference` (stage 3; never exported)."""
        self.adapters.add_reference()

    @contextmanager
    def pin(self, reasoner: str | None) -> Iterator[None]:
        """Let another adapter play the reasoner in pass R and in decoding; None: the bare backbone, in pass R only."""
        wanted = None if reasoner is None else self.adapters.resolve(reasoner)
        previous, self._reasoner = self._reasoner, wanted
        try:
            yield
        finally:
            self._reasoner = previous

    # --- counts and files --------------------------------------------------------------------------------------------

    def added_parameters(self) -> dict[str, int]:
        """Parameters per adapter, of the queries, their sum `added`, and of the `language_model`."""
        return added_parameters(self.shape, self.settings)

    def added_parameter_ratio(self) -> float:
        counts = self.added_parameters()
        return counts["added"] / counts["language_model"]

    def save_adapters(
        self, folder: Any, gate_state: dict[str, Any] | None = None, extra: dict[str, Any] | None = None
    ) -> None:
        """Write adapters, queries and gate in the released layout; see `layout.save`."""
        layout.save(self, folder, gate_state, extra)

    def load_adapters(self, folder: Any) -> dict[str, Any] | None:
        """Load adapters and queries, strictly; returns the gate's state where there is one. See `layout.load`."""
        return layout.load(self, folder)
