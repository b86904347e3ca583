"""A benchmark suite from tasks to score files: load, encode through the cache, score, write; one task after the other.

Memory follows the largest task, not their number: embeddings are on disk, and a task is gone before the next one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.protocol import Protocol, get_protocol
from twn_lightning.benchmark.registry import SUITE, BenchmarkTask, get_task
from twn_lightning.environment import version_of
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.adaptive_cache import cached_encoder
from twn_lightning.evaluation.cache_check import check_cached
from twn_lightning.evaluation.embedding_cache import CachedEncoder, EmbeddingCache, identity_digest
from twn_lightning.evaluation.encoders.protocol import Encoder, NamedModel
from twn_lightning.evaluation.output_checks import check_task
from twn_lightning.evaluation.ranks import failing_together, from_first
from twn_lightning.evaluation.repeat import VERSIONED
from twn_lightning.evaluation.suite import run_key_of
from twn_lightning.evaluation.suite_files import read_scores, suite_tasks, task_digest, write_suite, write_task
from twn_lightning.evaluation.task_encoding import OnError, TaskSide, encode_side
from twn_lightning.evaluation.task_scores import score_task
from twn_lightning.run import RunFolder, is_first_process
from twn_lightning.strategy import rank
from twn_lightning.types import EmbeddingMode, Item, Side

CHUNK_SIZE = 128
"""Items handed to the encoder at once: large enough for batches of like length, small enough to share among ranks."""


class SuiteProgress:
    """What a suite reports while it runs, to whoever shows it. This one shows nothing."""

    def mirror_started(self, rows: int) -> None:
        """MMEB-nano is about to be written: so many rows."""

    def suite_started(self, tasks: int) -> None:
        """So many tasks follow."""

    def side_started(self, task: str, side: Side, items: int) -> None:
        """A side of a task is about to be encoded: so many distinct items on this rank."""

    def advanced(self, items: int) -> None:
        """So many more items or rows are done."""

    def task_finished(self, scores: Mapping[str, Any], *, reused: bool) -> None:
        """A task has its scores; or had them already."""

    def task_failed(self, name: str, why: str) -> None:
        """A task could not be loaded or scored, and the next one follows (`on_error="skip"`)."""


@dataclass
class SuiteResult:
    """What a suite ended with; the same on every rank."""

    folder: Path
    """`eval/<suite>/<run_key>` of the run folder."""
    file: Path
    """The suite file, in the public score format."""
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    """scores.json of each task asked for."""
    resumed: list[str] = field(default_factory=list)
    """Tasks whose scores held and were not computed again."""
    failed: dict[str, str] = field(default_factory=dict)
    """Tasks that could not be loaded or scored at all, and why (`on_error="skip"`)."""


@dataclass(frozen=True)
class _Suite:
    """What all tasks of one run share."""

    encoder: Encoder
    protocol: Protocol
    sides: Mapping[Side, CachedEncoder]
    """The encoder through the cache: made once, because its identity takes a pass over all trained weights."""
    identity: str
    """Digest of the encoder's identity on both sides."""
    folder: Path
    annotations_root: str | Path | None
    media_root: str | Path | None
    strict_counts: bool
    on_error: OnError
    resume: bool
    chunk_size: int
    top_k: int
    bootstrap_samples: int
    progress: SuiteProgress
    repeat: Mapping[str, Any] | None
    spot_check: int
    checked: set[Side] = field(default_factory=set)
    """Sides whose cached embeddings have been compared."""


