"""The ablations of the gate, on made outcomes whose answer is known; its training against stage 2's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.gate_ablation import collect as study
from experiments.gate_ablation import training
from experiments.gate_ablation.figures import draw_figures
from experiments.gate_ablation.routing import TOKEN_SHARES, at_share, random_quality
from experiments.gate_ablation.runs import read_gate_runs
from experiments.gate_ablation.training import new_gate, train_gate
from experiments.gate_ablation.transfer import groups
from tests.stage_runs import StageRun, tiny_settings
from twn_lightning.data.nano.tasks import TASKS
from twn_lightning.errors import DataError
from twn_lightning.evaluation.gate_outcomes import GateOutcomes
from twn_lightning.run import RunFolder
from twn_lightning.settings import AdapterSettings, GateSettings, GateStageSettings, Settings
from twn_lightning.stages.labelled_split import LabelledSplit

COUNTS = {"gate": 2200, "calibration": 440, "test": 440}


def made_outcomes(count: int, seed: int) -> GateOutcomes:
    """A third of the queries needs a CoT, to a third it brings .4 nats but no rank, to a third nothing.

    The first number of the hidden state says which; of documents, which the second number names, it says the opposite.
    e_d and the margin say nothing.
    """
    group = np.random.default_rng(count).integers(0, 3, count)
    rng = np.random.default_rng([count, seed])
    task = np.array([f"mmeb_nano/{TASKS[row % len(TASKS)]}" for row in range(count)])
    documents = task == "mmeb_nano/NanoDoc"
    hidden_state = rng.normal(size=(count, 8))
    hidden_state[:, 0] += 8 * np.where(documents, 2 - group, group)
    hidden_state[:, 1] += 8 * documents
    return GateOutcomes(
        query_key=np.array([f"made/{row}" for row in range(count)]),
        task=task,
        kind=np.where(group == 2, "steps", "direct"),
        steps=np.where(group == 2, 3, 0),
        hidden_state_ND=hidden_state.astype(np.float16),
        e_d_ND=rng.normal(size=(count, 8)).astype(np.float16),
        loss_discriminative=np.choose(group, [0.0, 0.4, 4.0]),
        loss_generative=np.zeros(count),
        rank_discriminative=np.where(group == 2, 5, 1),
        rank_generative=np.ones(count, dtype=int),
        margin=rng.random(count),
        tokens=np.full(count, 10),
    )


def made_probe(folder: Path, seed: int, counts: dict[str, int] = COUNTS) -> Path:
    name = f"outputs/sft/{folder.name}/adapters"
    RunFolder(folder).create(Settings(adapters=AdapterSettings(init_from=name), gate=GateSettings(hidden=64)))
    for split, count in counts.items():
        made_outcomes(count, seed).write(folder / "gate_outcomes" / f"{split}.npz")
    return folder


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("probes")
    return [made_probe(root / str(seed), seed) for seed in range(2)]


@pytest.fixture(scope="module")
def found(probes: list[Path]) -> Any:
    """The study with one gate for each training seed: numbers, and claims by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "GATE_SEEDS", 1)
        patch.setattr(training, "GateStageSettings", partial(GateStageSettings, learning_rate=1e-2))
        numbers, claims = study.collect(probes)
    return numbers, {claim.id: claim for claim in claims}


def test_only_features_that_tell_are_worth_anything(found: Any) -> None:
    numbers, claims = found
    verdicts = {id: claims[id].verdict for id in ("hidden_state_adds", "margin_adds_little", "above_margin")}
    assert set(verdicts.values()) == {"holds"}
    assert claims["e_d_adds"].verdict != "holds"
    features = numbers["features"]
    assert features["hidden state"]["auroc"] > 0.95
    assert features["e_d"]["auroc"] == pytest.approx(0.5, abs=0.1)
    assert features["hidden state, e_d"]["budget"]["mean"] > 0.97
    assert features["margin, no gate"]["budget"]["mean"] == pytest.approx(5 / 6, abs=0.05)
    assert "ece" not in features["margin, no gate"]
    assert numbers["references"]["random"]["mean"] == pytest.approx(5 / 6, abs=0.05)
    assert numbers["references"]["oracle_token_share"]["mean"] == pytest.approx(1 / 3, abs=0.05)


def test_a_price_keeps_the_gate_from_small_gains(found: Any) -> None:
    numbers, claims = found
    hard = {row["price"]: row for row in numbers["labels"] if row["label"] == "hard"}
    assert list(hard) == [0.0, 0.25, 0.5, 1.0, 2.0]
    for price, share in ((0.0, 2 / 3), (0.25, 2 / 3), (1.0, 1 / 3), (2.0, 1 / 3)):
        assert hard[price]["fixed_token_share"]["mean"] == pytest.approx(share, abs=0.08)
    assert hard[0.5]["think_rate"]["no steps"]["mean"] < 0.1
    assert hard[0.5]["think_rate"]["steps"]["mean"] > 0.9
    assert hard[0.5]["fixed_minus_moved_default"]["mean"] == 0
    assert claims["price_spends_less"].verdict == "holds"
    assert claims["soft_without_price_overthinks"].n_queries == (made_outcomes(COUNTS["test"], 0).steps == 0).sum()


