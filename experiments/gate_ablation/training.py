"""Gates trained on recorded outcomes as stage 2 trains its own: same network, labels, loss, optimizer and early stop.

Shape letters: N queries, F gate features.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from experiments.gate_ablation.runs import GateRun
from experiments.gate_ablation.variants import Feature, Variant
from twn_lightning.evaluation.gate_outcomes import GateOutcomes
from twn_lightning.gate import RoutingGate, gate_labels
from twn_lightning.objectives import gate_binary_cross_entropy
from twn_lightning.settings import GateSettings, GateStageSettings
from twn_lightning.stages.labelled_split import LabelledSplit, ShuffledRows
from twn_lightning.stages.optim import Group, build_optimizer


def labelled_split(outcomes: GateOutcomes, features: tuple[Feature, ...]) -> LabelledSplit:
    """Recorded outcomes as stage 2 keeps them, with some of the features."""
    columns = {
        "hidden state": outcomes.hidden_state_ND,
        "e_d": outcomes.e_d_ND,
        "margin": outcomes.margin[:, None],
    }
    return LabelledSplit(
        torch.cat([torch.from_numpy(columns[name]).float() for name in features], dim=-1),
        torch.from_numpy(outcomes.loss_discriminative).float(),
        torch.from_numpy(outcomes.loss_generative).float(),
        torch.from_numpy(outcomes.hit_discriminative),
        torch.from_numpy(outcomes.hit_generative),
        torch.from_numpy(outcomes.tokens),
    )


def hard_labels(outcomes: GateOutcomes, price: float, mean_tokens: float) -> Tensor:
    """Whether thinking gained more than its price, (N,)."""
    return gate_labels(labelled_split(outcomes, ("margin",)).gain(price, mean_tokens))


def train_variant(run: GateRun, variant: Variant, seed: int, without: tuple[str, ...] = ()) -> RoutingGate:
    """Train a gate on the outcomes of one training seed.

    Args:
        run: what was recorded.
        variant: features, label and price.
        seed: of the gate's initialisation and the order of its rows.
        without: tasks that it must not see, neither in training nor in the early stop.
    """
    train, validation = (
        labelled_split(split.select(~split.of_tasks(without)), variant.features)
        for split in (run.gate, run.calibration)
    )
    settings = replace(run.settings, label=variant.label, price=variant.price)
    return train_gate(train, validation, settings, GateStageSettings(), seed)


def train_gate(
    train: LabelledSplit, validation: LabelledSplit, settings: GateSettings, stage: GateStageSettings, seed: int
) -> RoutingGate:
    """Stage 2 without a backbone: the gate of the least validation loss.

    Args:
        train: outcomes to learn from.
        validation: outcomes for the early stop.
        settings: width, label and price.
        stage: optimizer, batch size and patience.
        seed: of the initialisation and of the order of the rows.

    Relations:
        Equals `RoutingGateTraining` from the same initial weights with `data.seed` = seed.
    """
    mean_tokens = max(float(train.tokens_N.float().mean()), 1.0)
    label_N, validation_label_N = (
        gate_labels(split.gain(settings.price, mean_tokens), settings.label, soft_scale=settings.soft_scale)
        for split in (train, validation)
    )
    gate = new_gate(train.features_NF, settings.hidden, seed)
    rows = ShuffledRows(len(train), stage.batch_size, stage.max_epochs, seed)
    group = Group("gate", list(gate.parameters()), stage.learning_rate, stage.weight_decay, len(rows))
    optimizer, scheduler = build_optimizer([group], warmup_ratio=0.0)
    best, best_state, waited = float("inf"), gate.state_dict(), 0
    for step, batch in enumerate(rows, start=1):
        gate_binary_cross_entropy(gate(train.features_NF[batch]), label_N[batch]).backward()
        nn.utils.clip_grad_norm_(gate.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if step % rows.steps_per_epoch:
            continue
        with torch.no_grad():
            loss = float(gate_binary_cross_entropy(gate(validation.features_NF), validation_label_N))
        waited = 0 if loss < best else waited + 1
        if loss <= best:
            best, best_state = loss, {name: value.clone() for name, value in gate.state_dict().items()}
        if waited >= stage.patience:
            break
    gate.load_state_dict(best_state)
    return gate.eval()


def new_gate(features_NF: Tensor, hidden: int, seed: int) -> RoutingGate:
    """An untrained gate, its features standardised from training rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = RoutingGate(features_NF.shape[1], hidden)
    gate.standardise_from(features_NF)
    return gate
