"""MMEB-nano as files: annotations and media in the schemas of MMEB-V2, and beside them the truth about every row.

    <root>/mirror.json            what it was written from
    <root>/annotations/           <org>/<repo>/<subset>/<split>.parquet
    <root>/media/                 in the layout of TIGER-Lab/MMEB-V2
    <root>/ground_truth.parquet   task, row, kind, steps, target, cot

Equal arguments give equal bytes. A mirror is renamed into place when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.loading import load_task
from twn_lightning.benchmark.nano_rows import TaskWriter, write_rows
from twn_lightning.benchmark.parsers.video_classification import SSV2_ROWS
from twn_lightning.benchmark.protocol import Protocol
from twn_lightning.benchmark.registry import NANO_SUITE, BenchmarkTask, all_tasks, get_task
from twn_lightning.data.nano.drawings import Answer
from twn_lightning.data.nano.tasks import LOOKALIKE, MAX_STEPS, STEPS, TASKS, NanoRow, sample_row
from twn_lightning.data.sources.mmeb_nano import KIND_SHARES, STEP_SHARES
from twn_lightning.errors import DataError

_CUT_TASK = "NanoVideoCLS"
"""Read as MMEB-V2 reads SmthSmthV2, of which it takes the first rows only."""
_RECORD = "mirror.json"
_TRUTH = "ground_truth.parquet"


@dataclass(frozen=True)
class MirrorPaths:
    """A mirror's folders, and how many queries of each task it holds."""

    root: Path
    queries: Mapping[str, int]

    @property
    def annotations_root(self) -> Path:
        return self.root / "annotations"

    @property
    def media_root(self) -> Path:
        return self.root / "media"

    @property
    def ground_truth(self) -> Path:
        return self.root / _TRUTH


@dataclass(frozen=True)
class GroundTruth:
    """What is known of a row that no model sees."""

    kind: str
    steps: int
    target: str
    cot: str


def mirror_folder(parent: Path, queries: Mapping[str, int] | int, seed: int, split: str = "test") -> Path:
    """Where a mirror of these arguments goes below a folder that many share: they, and the world, name it."""
    record = json.dumps(_record(queries, seed, split), sort_keys=True)
    return parent / hashlib.sha256(record.encode()).hexdigest()[:12]


def split_evenly(total: int, names: Sequence[str]) -> dict[str, int]:
    """So many queries of each task; the first ones get one more where it does not come out even."""
    whole, left = divmod(total, len(names))
    return {name: whole + (place < left) for place, name in enumerate(names)}


def shared_mirror(
    parent: Path, tasks: Sequence[str], queries: int, seed: int, progress: Callable[[int], None] | None = None
) -> MirrorPaths:
    """A mirror of some tasks below a folder that many share; written unless it is there.

    Args:
        parent: that folder.
        tasks: names.
        queries: of all of them together, split evenly.
        seed: as for `write_mirror`.
        progress: as for `write_mirror`.

    Raises:
        ConfigError, DataError: as `write_mirror`.
    """
    each = split_evenly(queries, tasks)
    return write_mirror(mirror_folder(parent, each, seed), each, seed, progress=progress)


