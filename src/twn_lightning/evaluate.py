"""One evaluation from resolved settings: held-out pairs under every router, or tasks of MMEB-V2; into a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from twn_lightning.backbone.parameters import added_parameter_ratio_for
from twn_lightning.backbone.processor import PROMPT_VERSION
from twn_lightning.benchmark.aggregate import Aggregate, aggregate
from twn_lightning.benchmark.protocol import Protocol, get_protocol
from twn_lightning.benchmark.registry import select_tasks
from twn_lightning.benchmark.score_file import read_score_file
from twn_lightning.data.sources import get_source
from twn_lightning.evaluation.benchmark_suite import SuiteProgress, SuiteResult, run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache, identity_digest
from twn_lightning.evaluation.encoders import Encoder, get_encoder
from twn_lightning.evaluation.encoders.twn import load_trained
from twn_lightning.evaluation.suite import Evaluation, evaluate_source, run_key_of
from twn_lightning.reporting.summary import build_summary, write_summary
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, LoraSettings, Settings, TaskSettings
from twn_lightning.types import EmbeddingMode

log = logging.getLogger(__name__)

_SWITCHES = (
    "version", "num_frames", "min_pixels", "max_pixels", "ndcg_pairing", "ties", "query_mode", "candidate_mode",
)  # fmt: skip
"""What the settings can change of a named protocol."""

REAL_SIZES = ("qwen3vl_4b", "qwen3vl_8b")
"""Backbones whose share of added parameters every summary states, computed from shapes."""
REAL_ADAPTERS = AdapterSettings(reasoning=LoraSettings(32, 64), embedding=LoraSettings(64, 128), num_queries=16)


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
    backbone, gate, threshold = load_trained(
        settings.model, settings.adapters.init_from, settings.gate.threshold, device
    )
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
    rules = {
        "data": asdict(settings.data),
        "prompt_version": PROMPT_VERSION,
        "backbone": backbone.digest,
        "price": settings.gate.price,
    }
    digest = identity_digest(rules)[:8]
    evaluation.write(run, run_key_of(threshold, mode.value, EmbeddingMode.DISCRIMINATIVE.value, digest))
    summary = build_summary(
        evaluation.decisions(),
        suite=evaluation.suite,
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


def evaluate_tasks(
    settings: Settings, run: RunFolder, *, device: str = "cpu", progress: SuiteProgress | None = None
) -> tuple[SuiteResult, Aggregate]:
    """Evaluate an encoder on tasks of MMEB-V2; tasks whose scores in the run folder still hold are left alone.

    Args:
        settings: `task`, `model`, `adapters.init_from` and `evaluation` decide.
        run: where the scores, the suite file and metrics.json go.
        device: where the encoder goes.
        progress: told about tasks and items.

    Returns:
        The result of the tasks asked for, and the means over all tasks that the suite file holds by now.

    Raises:
        ConfigError: unknown tasks, a mode that the encoder lacks, weights that cannot be had.
        DataError: annotations or media that are wrong (`task.on_error=raise`).
    """
    task = settings.task
    protocol = protocol_of(task)
    tasks = select_tasks(task.names)
    cache = EmbeddingCache(task.cache_root, task.cache)
    result = run_suite(
        build_encoder(settings, protocol, device),
        tasks,
        output=run,
        annotations_root=_path(task.annotations_root),
        media_root=_path(task.media_root),
        protocol=protocol,
        model_name=None if settings.name == Settings.name else settings.name,
        cache=cache,
        strict_counts=task.strict_counts,
        on_error=task.on_error,
        bootstrap_samples=settings.evaluation.bootstrap_samples,
        progress=progress,
    )
    means = aggregate(read_score_file(result.file).scores if result.scores else {})
    run.finish(means.as_dict() | {"tasks": {name: scores["score"] for name, scores in result.scores.items()}})
    return result, means


def protocol_of(task: TaskSettings) -> Protocol:
    """The named protocol with the switches that the settings change.

    Raises:
        ConfigError: values that do not fit each other.
    """
    changes = {name: getattr(task, name) for name in _SWITCHES if getattr(task, name) is not None}
    return get_protocol(task.protocol, **changes)


def _path(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser()


def build_encoder(settings: Settings, protocol: Protocol, device: str) -> Encoder:
    """The encoder that the settings name, which sees frames and pixels as the protocol has them.

    Raises:
        ConfigError, AdapterError: as `get_encoder`.
    """
    model = replace(
        settings.model,
        max_frames=protocol.num_frames,
        min_pixels=protocol.min_pixels or settings.model.min_pixels,
        max_pixels=protocol.max_pixels or settings.model.max_pixels,
    )
    return get_encoder(
        settings.task.encoder,
        model=model,
        adapters_path=settings.adapters.init_from,
        device=device,
        max_new_tokens=settings.data.max_new_tokens,
        batch_size=settings.evaluation.batch_size,
        threshold=settings.gate.threshold,
    )
