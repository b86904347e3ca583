"""Stage 2: labels from the model's own outcomes, cached features, a calibrated threshold in the export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from twn_lightning.backbone.layout import read_config
from twn_lightning.errors import CheckError
from twn_lightning.gate import RoutingGate
from twn_lightning.settings import GateSettings, GateStageSettings
from twn_lightning.stages.labelled_split import LabelledSplit, ShuffledRows

STAGE = GateStageSettings(batch_size=16, max_epochs=3, patience=2)


def separable(count: int, width: int) -> LabelledSplit:
    """Thinking helps exactly where the first feature is positive."""
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(3))
    needs = (features[:, 0] > 0).float()
    return LabelledSplit(features, 3 * needs, torch.zeros(count), 1 - needs, torch.ones(count), torch.full((count,), 5))


def test_the_gate_learns_where_thinking_pays(build: Any) -> None:
    stage = GateStageSettings(batch_size=32, max_epochs=20, patience=20, learning_rate=3e-3)
    run = build(stage)
    width = 2 * run.backbone.hidden_size
    run.stage._labelled = {"gate": separable(512, width), "calibration": separable(256, width)}
    run.fit()
    metrics = run.stage.final_metrics()
    assert metrics["gate/auroc/before"] == 0.5
    assert metrics["gate/auroc/after"] > 0.95
    assert run.stage.summary()["metric"] == "gate/auroc"
    assert metrics["gate/hit@1_adaptive"] > 0.9


def test_only_the_gate_moves_and_its_threshold_is_exported(build: Any) -> None:
    run = build(STAGE)
    before = run.backbone.trainable_state()
    run.fit()
    for name, value in run.backbone.trainable_state().items():
        assert torch.equal(value, before[name])
    folder = run.run_folder.adapters
    assert read_config(folder)["gate_threshold"] == run.stage.threshold
    gate = RoutingGate.from_state(run.backbone.load_adapters(folder))
    features = torch.randn(3, 2 * run.backbone.hidden_size)
    torch.testing.assert_close(gate(features), run.stage.gate(features))


@pytest.mark.parametrize("calibration", ["conformal_quality", "conformal_budget"])
def test_a_guaranteed_threshold_is_chosen_on_queries_that_did_not_select_the_gate(build: Any, calibration: str) -> None:
    stage = GateStageSettings(batch_size=32, max_epochs=20, patience=20, learning_rate=3e-3)
    run = build(stage, data={"max_new_tokens": 5})
    run.settings.gate = GateSettings(calibration=calibration, quality_tolerance=0.05, token_budget=0.6)  # type: ignore[arg-type]
    width = 2 * run.backbone.hidden_size
    run.stage._labelled = {"gate": separable(512, width), "calibration": separable(256, width)}
    run.fit()
    parts = run.stage._labelled
    assert len(parts["validation"]) == len(parts["calibration"]) == 128
    both = torch.cat([parts[name].features_NF[:, 0] for name in ("validation", "calibration")])
    assert both.unique().numel() == 256
    metrics = run.stage.final_metrics()
    assert metrics["gate/hit@1_adaptive"] > 0.9
    assert 0 < run.stage.threshold < 1


def test_outcomes_are_decoded_once(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build(STAGE).fit()
    again = build(STAGE)
    monkeypatch.setattr(again.stage, "label", lambda split: pytest.fail("decoded again"))
    again.fit()


def test_training_stops_early(build: Any) -> None:
    run = build(GateStageSettings(batch_size=16, max_epochs=50, patience=1, learning_rate=1.0)).fit()
    assert run.trainer.global_step < run.stage.total_steps


def test_rows_are_a_function_of_the_step() -> None:
    rows = ShuffledRows(10, 4, epochs=3, seed=1)
    straight = list(rows)
    assert len(straight) == len(rows) == 6
    assert len({row for batch in straight[:2] for row in batch}) == 8
    resumed = ShuffledRows(10, 4, epochs=3, seed=1)
    resumed.load_state_dict({"step": 3})
    assert list(resumed) == straight[3:]


def test_labels_of_other_adapters_are_refused(build: Any) -> None:
    build(STAGE).fit()
    again = build(STAGE)
    with torch.no_grad():
        again.backbone.queries.add_(0.1)
    with pytest.raises(CheckError, match=r"gate.safetensors holds outcomes of other adapters.*stale_cache"):
        again.fit()
