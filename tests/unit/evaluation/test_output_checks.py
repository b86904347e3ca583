"""Collapsed embeddings, unclosed CoTs, ties, a gate that decides the same for all, and a cache of another model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.fake_encoder import FakeEncoder
from tests.support.made_tasks import PROTOCOL, made_task
from twn_lightning import checks
from twn_lightning.errors import CheckError
from twn_lightning.evaluation.benchmark_suite import run_suite
from twn_lightning.evaluation.cache_check import check_cached
from twn_lightning.evaluation.embedding_cache import CachedEncoder, CachePolicy, EmbeddingCache
from twn_lightning.evaluation.output_checks import check_closed, check_embeddings, check_gate, check_ties
from twn_lightning.types import EmbeddingMode, Item, Side

ITEMS = [Item(f"k{i}", "find it", f"word{i} common") for i in range(6)]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The last message of each warning."""
    found: dict[str, str] = {}
    report = checks.report

    def noted(name: str, problem: str, *error: type[Exception]) -> None:
        if checks.CHECKS[name].severity == "error":
            report(name, problem, *error)  # type: ignore[arg-type]
        found[name] = problem

    monkeypatch.setattr(checks, "report", noted)
    return found


def test_embeddings_that_point_the_same_way(reported: dict[str, str]) -> None:
    direction = torch.nn.functional.normalize(torch.ones(64), dim=0)
    spread = torch.nn.functional.normalize(direction + 0.01 * torch.randn(50, 64), dim=1)
    check_embeddings(spread, "candidates")
    check_embeddings(direction[None], "one candidate")
    assert reported == {}
    check_embeddings(direction.expand(50, 64), "candidates")
    assert reported["embedding_collapse"].startswith("candidates: the mean cosine of 50 embeddings is 1.0000000")


def test_cots_that_never_close(reported: dict[str, str]) -> None:
    check_closed(2, 100, 24, "queries")
    check_closed(0, 0, 24, "queries")
    assert reported == {}
    check_closed(3, 100, 24, "queries")
    assert "3 of 100 CoTs did not end within data.max_new_tokens=24" in reported["unclosed_cots"]


def test_ties(reported: dict[str, str]) -> None:
    check_ties(0.01, "task 'T0'")
    assert reported == {}
    check_ties(0.25, "task 'T0'")
    assert "25.0 % of the queries tie" in reported["tie_rate"]


def test_a_gate_that_decides_the_same_for_all(reported: dict[str, str]) -> None:
    probability, pays = np.linspace(0.1, 0.4, 40), np.arange(40) % 4 == 0
    check_gate(probability, 0.3, pays)
    check_gate(probability, 0.5, np.zeros(40))
    check_gate(probability[:10], 0.5, pays[:10])
    assert reported == {}
    check_gate(probability, 0.5, pays)
    assert "does not think on all 40 queries (probabilities 0.100 to 0.400" in reported["gate_saturation"]
    assert "thinking pays on 10 of them" in reported["gate_saturation"]
    check_gate(probability, 0.05, pays)
    assert reported["gate_saturation"].startswith("the gate thinks on all")


def test_a_suite_reports_a_collapsed_encoder(tmp_path: Path, reported: dict[str, str]) -> None:
    run_suite(FakeEncoder(constant=True), [made_task()], output=tmp_path, name="made", protocol=PROTOCOL)
    assert {"embedding_collapse", "tie_rate"} <= set(reported)
    assert "task 'T0'" in reported["embedding_collapse"]


class Changed(FakeEncoder):
    """Claims to be the encoder it was, and computes something else."""

    def _vector(self, item: Item, mode: EmbeddingMode) -> np.ndarray:
        return super()._vector(item, mode)[::-1]


def through(
    encoder: FakeEncoder, root: Path, mode: EmbeddingMode, policy: CachePolicy = "only-missing"
) -> CachedEncoder:
    return CachedEncoder(encoder, Side.QUERY, mode, EmbeddingCache(root, policy))


@pytest.mark.parametrize("mode", [EmbeddingMode.DISCRIMINATIVE, EmbeddingMode.GENERATIVE])
def test_a_stale_cache_ends_the_run(mode: EmbeddingMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = through(FakeEncoder(), tmp_path, mode)
    assert not check_cached(first, ITEMS[:2]), "nothing is cached yet"
    first.encode(ITEMS)
    first.flush()
    again = through(FakeEncoder(), tmp_path, mode)
    assert check_cached(again, ITEMS[:2])
    assert again.reused == 0
    with pytest.raises(CheckError, match=r"the cached embedding of 'k[01]' has cosine .* Set task.cache=always"):
        check_cached(through(Changed(), tmp_path, mode), ITEMS[:2])
    for policy in ("only-cache", "always"):
        assert not check_cached(through(Changed(), tmp_path, mode, policy), ITEMS[:2])
    monkeypatch.setenv("TWN_CHECKS", "-stale_cache")
    assert not check_cached(through(Changed(), tmp_path, mode), ITEMS[:2])


def test_a_suite_compares_its_cache_once_a_side(tmp_path: Path) -> None:
    def run(encoder: FakeEncoder, output: str, tasks: int = 2) -> None:
        run_suite(
            encoder,
            [made_task(f"T{i}") for i in range(tasks)],
            output=tmp_path / output,
            name="made",
            protocol=PROTOCOL,
            cache=EmbeddingCache(tmp_path / "cache"),
            spot_check=2,
        )

    run(FakeEncoder(), "first")
    same = FakeEncoder()
    run(same, "second")
    assert same.encoded == 4
    with pytest.raises(CheckError, match="stale_cache"):
        run(Changed(), "third")