def write_mirror(
    root: Path,
    queries: Mapping[str, int] | int,
    seed: int,
    split: str = "test",
    progress: Callable[[int], None] | None = None,
) -> MirrorPaths:
    """Write a mirror, or find it written.

    Args:
        root: its folder.
        queries: of each task, or of all of them together, then split evenly.
        seed: rows are a function of (seed, split, task, number of its queries, row).
        split: whose ingredients are drawn.
        progress: called with the number of rows done, after each.

    Raises:
        ConfigError: an unknown task.
        DataError: a number of queries that no mirror can have, or another mirror or other files in the folder.
    """
    record = _record(queries, seed, split)
    paths = MirrorPaths(Path(root), record["queries"])
    if paths.root.exists():
        _require_same(paths.root, record)
        return paths
    paths.root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.root.parent, prefix=f".{paths.root.name}.") as folder:
        unfinished = MirrorPaths(Path(folder) / "mirror", record["queries"])
        _write(unfinished, seed, split, progress or _unheard)
        (unfinished.root / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        _move(unfinished.root, paths.root, record)
    return paths


def load_mirror(paths: MirrorPaths, tasks: Sequence[BenchmarkTask], protocol: str | Protocol) -> list[EvalTask]:
    """Some tasks of a mirror, as `load_task` reads them; their numbers of queries are the mirror's."""
    return [
        load_task(
            replace(task, num_queries=paths.queries[task.name]), paths.annotations_root, paths.media_root, protocol
        )
        for task in tasks
    ]


def read_ground_truth(paths: MirrorPaths) -> dict[str, GroundTruth]:
    """The truth about every row, by the key that its query has when it is loaded."""
    import pyarrow.parquet as pq

    rows = pq.read_table(paths.ground_truth).to_pylist()
    return {f"{row.pop('task')}/{row.pop('row')}": GroundTruth(**row) for row in rows}


def draw_rows(task: str, count: int, seed: int, split: str) -> list[NanoRow]:
    """The rows of a task, in random order.

    Lookalike rows of NanoVideoRET come in pairs that ask for each other's near-duplicates, because its corpus is the
    videos of its rows.
    """
    stream = [seed, TASKS.index(task), *split.encode()]
    classes = _classes(task, count, np.random.default_rng([*stream, count]))
    rows: list[NanoRow] = []
    waiting: NanoRow | None = None
    for number, (kind, steps) in enumerate(classes):
        rng = np.random.default_rng([*stream, count, number])
        row = sample_row(rng, split, task, kind, steps)
        if task == "NanoVideoRET" and kind == LOOKALIKE:
            while waiting is not None and not _near_duplicates(row, waiting):
                row = sample_row(rng, split, task, kind)
            waiting = row if waiting is None else None
        rows.append(row)
    return rows


def _near_duplicates(row: NanoRow, other: NanoRow) -> bool:
    first, second = Answer.parse(row.target), Answer.parse(other.target)
    return first != second and first.plain == second.plain


def _classes(task: str, count: int, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Kind and steps of each row, in the training pairs' shares up to rounding."""
    shares = {(kind, 0): share for kind, share in KIND_SHARES.items() if kind != STEPS}
    for steps, share in STEP_SHARES.items():
        possible = (STEPS, min(steps, MAX_STEPS[task]))
        shares[possible] = shares.get(possible, 0.0) + KIND_SHARES[STEPS] * share
    bounds = np.cumsum(list(shares.values()))
    places = np.searchsorted(bounds[:-1], (np.arange(count) + 0.5) / count * bounds[-1], side="right")
    return [list(shares)[place] for place in rng.permutation(places)]


def _write(paths: MirrorPaths, seed: int, split: str, progress: Callable[[int], None]) -> None:
    truths: list[dict[str, Any]] = []
    for name, count in paths.queries.items():
        with TaskWriter(get_task(name, NANO_SUITE), paths.annotations_root, paths.media_root, split) as writer:
            for number, row in enumerate(draw_rows(name, count, seed, split)):
                writer.add(row)
                truth = {"kind": row.kind, "steps": row.steps, "target": row.target, "cot": row.query.cot}
                truths.append({"task": name, "row": number, **truth})
                progress(1)
    write_rows(paths.ground_truth, truths)


def _record(queries: Mapping[str, int] | int, seed: int, split: str) -> dict[str, Any]:
    """What a mirror follows from."""
    names = [task.name for task in all_tasks(NANO_SUITE)]
    if isinstance(queries, int):
        queries = split_evenly(queries, names)
    unfit = [f"{name}: {queries[name]}" for name in queries if not _possible(name, queries[name])]
    if unfit or not queries:
        raise DataError(
            f"MMEB-nano needs at least 1 query of each task, and of {_CUT_TASK} at most {SSV2_ROWS:,}, which is where "
            f"its loader stops; got {', '.join(unfit) or 'no task'}. Set data.test_pairs, which is split evenly"
        )
    ordered = {name: int(queries[name]) for name in names if name in queries}
    return {"suite": NANO_SUITE, "world": _world_digest(), "split": split, "seed": seed, "queries": ordered}


def _possible(name: str, count: int) -> bool:
    get_task(name, NANO_SUITE)  # raises for a name that is none
    return count >= 1 and (name != _CUT_TASK or count <= SSV2_ROWS)


def _world_digest() -> str:
    """Digest of the code and the ingredients that rows are drawn by, so that no mirror outlives its world."""
    package = Path(str(files("twn_lightning")))
    parts = [*(package / "data" / "nano").glob("*.py"), *(package / "assets" / "nano").glob("*.npz")]
    parts += [package / "data" / "sources" / "mmeb_nano.py", *(package / "benchmark").glob("nano_*")]
    digest = hashlib.sha256()
    for part in sorted(parts, key=lambda path: path.name):
        digest.update(part.name.encode() + b"\0" + part.read_bytes())
    return digest.hexdigest()


def _require_same(root: Path, record: Mapping[str, Any]) -> None:
    path = root / _RECORD
    if not path.is_file():
        raise DataError(f"{root} is no mirror of MMEB-nano: it has no {_RECORD}. Name another folder, or delete it")
    found = json.loads(path.read_text(encoding="utf-8"))
    if differing := [name for name in record if found.get(name) != record[name]]:
        raise DataError(
            f"{root} holds a mirror of MMEB-nano with another {', '.join(differing)}. Name another folder, or delete it"
        )


def _move(finished: Path, root: Path, record: Mapping[str, Any]) -> None:
    """Rename a whole mirror into place; another process may have been faster with the same one."""
    try:
        finished.rename(root)
    except OSError:
        _require_same(root, record)


def _unheard(rows: int) -> None:
    """For a caller that does not listen."""