def run_suite(
    encoder: Encoder,
    tasks: Sequence[str | BenchmarkTask | EvalTask],
    *,
    output: RunFolder | str | Path,
    name: str = SUITE,
    annotations_root: str | Path | None = None,
    media_root: str | Path | None = None,
    protocol: str | Protocol = "vlm2vec",
    model_name: str | None = None,
    cache: EmbeddingCache | None = None,
    strict_counts: bool = True,
    on_error: OnError = "raise",
    resume: bool = True,
    chunk_size: int = CHUNK_SIZE,
    top_k: int = 10,
    bootstrap_samples: int = 1000,
    progress: SuiteProgress | None = None,
    repeat: Mapping[str, Any] | None = None,
    spot_check: int = 0,
) -> SuiteResult:
    """Evaluate an encoder on tasks of MMEB-V2, or of another suite.

    With torch.distributed initialised every rank calls this and encodes its share; the first one scores and writes.

    Args:
        encoder: the model.
        tasks: names, rows, or tasks that are loaded already, in any order.
        output: the run folder.
        name: the suite's, under which its files are kept.
        annotations_root: local mirror of the annotations; None: the hub.
        media_root: media in the layout of TIGER-Lab/MMEB-V2.
        protocol: everything besides the model that decides a number; its modes must be among the encoder's.
        model_name: what the suite file calls the encoder; None: what it says of itself.
        cache: embeddings to reuse and to add to; None: none.
        strict_counts: as in `load_task`.
        on_error: raise, or skip what cannot be read: rows, items, whole tasks; all of it is listed.
        resume: leave out tasks whose scores in `output` have the digest of what would be computed now.
        chunk_size: items handed to the encoder at once.
        top_k: candidates a query in predictions.jsonl.
        bootstrap_samples: behind each interval.
        progress: told about tasks and items.
        repeat: kept in every scores.json, for `twn verify`; see `repeat_record`.
        spot_check: items of each side that are encoded although the cache holds them, to tell a stale one; once.

    Raises:
        ConfigError: a mode that the encoder lacks, unknown names, a task loaded under another protocol.
        DataError: annotations, media or counts that are wrong (`on_error="raise"`).
        NumericalError: an embedding that is not finite.
    """
    protocol = get_protocol(protocol)
    check_modes(encoder, protocol)
    identities = {side: encoder.identity(side, mode) for side, mode in _modes(protocol).items()}
    identity = identity_digest({side.value: found for side, found in identities.items()})
    threshold = identities[Side.QUERY].get("threshold")
    key = run_key_of(threshold, protocol.query_mode, protocol.candidate_mode, protocol.digest())
    folder = (output if isinstance(output, RunFolder) else RunFolder(output)).eval_dir(name, key, "")
    suite = _Suite(
        encoder,
        protocol,
        {side: cached_encoder(encoder, side, mode, cache, identities[side]) for side, mode in _modes(protocol).items()},
        identity,
        folder,
        annotations_root,
        media_root,
        strict_counts,
        on_error,
        resume,
        chunk_size,
        top_k,
        bootstrap_samples,
        progress or SuiteProgress(),
        repeat,
        spot_check,
    )
    model = model_name or (encoder.model_name() if isinstance(encoder, NamedModel) else encoder.name)
    result = SuiteResult(folder, folder / f"{name}.json")
    suite.progress.suite_started(len(tasks))
    waiting = [task if isinstance(task, str) else task.name for task in tasks]
    for entry in tasks:
        task_name = waiting.pop(0)
        try:
            scores, held = _run_task(suite, get_task(entry) if isinstance(entry, str) else entry)
        except DataError as error:
            if on_error == "raise":
                raise
            result.failed[task_name] = str(error)
            suite.progress.task_failed(task_name, str(error))
            continue
        result.scores[task_name] = scores
        result.resumed += [task_name] if held else []
        if is_first_process():
            done = suite_tasks(folder, identity, leave_out=[*waiting, *result.failed])
            write_suite(result.file, done, model=model, protocol=protocol, encoder=identity)
        suite.progress.task_finished(scores, reused=held)
    return result


