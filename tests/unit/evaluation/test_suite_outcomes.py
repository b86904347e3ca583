"""Outcomes of benchmark tasks: their own metric, losses over each query's candidates, every CoT decoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.support.fake_encoder import FakeEncoder
from tests.support.made_tasks import PROTOCOL, made_task
from twn_lightning.benchmark.eval_task import EvalTask
from twn_lightning.benchmark.nano_mirror import GroundTruth
from twn_lightning.data.sources.mmeb_nano import MMEBNanoSource
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.benchmark_suite import run_suite
from twn_lightning.evaluation.embedding_cache import EmbeddingCache
from twn_lightning.evaluation.encoders.protocol import EncodedItems
from twn_lightning.evaluation.outcomes import kind_of
from twn_lightning.evaluation.suite_outcomes import (
    BothModes,
    SuiteOutcome,
    TaskModes,
    evaluate_outcomes,
    suite_outcomes,
)
from twn_lightning.gate.labels import outcome_losses
from twn_lightning.reporting import build_summary
from twn_lightning.settings import DataSettings, EvaluationSettings, GateSettings
from twn_lightning.types import EmbeddingMode

GATE = GateSettings()
EVALUATION = EvaluationSettings(bootstrap_samples=50)
PLAIN = tuple(mode for mode in EmbeddingMode if mode is not EmbeddingMode.ADAPTIVE)


def outcomes_of(task: EvalTask, encoder: FakeEncoder | None = None, **options: Any) -> list[SuiteOutcome]:
    modes = BothModes(encoder or FakeEncoder(), EmbeddingMode.DISCRIMINATIVE).encode(task)
    return suite_outcomes(task, modes, suite="s", gate_settings=GATE, **options)


@pytest.mark.parametrize(("scope", "graded"), [("local", False), ("global", False), ("global", True)])
def test_never_and_always_have_the_scores_of_the_suite(scope: Any, graded: bool, tmp_path: Path) -> None:
    """The suite under each mode gives the mean of the recorded qualities."""
    task, found = made_task(scope=scope, graded=graded), {}
    for mode in ("discriminative", "generative"):
        protocol = PROTOCOL.__class__(query_mode=mode)
        known = EvalTask(task.task, protocol, task.queries, task.candidates, task.items)
        result = run_suite(FakeEncoder(), [known], output=tmp_path / mode, protocol=protocol)
        found[mode] = result.scores["T0"]["score"]
    outcomes = outcomes_of(task)
    assert np.mean([o.hit_discriminative for o in outcomes]) == pytest.approx(found["discriminative"])
    assert np.mean([o.hit_generative for o in outcomes]) == pytest.approx(found["generative"])
    assert 0 < found["discriminative"] < 1, "a task of some hits and some misses"


def test_losses_are_over_the_candidates_that_a_query_ranks() -> None:
    task = made_task(scope="local")
    encoder = FakeEncoder()
    modes = BothModes(encoder, EmbeddingMode.DISCRIMINATIVE).encode(task)
    row_of = {item.key: row for row, item in enumerate(task.candidates)}
    for i, outcome in enumerate(suite_outcomes(task, modes, suite="s", gate_settings=GATE)):
        own = [row_of[key] for key in task.items[i].candidate_keys or ()]
        scores = modes.candidates_CD[own] @ modes.generative.embedding_ND[i] / GATE.label_temperature
        expected = np.log(np.exp(scores - scores[0]).sum())
        assert outcome.loss_generative == pytest.approx(min(expected, np.log(len(own))), abs=1e-5)


def test_a_shared_corpus_gives_the_losses_of_the_gate_s_labels() -> None:
    task = made_task(scope="global")
    modes = BothModes(FakeEncoder(), EmbeddingMode.DISCRIMINATIVE).encode(task)
    positive_Q = torch.tensor([[c.key for c in task.candidates].index(item.labels[0]) for item in task.items])
    expected = outcome_losses(
        torch.from_numpy(modes.discriminative_QD),
        torch.from_numpy(modes.candidates_CD),
        positive_Q,
        positive_Q,
        torch.arange(len(task.candidates)),
        temperature=GATE.label_temperature,
    )
    found = [o.loss_discriminative for o in suite_outcomes(task, modes, suite="s", gate_settings=GATE)]
    assert found == pytest.approx(expected.tolist())


def test_of_graded_labels_the_best_is_the_positive() -> None:
    task = made_task(graded=True)
    outcomes = outcomes_of(task)
    assert [o.pair.positive.key for o in outcomes] == [item.labels[0] for item in task.items]
    partly = {o.hit_discriminative for o in outcomes} - {0.0, 1.0}
    assert partly, "NDCG is not 0 or 1"


def test_ranks_margins_and_best_candidates_by_hand() -> None:
    task = made_task(queries=1, candidates=3)
    positive = int([c.key for c in task.candidates].index(task.items[0].labels[0]))
    corpus = np.eye(3, dtype=np.float32)
    other, third = (row for row in range(3) if row != positive)
    plain = (0.8 * corpus[other] + 0.6 * corpus[positive])[None]
    thought = EncodedItems(
        corpus[positive][None], tokens_N=np.array([7]), malformed_N=np.array([False]), cots=["a CoT"]
    )
    modes = TaskModes(plain, thought, np.array([0.75]), corpus)
    truths = {task.queries[0].key: GroundTruth("steps", 3, "red 4", "the true CoT")}
    (outcome,) = suite_outcomes(task, modes, suite="s", gate_settings=GATE, truths=truths)
    assert (outcome.rank_discriminative, outcome.rank_generative) == (2, 1)
    assert (outcome.hit_discriminative, outcome.hit_generative) == (0.0, 1.0)
    assert outcome.margin == pytest.approx(0.2)
    assert outcome.top1_discriminative == task.candidates[other] != task.candidates[third]
    assert outcome.top1_generative == outcome.pair.positive == task.candidates[positive]
    assert (outcome.tokens, outcome.cot, outcome.probability) == (7, "a CoT", 0.75)
    assert (outcome.kind, outcome.pair.steps, outcome.pair.source) == ("steps", 3, "s/T0")


def test_the_routers_choose_among_what_was_recorded() -> None:
    tasks = [made_task("T0"), made_task("T1", scope="local"), made_task("T2", graded=True)]
    evaluation = evaluate_outcomes(FakeEncoder(), tasks, suite="s", gate_settings=GATE, evaluation=EVALUATION)
    without = np.array([o.hit_discriminative for o in evaluation.outcomes])
    thought = np.array([o.hit_generative for o in evaluation.outcomes])
    think = np.array([len(query.text) % 2 == 0 for task in tasks for query in task.queries])
    scores = evaluation.router_scores
    assert (evaluation.think_N == think).all()
    assert scores["adaptive"].hit_at_1 == pytest.approx(np.where(think, thought, without).mean())
    assert scores["oracle"].hit_at_1 == pytest.approx(np.maximum(without, thought).mean())
    assert scores["random"].think_rate == pytest.approx(think.mean(), abs=0.01)
    assert set(scores) == set(EVALUATION.routers)


def test_the_report_s_table_and_summary_take_it() -> None:
    task = made_task(graded=True)
    truths = {
        query.key: GroundTruth("direct" if i % 2 else "steps", i % 2, "", "") for i, query in enumerate(task.queries)
    }
    evaluation = evaluate_outcomes(
        FakeEncoder(), [task], suite="s", gate_settings=GATE, evaluation=EVALUATION, truths=truths
    )
    table = evaluation.decisions
    assert table.column("hit_generative").to_pylist() == [o.hit_generative for o in evaluation.outcomes]
    assert table.schema.field("kind").type == pa.string()
    summary = build_summary(
        table,
        suite="s",
        stages={},
        added_parameter_ratio={},
        router_scores=evaluation.router_scores,
        gate=evaluation.gate_metrics,
        seconds=1,
    )
    assert set(summary["by_kind"]) == {"direct", "steps"}
    assert summary["by_task"]["s/T0"]["num_queries"] == len(task.queries)


def test_pairs_of_the_nano_world_have_their_kind_in_their_key() -> None:
    pairs = MMEBNanoSource(DataSettings()).pairs("val", 60)
    assert {kind_of(pair.query.key) for pair in pairs} == {"direct", "lookalike", "steps"}
    assert {kind_of(pair.query.key) for pair in pairs if pair.steps} == {"steps"}
    assert kind_of("nano/val/3") is None


def test_without_a_gate_only_routers_that_need_none_are_scored() -> None:
    encoder = FakeEncoder(modes=PLAIN)
    evaluation = evaluate_outcomes(encoder, [made_task()], suite="s", gate_settings=GATE, evaluation=EVALUATION)
    assert set(evaluation.router_scores) == {"never", "always", "oracle"}
    assert not evaluation.think_N.any()
    assert "decide" not in encoder.calls
    with pytest.raises(ConfigError, match="never thinks"):
        BothModes(FakeEncoder(modes=(EmbeddingMode.DISCRIMINATIVE,)), EmbeddingMode.DISCRIMINATIVE)


def test_behind_the_suite_each_cot_is_decoded_once(tmp_path: Path) -> None:
    """Adaptive scores first, as `twn evaluate` has them: then only what had not thought is decoded, never decided."""
    task, encoder, cache = made_task(), FakeEncoder(), EmbeddingCache(tmp_path / "cache")
    run_suite(encoder, [task], output=tmp_path / "run", protocol=PROTOCOL, cache=cache)
    thought = {query.key for query in task.queries if len(query.text) % 2 == 0}
    before = len(encoder.calls)
    evaluate_outcomes(encoder, [task], suite="s", gate_settings=GATE, evaluation=EVALUATION, cache=cache)
    decoded = [keys for call, keys in zip(encoder.calls, encoder.batches, strict=True) if call == "generative"]
    assert sorted(key for keys in decoded for key in keys) == sorted({q.key for q in task.queries} - thought)
    assert encoder.calls[before:] == ["generative"]
