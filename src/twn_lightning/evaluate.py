"""One evaluation from resolved settings: load, encode, score every router, write the run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.layout import read_config, settings_of
from twn_lightning.backbone.loading import adapters_folder, load_backbone
from twn_lightning.backbone.parameters import added_parameter_ratio_for
from twn_lightning.backbone.processor import PROMPT_VERSION
from twn_lightning.data.sources import get_source
from twn_lightning.evaluation.suite import Evaluation, evaluate_source, run_key_of
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.reporting.summary import build_summary, write_summary
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, LoraSettings, Settings
from twn_lightning.types import EmbeddingMode

log = logging.getLogger(__name__)

REAL_SIZES = ("qwen3vl_4b", "qwen3vl_8b")
"""Backbones whose share of added parameters every summary states, computed from shapes."""
REAL_ADAPTERS = AdapterSettings(reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), num_queries=16)


def load_trained(settings: Settings, device: str = "cpu") -> tuple[DualLoRABackbone, RoutingGate | None, float]:
    """The backbone with the adapters to evaluate, its gate and the gate's threshold.

    `adapters.init_from` names a run's `adapters` folder, `nano` or nothing for the packaged ones. The folder's own
    settings decide ranks, queries and interface.

    Raises:
        AdapterError: the folder is not one, or was made for another backbone.
    """
    folder = adapters_folder(settings.adapters.init_from or "nano")
    adapters, interface = settings_of(folder)
    backbone = load_backbone(settings.model, replace(adapters, init_from=None), interface, device)
    state = backbone.load_adapters(folder)
    gate = None if state is None else RoutingGate.from_state(state).to(device).eval()
    return backbone, gate, saved_threshold(folder, settings.gate.threshold)


def saved_threshold(folder: Path, default: float) -> float:
    """The threshold that a gate's training calibrated, as saved beside its adapters."""
    return float(read_config(folder).get("gate_threshold", default))


def evaluate(
    settings: Settings,
    run: RunFolder,
    *,
    stages: dict[str, dict[str, Any]] | None = None,
    extra: dict[str, Any] | None = None,
    started: float | None = None,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Evaluate trained adapters on the source's test split.

    Args:
        settings: `adapters.init_from`, `data`, `evaluation` and `gate.price` decide.
        run: where gate_decisions.parquet, summary.json, metrics.json and the per-task files go.
        stages: before and after of the stages that were trained, for the summary.
        extra: further top-level fields of the summary.
        started: `time.monotonic()` of the start that `seconds` counts from; now by default.
        device: where the backbone goes.
        progress: called with the number of queries encoded, after each batch.

    Returns:
        The evaluation and its summary, as written.
    """
    started = time.monotonic() if started is None else started
    backbone, gate, threshold = load_trained(settings, device)
    if gate is None:
        log.warning("these adapters have no gate: only never, always and oracle are scored; train one with stage=gate")
    source = get_source(settings.data.source, settings.data)
    evaluation = evaluate_source(
        backbone,
        source,
        "test",
        settings.data.test_pairs,
        gate=gate,
        threshold=threshold,
        gate_settings=settings.gate,
        evaluation=settings.evaluation,
        max_new_tokens=settings.data.max_new_tokens,
        progress=progress,
    )
    mode = EmbeddingMode.GENERATIVE if gate is None else EmbeddingMode.ADAPTIVE
    protocol = {
        "data": asdict(settings.data),
        "prompt_version": PROMPT_VERSION,
        "backbone": backbone.digest,
        "price": settings.gate.price,
    }
    evaluation.write(run, run_key_of(mode.value, threshold, protocol))
    summary = build_summary(
        evaluation.decisions(),
        suite=settings.evaluation.suite,
        stages=stages or {},
        added_parameter_ratio={
            settings.model.name: backbone.added_parameter_ratio(),
            **{name: added_parameter_ratio_for(name, REAL_ADAPTERS) for name in REAL_SIZES},
        },
        router_scores=evaluation.router_scores,
        gate=evaluation.gate_metrics,
        seconds=time.monotonic() - started,
        extra={"threshold": threshold, **(extra or {})},
    )
    write_summary(summary, run.path / "summary.json", complete=False)
    run.finish({name: score.hit_at_1 for name, score in evaluation.router_scores.items()} | evaluation.gate_metrics)
    return evaluation, summary
