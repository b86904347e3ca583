"""Stage 1 on a corpus of files: it trains, validates against the corpus's targets, and logs its effective negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.corpora_fixtures import Mirror, write_mirror
from twn_lightning.objectives import combined_contrastive
from twn_lightning.settings import SFTSettings
from twn_lightning.stages.contrast import contrast_values
from twn_lightning.types import EmbeddingOutput


def unit(rows: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, 8), dim=-1)


def effective_negatives(query_hashes: list[int], candidate_hashes: list[int], positives: list[int]) -> float:
    queries, candidates = unit(len(query_hashes)), unit(len(candidate_hashes))
    output = combined_contrastive(
        EmbeddingOutput(queries, unit(len(query_hashes))),
        EmbeddingOutput(candidates),
        torch.tensor(positives),
        torch.tensor(query_hashes),
        torch.tensor(candidate_hashes),
        temperature=0.05,
        cross_query_generative=1.0,
        cross_candidate_generative=0.0,
    )
    return float(contrast_values(output)["contrastive/effective_negatives"])


def test_effective_negatives_leave_out_what_is_masked() -> None:
    assert effective_negatives([1, 2, 3], [1, 2, 3], [0, 1, 2]) == 2, "all distinct: all others"
    assert effective_negatives([1, 1, 3], [1, 3], [0, 0, 1]) == 1, "two queries of one target"
    assert effective_negatives([1, 2, 1], [1, 2, 1], [0, 1, 2]) == 1, "one target from two ranks counts once"
    assert effective_negatives([1, 2], [1, 2, 7, 8], [0, 1]) == 3, "hard negatives count"


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


def test_stage_1_trains_on_a_corpus(mirror: Mirror, build: Any, tmp_path: Path) -> None:
    data = vars(mirror.settings("twn", hard_negatives=1, val_pairs=4))
    run = build(SFTSettings(batch_size=4, chunk_size=4, max_steps=2), data=data, trainer={"val_every_steps": 2}).fit()
    batches = [next(iter(run.stage.data.__class__(run.settings, run.backbone.processor).train_dataloader()))]
    lines = [line for line in run.run_folder.history() if "contrastive/effective_negatives" in line]
    assert len(lines) == 2
    distinct = len(set(batches[0].target_hash_C.tolist()))
    assert lines[0]["contrastive/effective_negatives"] == distinct - 1 > 3, "hard negatives come on top of the batch"
    assert any("val/hit@1_generative" in line for line in run.run_folder.history())
