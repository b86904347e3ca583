"""Hours for MMEB-V2 under never, adaptive and always, from the counts of its tasks.

Every task encodes its queries and each of its candidates once. The embedding cache keeps both, so corpora that tasks
share and the candidates of a second router are encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from twn_lightning.benchmark.protocol import Protocol
from twn_lightning.benchmark.registry import MODALITIES, BenchmarkTask
from twn_lightning.planning.constants import Device, Items
from twn_lightning.planning.layout import Span, world_of
from twn_lightning.planning.shapes import ModelShape
from twn_lightning.planning.stages import StageWork
from twn_lightning.settings import Settings

Medium = Literal["text", "image", "video", "page"]
ROUTERS = ("never", "adaptive", "always")
MEDIA: dict[str, tuple[Medium, Medium]] = {
    **dict.fromkeys(["image_cls", "image_qa", "image_i2t"], ("image", "text")),
    "image_t2i": ("text", "image"),
    "image_i2i_vg": ("image", "image"),
    **dict.fromkeys(["video_classification", "ssv2"], ("video", "text")),
    **dict.fromkeys(["mvbench", "videomme", "nextqa", "egoschema", "activitynetqa"], ("video", "text")),
    **dict.fromkeys(["didemo", "msrvtt", "msvd", "vatex", "youcook2"], ("text", "video")),
    **dict.fromkeys(["moment_retrieval", "momentseeker"], ("video", "video")),
    **dict.fromkeys(["vidore", "visrag"], ("text", "page")),
}
"""What queries and candidates of a parser's tasks hold."""
OWN_CANDIDATES = {"mvbench": 4, "videomme": 4, "nextqa": 5, "egoschema": 5, "moment_retrieval": 10, "momentseeker": 10}
"""Candidates that every query of a parser's tasks has for itself, about; elsewhere all queries share one set."""
SHARED_PAGES = {"ViDoSeek-doc": "ViDoSeek-page", "MMLongBench-doc": "MMLongBench-page"}
"""Tasks whose pages another task has, too."""
VISUAL_PER_FRAME = 0.5
"""Two frames make one patch in time."""


def num_candidates(task: BenchmarkTask) -> int:
    """Candidates that a task has to encode, each once."""
    if task.parser in OWN_CANDIDATES:
        return task.num_queries * OWN_CANDIDATES[task.parser]
    assert task.num_candidates is not None, f"{task.name}: tasks.yaml leaves its candidates open"
    return task.num_candidates


@dataclass(frozen=True)
class SuitePlan:
    """What the tasks are predicted to take."""

    devices: int
    queries: int
    candidates: int
    hours: Mapping[str, Mapping[str, float]]
    """Router -> modality or `all` -> hours, each router with an empty cache."""
    hours_with_cache: Mapping[str, float]
    """Router -> hours when the routers before it have filled the cache."""


def plan_suite(
    shape: ModelShape,
    settings: Settings,
    device: Device,
    items: Items,
    tasks: Sequence[BenchmarkTask],
    protocol: Protocol,
    think_rate: float,
) -> SuitePlan:
    """Predict the evaluation of tasks.

    Args:
        shape: of the backbone.
        settings: for adapters, batches, the cap of CoTs, and the devices, which share the items.
        device: how fast.
        items: how long texts and images are; pages fill the protocol's budget, videos have its frames.
        tasks: any of MMEB-V2's.
        protocol: frames and pixels.
        think_rate: share of the queries that `adaptive` thinks about.
    """
    suite = _Suite(StageWork(shape, settings, device, items), shape, device, settings, items, protocol)
    rates = {"never": 0.0, "adaptive": think_rate, "always": 1.0}
    candidates = {task.name: suite.candidates(task) for task in tasks}
    shared = {name for name, other in SHARED_PAGES.items() if name in candidates and other in candidates}
    own = {name: 0.0 if name in shared else seconds for name, seconds in candidates.items()}
    queries = {router: {task.name: suite.queries(task, rate) for task in tasks} for router, rate in rates.items()}
    hours: dict[str, dict[str, float]] = {}
    for router in ROUTERS:
        by_modality: dict[str, float] = dict.fromkeys(MODALITIES, 0.0)
        for task in tasks:
            by_modality[task.modality] += (queries[router][task.name] + own[task.name]) / 3600
        hours[router] = by_modality | {"all": sum(by_modality.values())}
    cached = {router: sum(queries[router].values()) / 3600 for router in ROUTERS}
    cached["never"] = hours["never"]["all"]
    return SuitePlan(
        devices=world_of(settings),
        queries=sum(task.num_queries for task in tasks),
        candidates=sum(num_candidates(task) for task in tasks if task.name not in shared),
        hours=hours,
        hours_with_cache=cached,
    )


@dataclass(frozen=True)
class _Suite:
    work: StageWork
    shape: ModelShape
    device: Device
    settings: Settings
    items: Items
    protocol: Protocol

    def visual_tokens(self, medium: Medium) -> float:
        """Of one item."""
        if medium == "text":
            return 0.0
        if medium == "video":
            return self.protocol.num_frames * VISUAL_PER_FRAME * self.items.visual_tokens
        if medium == "image":
            return self.items.visual_tokens
        vision = self.shape.vision
        area = vision.patch_values / 6 * vision.merged  # a patch has two frames of three channels
        largest = self.protocol.max_pixels or self.settings.model.max_pixels
        return self.items.visual_tokens if largest is None else largest / area

    def candidates(self, task: BenchmarkTask) -> float:
        """Seconds for a task's candidates, without CoTs."""
        visual = self.visual_tokens(MEDIA[task.parser][1])
        return self._seconds(num_candidates(task), self.items.candidate_text_tokens, visual, 0.0)

    def queries(self, task: BenchmarkTask, think_rate: float) -> float:
        """Seconds for a task's queries."""
        visual = self.visual_tokens(MEDIA[task.parser][0])
        return self._seconds(task.num_queries, self.items.text_tokens, visual, think_rate)

    def _seconds(self, count: int, text: float, visual: float, think_rate: float) -> float:
        rows = count / world_of(self.settings)
        batches = ceil(rows / self.settings.evaluation.batch_size)
        work = self.work.encode(rows, Span(1.0, text + visual, visual, 0.0, text + visual), batches, think_rate)
        return sum(self.device.seconds(work).values()) + rows * self.device.seconds_per_item
