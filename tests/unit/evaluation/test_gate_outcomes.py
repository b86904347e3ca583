"""Outcomes recorded for gates: those of the suite, with features that rebuild the backbone's, and back from a file."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny_adapters import random_backbone
from twn_lightning.backbone.encoding import encode
from twn_lightning.data.sources.nano import NanoSource
from twn_lightning.errors import DataError
from twn_lightning.evaluation.gate_outcomes import GateOutcomes, record_gate_outcomes
from twn_lightning.evaluation.suite import encode_outcomes
from twn_lightning.settings import DataSettings, GateSettings

COUNT, CAP = 12, 4
SOURCE = NanoSource(DataSettings(test_pairs=COUNT))


@pytest.fixture(scope="module")
def found() -> GateOutcomes:
    return record_gate_outcomes(
        random_backbone(0.3), SOURCE, "test", COUNT, max_new_tokens=CAP, batch_size=5, gate_settings=GateSettings()
    )


def test_outcomes_are_those_of_the_suite(found: GateOutcomes) -> None:
    pairs = SOURCE.pairs("test", COUNT)
    expected = encode_outcomes(
        random_backbone(0.3),
        SOURCE,
        "test",
        pairs,
        gate=None,
        gate_settings=GateSettings(),
        batch_size=COUNT,
        max_new_tokens=CAP,
    )
    assert found.query_key.tolist() == [pair.query.key for pair in pairs]
    assert found.task.tolist() == [pair.source for pair in pairs]
    for mode in ("discriminative", "generative"):
        hits = [getattr(outcome, f"hit_{mode}") for outcome in expected]
        assert getattr(found, f"hit_{mode}").tolist() == hits
        losses = [getattr(outcome, f"loss_{mode}") for outcome in expected]
        np.testing.assert_allclose(getattr(found, f"loss_{mode}"), losses, atol=1e-4)
    np.testing.assert_allclose(found.margin, [outcome.margin for outcome in expected], atol=1e-5)
    assert found.tokens.tolist() == [outcome.tokens for outcome in expected]


def test_both_halves_of_the_features_are_kept_apart(found: GateOutcomes) -> None:
    queries = [pair.query for pair in SOURCE.pairs("test", COUNT)]
    features_NF = encode(random_backbone(0.3), queries, "discriminative").features_NF.numpy()
    both_NF = np.concatenate([found.hidden_state_ND, found.e_d_ND], axis=1)
    assert both_NF.dtype == np.float16
    np.testing.assert_allclose(both_NF, features_NF, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found.e_d_ND.astype(np.float32), axis=1), 1, atol=1e-2)


def test_what_is_written_comes_back_and_can_be_selected(found: GateOutcomes, tmp_path: Path) -> None:
    found.write(tmp_path / "gate_outcomes" / "test.npz")
    again = GateOutcomes.read(tmp_path / "gate_outcomes" / "test.npz")
    rows_N = again.of_tasks([found.task[0]])
    assert 0 < rows_N.sum() < COUNT
    selected = again.select(rows_N)
    assert len(selected) == rows_N.sum()
    for field in fields(GateOutcomes):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found, field.name))
        np.testing.assert_array_equal(getattr(selected, field.name), getattr(found, field.name)[rows_N])


def test_no_queries_are_refused() -> None:
    with pytest.raises(DataError, match="no queries to probe"):
        record_gate_outcomes(
            random_backbone(0.3), SOURCE, "test", 0, max_new_tokens=CAP, batch_size=5, gate_settings=GateSettings()
        )
