"""Do the two losses of stage 1 pull the same weights in opposite directions?

The weights that both may train are the reasoning adapter's: the contrastive loss reaches it through the cache where the
interface does not detach that (`kv_joint`), and directly where one LoRA serves both passes.

Reference: gradients conflict where their cosine is negative, as in Yu et al. 2020, arXiv 2001.06782.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from twn_lightning.backbone.adapters import REASONING
from twn_lightning.evaluation.probes import plain_interval
from twn_lightning.metrics import bootstrap_mean
from twn_lightning.stages.contrast import batch_chunks, batch_labels
from twn_lightning.stages.dual_lora_sft import DualLoRASFT
from twn_lightning.types import ContrastiveBatch

_LAYER = re.compile(r"\blayers\.(\d+)\.")


@dataclass(frozen=True)
class LossGradients:
    """Gradients of one batch's losses on the shared weights: one flat fp32 vector a decoder layer."""

    cot: dict[int, Tensor]
    """Of L_CE."""
    contrastive: dict[int, Tensor]
    """Of the weighted sum of the L_NCE terms."""

    def cosine(self, layer: int | None = None) -> float | None:
        """Cosine of the two gradients in one layer, or in all together; None where one of them is zero."""
        layers = list(self.cot) if layer is None else [layer]
        return cosine([self.cot[i] for i in layers], [self.contrastive[i] for i in layers])

    def values(self) -> dict[str, float]:
        """What to log: norms always, cosines where both gradients are there."""
        found = {"conflict/norm_cot": norm(self.cot), "conflict/norm_contrastive": norm(self.contrastive)}
        cosines = {"conflict/cosine": self.cosine()} | {f"conflict/cosine_layer_{i}": self.cosine(i) for i in self.cot}
        return found | {name: value for name, value in cosines.items() if value is not None}


def loss_gradients(stage: DualLoRASFT, batch: ContrastiveBatch) -> LossGradients:
    """Both gradients of one batch, without a trace: no `.grad`, no random number of the run is touched.

    Args:
        stage: in the state to measure; its interface decides how far the contrastive gradient reaches.
        batch: as stage 1 trains on; all of its graphs are held at once.
    """
    parameters = stage.backbone.adapters.named_parameters(REASONING)
    batch = batch.to(stage.device)
    chunks = batch_chunks(batch, stage.stage.chunk_size)
    num_tokens = stage.count_cot_tokens(chunks)
    devices = [stage.device] if stage.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        cot_losses, parts = [], []
        for chunk in chunks:
            state = stage.backbone.reason(chunk.prompts, chunk.cots, want_logits=chunk.cots is not None)
            if chunk.cots is not None:
                cot_losses.append(stage.cot_loss(state, num_tokens))
            parts.append(stage.embed_chunk(chunk.is_query, state))
        embeddings = tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
        contrastive = stage.contrast(embeddings, batch_labels(batch)).loss
        return LossGradients(
            cot=_by_layer(parameters, torch.stack(cot_losses).sum()),
            contrastive=_by_layer(parameters, contrastive),
        )


def _by_layer(parameters: dict[str, Any], loss: Tensor) -> dict[int, Tensor]:
    """The gradient of a loss, zero where it does not reach a weight."""
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    layers: dict[int, list[Tensor]] = {}
    for name, gradient in zip(parameters, gradients, strict=True):
        found = _LAYER.search(name)
        assert found is not None, f"adapters sit in decoder layers only: {name}"
        layers.setdefault(int(found[1]), []).append(gradient.float().flatten())
    return {layer: torch.cat(layers[layer]) for layer in sorted(layers)}


def conflict_scores(measured: Sequence[LossGradients]) -> dict[str, Any]:
    """How much the losses disagree over several batches.

    Args:
        measured: one per batch, of the same weights.

    Returns:
        `reaches_shared_weights`: whether the contrastive gradient is anything but exactly zero. Where it is not, the
        cosines are None. `cosine`: mean over batches with its bootstrap interval; `cosine_of_means`: of the two
        gradients averaged over batches, which is less noisy; `agreement`: of one loss on two batches, the scale to
        judge the others by.
    """
    means = LossGradients(_mean([m.cot for m in measured]), _mean([m.contrastive for m in measured]))
    cosines = _present(m.cosine() for m in measured)
    norms = {"cot": [norm(m.cot) for m in measured], "contrastive": [norm(m.contrastive) for m in measured]}
    return {
        "batches": len(measured),
        "reaches_shared_weights": max(norms["contrastive"]) > 0,
        **{f"norm_{loss}": sum(found) / len(found) for loss, found in norms.items()},
        "cosine": _interval(cosines),
        "cosine_by_batch": cosines,
        "share_negative": sum(c < 0 for c in cosines) / len(cosines) if cosines else None,
        "cosine_of_means": means.cosine(),
        "by_layer": {str(layer): _interval(_present(m.cosine(layer) for m in measured)) for layer in measured[0].cot},
        "agreement": {
            "cot": _interval(_consecutive([m.cot for m in measured])),
            "contrastive": _interval(_consecutive([m.contrastive for m in measured])),
        },
    }


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> float | None:
    """Cosine of two vectors given in parts; None where one is zero."""
    dot = sum(float(a.double() @ b.double()) for a, b in zip(first, second, strict=True))
    norms = [sum(float(part.double().square().sum()) for part in parts) ** 0.5 for parts in (first, second)]
    return dot / (norms[0] * norms[1]) if all(norms) else None


def norm(gradient: dict[int, Tensor]) -> float:
    """Euclidean norm over all layers."""
    return sum(float(part.double().square().sum()) for part in gradient.values()) ** 0.5


def _mean(gradients: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
    return {layer: torch.stack([g[layer] for g in gradients]).mean(0) for layer in gradients[0]}


def _consecutive(gradients: Sequence[dict[int, Tensor]]) -> list[float]:
    return _present(cosine(list(a.values()), list(b.values())) for a, b in pairwise(gradients))


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _interval(values: Sequence[float]) -> dict[str, Any] | None:
    return plain_interval(bootstrap_mean(values)) if values else None