def check_modes(encoder: Encoder, protocol: Protocol) -> None:
    """Refuse modes that the encoder does not have.

    Raises:
        ConfigError: names the switch, the modes there are, and what to set.
    """
    there = [mode.value for mode in encoder.modes]
    problems = []
    for switch in ("query_mode", "candidate_mode"):
        asked = getattr(protocol, switch)
        if asked not in there:
            problems.append(
                f"task.{switch}={asked}, but encoder '{encoder.name}' has only: {', '.join(there)}. "
                f"Set task.{switch}={there[0]}"
                + (", or train a gate (stage=gate): adaptive needs one" if asked == "adaptive" else "")
            )
    if problems:
        raise ConfigError(problems)


def _modes(protocol: Protocol) -> dict[Side, EmbeddingMode]:
    return {
        Side.QUERY: EmbeddingMode(protocol.query_mode),
        Side.CANDIDATE: EmbeddingMode(protocol.candidate_mode),
    }


def _run_task(suite: _Suite, entry: BenchmarkTask | EvalTask) -> tuple[dict[str, Any], bool]:
    """The scores of one task, and whether they were there already; on every rank."""
    started = time.monotonic()
    with failing_together():
        task = _load(suite, entry)
        folder = suite.folder / task.name
        digest = task_digest(task, suite.identity) if rank() == 0 else ""
        earlier = read_scores(folder) if suite.resume and rank() == 0 else None
    held = from_first(earlier if earlier is not None and earlier.get("digest") == digest else None)
    if held is not None:
        return held, True
    both = {Side.QUERY: task.queries, Side.CANDIDATE: task.candidates}
    sides = [_encode(suite, task.name, side, items) for side, items in both.items()]
    scores: dict[str, Any] = {}
    with failing_together():
        if rank() == 0:
            found, predictions = score_task(task, *sides, top_k=suite.top_k, bootstrap_samples=suite.bootstrap_samples)
            check_task(task.name, found, dict(zip(both, sides, strict=True)))
            scores = found | _record(suite, digest, sides) | {"seconds": round(time.monotonic() - started, 3)}
            write_task(folder, scores, predictions)
    return from_first(scores), False


def _load(suite: _Suite, entry: BenchmarkTask | EvalTask) -> EvalTask:
    if isinstance(entry, EvalTask):
        if entry.protocol != suite.protocol:
            raise ConfigError(
                f"task '{entry.name}' was loaded under another protocol ({entry.protocol.digest()}) than the suite's "
                f"({suite.protocol.digest()}): load it with the suite's"
            )
        return entry
    if suite.media_root is None:
        raise ConfigError(f"task '{entry.name}': set task.media_root to the folder that holds {entry.media}")
    return load_task(
        entry, suite.annotations_root, suite.media_root, suite.protocol, suite.strict_counts, on_error=suite.on_error
    )


def _encode(suite: _Suite, task: str, side: Side, items: Sequence[Item]) -> TaskSide:
    encoder = suite.sides[side]
    try:
        if side not in suite.checked and check_cached(encoder, items[: suite.spot_check]):
            suite.checked.add(side)
        return encode_side(
            encoder,
            items,
            folder=suite.folder / task,
            chunk_size=suite.chunk_size,
            on_error=suite.on_error,
            started=partial(suite.progress.side_started, task, side),
            progress=suite.progress.advanced,
        )
    except DataError as error:  # names the item and its file
        raise DataError(f"task '{task}', {side.value}: {error}") from error


def _record(suite: _Suite, digest: str, sides: Sequence[TaskSide]) -> dict[str, Any]:
    """How the scores came about."""
    return {
        "protocol": suite.protocol.as_dict(),
        "query_mode": suite.protocol.query_mode,
        "candidate_mode": suite.protocol.candidate_mode,
        "encoder": {"name": suite.encoder.name, "digest": suite.identity, "dimension": suite.encoder.dimension},
        "digest": digest,
        "from_cache": {"queries": sides[0].reused, "candidates": sides[1].reused},
        "versions": {name: version_of(name) for name in VERSIONED},
        **({} if suite.repeat is None else {"repeat": suite.repeat}),
    }
