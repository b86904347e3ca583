"""Small tasks made of words: a query shares two words with its label, so a fake encoder gets some of them right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.protocol import Protocol
from twn_lightning.benchmark.registry import BenchmarkTask
from twn_lightning.types import Item, Media, RankingItem

PROTOCOL = Protocol()


def made_task(
    name: str = "T0",
    *,
    queries: int = 20,
    candidates: int = 30,
    scope: Literal["local", "global"] = "global",
    graded: bool = False,
    media: Path | None = None,
    protocol: Protocol = PROTOCOL,
    seed: int = 0,
) -> EvalTask:
    """A task.

    Args:
        scope: local: each query ranks ten of the candidates.
        graded: two labels a query, of grades 1 and 2.
        media: a file that every query shows.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    corpus = [Item(f"{name}/c{i}", "", f"thing{i} kind{i % 5} of {name}") for i in range(candidates)]
    asked, items = [], []
    for i in range(queries):
        label, second = int(rng.integers(candidates)), 0
        second = (label + 1) % candidates
        shown = (Media("image", media),) if media else ()
        odd = " odd" if i % 7 == 3 else ""
        asked.append(Item(f"{name}/q{i}", "Find", f"thing{label} noise{i} of {name}{odd}", shown))
        others = [f"{name}/c{j}" for j in rng.permutation(candidates)[:10] if j not in (label, second)]
        items.append(
            RankingItem(
                labels=(f"{name}/c{label}", f"{name}/c{second}") if graded else (f"{name}/c{label}",),
                relevance=(2.0, 1.0) if graded else None,
                candidate_keys=(f"{name}/c{label}", f"{name}/c{second}", *others) if scope == "local" else None,
            )
        )
    row = BenchmarkTask(
        name=name,
        modality="visdoc" if graded else "image",
        meta_task="ViDoRe-V1" if graded else "I-CLS",
        parser="vidore" if graded else "image_cls",
        hf_repo="org/repo",
        hf_split="test",
        metric="ndcg_linear@5" if graded else "hit@1",
        num_queries=queries,
        eval_type=scope,
        distribution="IND",
        media="image-tasks",
        graded=graded,
        num_candidates=candidates if scope == "global" else None,
    )
    return EvalTask(row, protocol, asked, corpus, items, [], {})


def with_text(task: EvalTask, key: str, text: str) -> EvalTask:
    """The task with another text for one query or candidate."""

    def changed(items: list[Item]) -> list[Item]:
        return [replace(item, text=text) if item.key == key else item for item in items]

    return replace(task, queries=changed(task.queries), candidates=changed(task.candidates))
