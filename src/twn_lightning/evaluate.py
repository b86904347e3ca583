"""One evaluation from resolved settings: held-out pairs or MMEB-nano under every router, or MMEB-V2."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.parameters import added_parameter_ratio_for
from twn_lightning.backbone.processor import PROMPT_VERSION
from twn_lightning.benchmark.aggregate import Aggregate, aggregate
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.nano_mirror import MirrorPaths, load_mirror, read_ground_truth, shared_mirror
from twn_lightning.benchmark.protocol import Protocol, get_protocol
from twn_lightning.benchmark.registry import NANO_SUITE, BenchmarkTask, select_tasks
from twn_lightning.benchmark.score_file import read_score_file
from twn_lightning.callbacks import log_evaluation
from twn_lightning.data.sources import get_source
from twn_lightning.evaluation.benchmark_suite import SuiteProgress, SuiteResult, run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache, identity_digest
from twn_lightning.evaluation.encoders import Encoder, get_encoder
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder, load_trained
from twn_lightning.evaluation.ranks import failing_together, from_first
from twn_lightning.evaluation.repeat import encoder_record, repeat_record
from twn_lightning.evaluation.suite import Evaluation, evaluate_source, run_key_of
from twn_lightning.evaluation.suite_outcomes import evaluate_outcomes
from twn_lightning.reporting.summary import build_summary, write_summary
from twn_lightning.run import RunFolder, is_first_process
from twn_lightning.settings import AdapterSettings, LoraSettings, Settings, TaskSettings
from twn_lightning.types import EmbeddingMode

log = logging.getLogger(__name__)

_SWITCHES = (
    "version", "num_frames", "min_pixels", "max_pixels", "ndcg_pairing", "ties", "query_mode", "candidate_mode",
)  # fmt: skip
"""What the settings can change of a named protocol."""

SPOT_CHECK = 2
"""Items of each side on which a cache is compared with the encoder."""
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
        "exit_tolerance": settings.evaluation.exit_tolerance,
    }
    digest = identity_digest(rules)[:8]
    encoder = AdaptiveEncoder(backbone, gate, threshold, settings.data.max_new_tokens)
    key = run_key_of(threshold, mode.value, EmbeddingMode.DISCRIMINATIVE.value, digest)
    evaluation.write(run, key, encoder_record(encoder, mode, settings))
    summary = _summarise(settings, evaluation, backbone, run, started, stages=stages, extra=extra)
    log_evaluation(settings, run, summary=summary, decisions=evaluation.decisions)
    run.finish({name: score.hit_at_1 for name, score in evaluation.router_scores.items()} | evaluation.gate_metrics)
    return evaluation, summary


def _summarise(
    settings: Settings,
    evaluation: Evaluation,
    backbone: DualLoRABackbone,
    run: RunFolder,
    started: float,
    *,
    scored: bool = False,
    stages: dict[str, dict[str, Any]] | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write summary.json, and return its content."""
    summary = build_summary(
        evaluation.decisions,
        suite=evaluation.suite,
        stages=stages or {},
        added_parameter_ratio={
            settings.model.name: backbone.added_parameter_ratio(),
            **{name: added_parameter_ratio_for(name, REAL_ADAPTERS) for name in REAL_SIZES},
        },
        router_scores=evaluation.router_scores,
        gate=evaluation.gate_metrics,
        seconds=time.monotonic() - started,
        scored=scored,
        extra={"threshold": evaluation.threshold, **(extra or {})},
    )
    write_summary(summary, run.path / "summary.json", complete=False)
    return summary


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
    protocol = protocol_of(settings.task)
    tasks = select_tasks(settings.task.names)
    result = score_tasks(settings, run, build_encoder(settings, protocol, device), tasks, protocol, progress)
    means = aggregate(read_score_file(result.file).scores if result.scores else {})
    log_evaluation(settings, run, means=means)
    run.finish(means.as_dict() | _scores_by_task(result))
    return result, means