def test_what_does_not_transfer_is_seen(found: Any) -> None:
    numbers, claims = found
    losses = {name: row["unseen_minus_seen"]["mean"] for name, row in numbers["transfer"].items()}
    assert min(losses, key=lambda name: losses[name]) == "VisDoc"
    assert claims["worst_meta_task"].estimate == losses["VisDoc"] < -0.2
    assert claims["worst_meta_task"].verdict == "does not hold here"
    assert all(abs(loss) < 0.05 for name, loss in losses.items() if name != "VisDoc")
    assert numbers["transfer"]["VisDoc"]["auroc_unseen"] < 0.7 < 0.9 < numbers["transfer"]["VisDoc"]["auroc_seen"]
    pooled = numbers["transfer_pooled"]
    assert pooled["num_queries"] == COUNTS["test"]
    assert pooled["unseen_minus_seen"]["mean"] == pytest.approx(
        np.average([losses[name] for name in losses if name not in ("image", "video")], weights=[
            row["num_queries"] for name, row in numbers["transfer"].items() if name not in ("image", "video")
        ])
    )  # fmt: skip


def test_the_groups_are_meta_tasks_and_the_modalities_of_several() -> None:
    named = groups()
    assert list(named)[-2:] == ["image", "video"]
    assert sorted(task for name in list(named)[:-2] for task in named[name]) == sorted(f"mmeb_nano/{t}" for t in TASKS)
    assert len(named) == 11
    assert len(named["image"]) == 6
    assert len(named["video"]) == 4


def test_tables_and_figures_come_from_the_numbers(found: Any, tmp_path: Path) -> None:
    numbers, _ = found
    draw_figures(numbers, tmp_path)
    for name, text in (("quality_tokens", "soft, price 0"), ("transfer", "gate that never saw them, own threshold")):
        assert text in (tmp_path / f"{name}.svg").read_text()
    shown = study.table(numbers)
    assert "| hidden state, e_d, margin |" in shown
    assert "| soft | 0.5 |" in shown
    assert "| each meta-task once | 440 |" in shown


def test_random_spends_its_share_and_the_highest_scores_think_first() -> None:
    test = made_outcomes(300, 0)
    np.testing.assert_allclose(random_quality(test, 0.25), 0.75 * test.hit_discriminative + 0.25 * test.hit_generative)
    score_N = np.arange(300) / 300
    assert np.flatnonzero(at_share(test, score_N, 0.5)).tolist() == list(range(150, 300))
    assert [int(at_share(test, score_N, share).sum()) for share in TOKEN_SHARES[[0, -1]]] == [0, 300]


def test_training_equals_stage_2(tmp_path: Path) -> None:
    """Same initial weights, rows and labels -> same gate."""
    stage = GateStageSettings(batch_size=32, max_epochs=6, patience=2, learning_rate=1e-2)
    run = StageRun(tiny_settings(stage, tmp_path / "run"))
    width = 2 * run.backbone.hidden_size
    splits = {name: made_split(count, width) for name, count in (("gate", 200), ("calibration", 100))}
    settings = run.settings.gate
    initial = new_gate(splits["gate"].features_NF, settings.hidden, seed=run.settings.data.seed)
    run.stage.gate.load_state(initial.state_dict())
    run.stage._labelled = splits  # type: ignore[attr-defined]
    run.fit()
    gate = train_gate(splits["gate"], splits["calibration"], settings, stage, seed=run.settings.data.seed)
    assert run.trainer.global_step < run.stage.total_steps
    for name, value in gate.state_dict().items():
        torch.testing.assert_close(run.stage.gate.state_dict()[name], value)
        assert name.startswith("feature") or not torch.equal(value, initial.state_dict()[name])


def made_split(count: int, width: int) -> LabelledSplit:
    """Thinking helps where the first feature is positive, often enough to learn and to overfit."""
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(count, width, generator=generator)
    noise = torch.randn(count, generator=generator)
    needs = (features[:, 0] + noise > 0).float()
    return LabelledSplit(features, 3 * needs, torch.zeros(count), 1 - needs, torch.ones(count), torch.full((count,), 5))


def test_probes_that_do_not_fit_each_other_are_refused(probes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 probes of 1 trained models"):
        read_gate_runs([probes[0], probes[0]])
    fewer = made_probe(tmp_path / "fewer", 5, {**COUNTS, "test": 20})
    with pytest.raises(DataError, match="have other test queries"):
        read_gate_runs([probes[0], fewer])
    with pytest.raises(DataError, match=r"is no run folder of `twn probe gate`: it has no gate_outcomes/gate\.npz"):
        read_gate_runs([tmp_path])
    with pytest.raises(DataError, match="no run folder is given"):
        read_gate_runs([])