def evaluate_nano_tasks(
    settings: Settings, run: RunFolder, *, device: str = "cpu", progress: SuiteProgress | None = None
) -> tuple[SuiteResult, Aggregate, dict[str, Any] | None]:
    """Evaluate an encoder on tasks of MMEB-nano as on MMEB-V2's, and TWN's own under every router on top of that.

    Their files are written first, below `paths.output_root`, unless they are there: `data.test_pairs` queries, split
    evenly over the tasks asked for, drawn from `data.seed`.

    Args:
        settings: as for `evaluate_tasks`, and `data`, `gate` and `paths.output_root`.
        run: also gets gate_decisions.parquet and summary.json.
        device: where the encoder goes.
        progress: told about tasks and items.

    Returns:
        The result of the tasks asked for, their means, and the summary; None for other encoders than `twn`, and on
        other ranks than the first.

    Raises:
        ConfigError, DataError: as `evaluate_tasks`.
    """
    started = time.monotonic()
    progress = progress or SuiteProgress()
    protocol = protocol_of(settings.task)
    chosen = select_tasks(settings.task.names, NANO_SUITE)
    encoder = build_encoder(settings, protocol, device)
    mirror = nano_mirror(settings, chosen, progress)
    tasks = load_mirror(mirror, chosen, protocol)
    result = score_tasks(settings, run, encoder, tasks, protocol, progress)
    means = aggregate({name: scores["score"] for name, scores in result.scores.items()}, NANO_SUITE)
    summary = decisions = None
    if isinstance(encoder, AdaptiveEncoder) and is_first_process():
        evaluation = evaluate_outcomes(
            encoder,
            tasks,
            suite=NANO_SUITE,
            gate_settings=settings.gate,
            evaluation=settings.evaluation,
            truths=read_ground_truth(mirror),
            threshold=encoder.threshold,
            cache=EmbeddingCache(settings.task.cache_root, settings.task.cache),
            progress=progress,
        )
        evaluation.write_decisions(run)
        decisions = evaluation.decisions
        summary = _summarise(settings, evaluation, encoder.backbone, run, started, scored=True)
    log_evaluation(settings, run, means=means, summary=summary, decisions=decisions)
    modes = {} if summary is None else {"modes": summary["modes"]}
    run.finish(means.as_dict() | _scores_by_task(result) | modes)
    return result, means, summary


def nano_mirror(settings: Settings, tasks: Sequence[BenchmarkTask], progress: SuiteProgress) -> MirrorPaths:
    """MMEB-nano's files, written by the first process."""
    paths = None
    with failing_together():
        if is_first_process():
            data, parent = settings.data, Path(settings.paths.output_root).expanduser() / NANO_SUITE
            progress.mirror_started(data.test_pairs)
            names = [task.name for task in tasks]
            paths = shared_mirror(parent, names, data.test_pairs, data.seed, progress.advanced)
    found = from_first(paths)
    assert found is not None
    return found


def score_tasks(
    settings: Settings,
    run: RunFolder,
    encoder: Encoder,
    tasks: Sequence[BenchmarkTask | EvalTask],
    protocol: Protocol,
    progress: SuiteProgress | None,
) -> SuiteResult:
    """Score an encoder on tasks, loaded or not, as the settings say. Arguments as `run_suite`."""
    task = settings.task
    return run_suite(
        encoder,
        tasks,
        output=run,
        name=task.suite,
        annotations_root=_path(task.annotations_root),
        media_root=_path(task.media_root),
        protocol=protocol,
        model_name=None if settings.name == Settings.name else settings.name,
        cache=EmbeddingCache(task.cache_root, task.cache),
        strict_counts=task.strict_counts,
        on_error=task.on_error,
        bootstrap_samples=settings.evaluation.bootstrap_samples,
        progress=progress,
        spot_check=SPOT_CHECK,
        repeat=repeat_record(settings),
    )


def _scores_by_task(result: SuiteResult) -> dict[str, Any]:
    return {"tasks": {name: scores["score"] for name, scores in result.scores.items()}}


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
        exit_tolerance=settings.evaluation.exit_tolerance,
    )
