"""Probes of trained adapters, from resolved settings into a run folder: CoTs, modes, the gate, gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning import seed_everything

from twn_lightning.backbone.dual_lora import DualLoRABackbone
from twn_lightning.backbone.layout import settings_of
from twn_lightning.backbone.loading import adapters_folder, load_backbone
from twn_lightning.data.datamodule import TWNDataModule
from twn_lightning.data.sources import Split, get_source
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.cot_probe import probe_cots
from twn_lightning.evaluation.encoders.twn import load_trained
from twn_lightning.evaluation.gate_outcomes import record_gate_outcomes
from twn_lightning.evaluation.mode_matrix import mode_matrix
from twn_lightning.evaluation.prefix_outcomes import record_prefixes
from twn_lightning.evaluation.probes import write_columns
from twn_lightning.run import RunFolder
from twn_lightning.settings import Settings, SFTSettings
from twn_lightning.stages.dual_lora_sft import DualLoRASFT
from twn_lightning.stages.gradient_conflict import conflict_scores, loss_gradients

Progress = Callable[[int], None]

RECORDED_SPLITS: tuple[Split, ...] = ("gate", "calibration", "test")
"""What `probe_prefixes` and `probe_gate` record: to learn from, to choose by, to report on."""
COT_PROBE_FILE, MODE_MATRIX_FILE = "cot_probe.parquet", "mode_matrix.parquet"
SAME_FORWARD_PASS = ("kv_detached", "kv_joint")
"""Interfaces that differ in their gradients only: adapters of one can be measured under the other."""


def probe_cot(
    settings: Settings, run: RunFolder, *, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Embed the test queries with their own, tampered and other queries' CoTs: see `evaluation.cot_probe`.

    Args:
        settings: `adapters.init_from`, `data` and `evaluation.batch_size` decide.
        run: where cot_probe.parquet (a row per query) and metrics.json go.
        device: where the backbone goes.
        progress: called with the number of queries done, after each batch.

    Returns:
        The scores, as in metrics.json.
    """
    backbone, _, _ = load_trained(settings.model, settings.adapters.init_from, device=device)
    probe = probe_cots(
        backbone,
        get_source(settings.data.source, settings.data),
        "test",
        settings.data.test_pairs,
        batch_size=settings.evaluation.batch_size,
        max_new_tokens=settings.data.max_new_tokens,
        seed=settings.seed,
        progress=progress,
    )
    write_columns(probe.columns, run.path / COT_PROBE_FILE)
    scores = {**_origin(backbone, settings), **probe.scores()}
    run.finish(scores)
    return scores


def probe_modes(
    settings: Settings, run: RunFolder, *, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Score the test queries under every query mode and candidate mode: see `evaluation.mode_matrix`.

    Args:
        settings: `adapters.init_from`, `gate.threshold`, `data` and `evaluation.batch_size` decide.
        run: where mode_matrix.parquet (a row per query) and metrics.json go.
        device: where the backbone goes.
        progress: called with the number of queries done, after each batch.

    Returns:
        The scores, as in metrics.json.
    """
    backbone, gate, threshold = load_trained(
        settings.model, settings.adapters.init_from, settings.gate.threshold, device
    )
    matrix = mode_matrix(
        backbone,
        get_source(settings.data.source, settings.data),
        "test",
        settings.data.test_pairs,
        gate=gate,
        threshold=threshold,
        batch_size=settings.evaluation.batch_size,
        max_new_tokens=settings.data.max_new_tokens,
        progress=progress,
    )
    write_columns(matrix.columns, run.path / MODE_MATRIX_FILE)
    scores = {**_origin(backbone, settings), "threshold": threshold, **matrix.scores()}
    run.finish(scores)
    return scores


def probe_prefixes(
    settings: Settings, run: RunFolder, *, stride: int, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Rank after every few CoT tokens, on three splits: see `evaluation.prefix_outcomes`.

    Args:
        settings: `adapters.init_from`, `gate`, `data` and `evaluation.batch_size` decide.
        run: where prefixes/<split>.npz and metrics.json go.
        stride: CoT tokens between two rankings.
        device: where the backbone goes.
        progress: called with the number of queries done, after each batch.

    Returns:
        The test split's hit@1 and tokens per query after each cut, and the gate's threshold; as in metrics.json.
    """
    backbone, gate, threshold = load_trained(
        settings.model, settings.adapters.init_from, settings.gate.threshold, device
    )
    source = get_source(settings.data.source, settings.data)
    for split in RECORDED_SPLITS:
        found = record_prefixes(
            backbone,
            source,
            split,
            getattr(settings.data, f"{split}_pairs"),
            stride=stride,
            max_new_tokens=settings.data.max_new_tokens,
            batch_size=settings.evaluation.batch_size,
            gate=gate,
            gate_settings=settings.gate,
            progress=progress,
        )
        found.write(run.path / "prefixes" / f"{split}.npz")
    scores = {
        **_origin(backbone, settings),
        "threshold": threshold,
        "cuts": found.cuts_P.tolist(),
        "hit@1": found.hit_NP.mean(0).tolist(),
        "tokens_per_query": found.spent_NP.mean(0).tolist(),
    }
    run.finish(scores)
    return scores


def probe_gate(
    settings: Settings, run: RunFolder, *, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Record the gate's features and both modes' outcomes, on three splits: see `evaluation.gate_outcomes`.

    Args:
        settings: `adapters.init_from`, `gate`, `data` and `evaluation.batch_size` decide.
        run: where gate_outcomes/<split>.npz and metrics.json go.
        device: where the backbone goes.
        progress: called with the number of queries done, after each batch.

    Returns:
        Of each split the number of queries, hit@1 without and with a CoT, and tokens per CoT; as in metrics.json.
    """
    backbone, _, _ = load_trained(settings.model, settings.adapters.init_from, device=device)
    source = get_source(settings.data.source, settings.data)
    scores: dict[str, Any] = _origin(backbone, settings)
    for split in RECORDED_SPLITS:
        found = record_gate_outcomes(
            backbone,
            source,
            split,
            getattr(settings.data, f"{split}_pairs"),
            max_new_tokens=settings.data.max_new_tokens,
            batch_size=settings.evaluation.batch_size,
            gate_settings=settings.gate,
            progress=progress,
        )
        found.write(run.path / "gate_outcomes" / f"{split}.npz")
        scores[split] = {
            "queries": len(found),
            "never": float(found.hit_discriminative.mean()),
            "always": float(found.hit_generative.mean()),
            "tokens_per_cot": float(found.tokens.mean()),
        }
    run.finish(scores)
    return scores


def probe_gradients(
    settings: Settings, run: RunFolder, *, batches: int, device: str = "cpu", progress: Progress | None = None
) -> dict[str, Any]:
    """Compare the gradients of stage 1's two losses on train batches: see `stages.gradient_conflict`.

    Args:
        settings: stage 1; `adapters.init_from` names the weights, None measures fresh ones; `interface` may be the
            kv_joint that kv_detached adapters were not trained with, and the other way round.
        run: where metrics.json goes.
        batches: how many.
        device: where the backbone goes.
        progress: called with 1 after each batch.

    Returns:
        The scores, as in metrics.json.

    Raises:
        ConfigError: another stage, or an interface that reads the adapters in another way.
    """
    if not isinstance(settings.stage, SFTSettings):
        raise ConfigError(f"stage={settings.stage.name} has no two losses to compare: set stage=sft")
    settings = replace(settings, stage=replace(settings.stage, max_steps=batches))
    seed_everything(settings.seed, workers=True, verbose=False)
    backbone = _backbone_for_gradients(settings, device)
    stage = DualLoRASFT(settings, backbone, run, TWNDataModule(settings, backbone.processor)).eval()
    measured = []
    for batch in stage.data.train_dataloader():
        measured.append(loss_gradients(stage, batch))
        if progress is not None:
            progress(1)
    scores = {**_origin(backbone, settings), "arrangement": backbone.settings.arrangement, **conflict_scores(measured)}
    run.finish(scores)
    return scores


def _backbone_for_gradients(settings: Settings, device: str) -> DualLoRABackbone:
    """The adapters as they were trained, then under the interface asked for."""
    if settings.adapters.init_from is None:
        return load_backbone(settings.model, settings.adapters, settings.interface, device)
    folder = adapters_folder(settings.adapters.init_from)
    adapters, trained = settings_of(folder)
    wanted = settings.interface.name
    if wanted != trained.name and not {wanted, trained.name} <= set(SAME_FORWARD_PASS):
        raise ConfigError(
            f"the adapters in {folder} were trained with interface={trained.name}, and interface={wanted} reads them "
            f"in another way: only {' and '.join(SAME_FORWARD_PASS)} share a forward pass. Set interface={trained.name}"
        )
    backbone = load_backbone(settings.model, replace(adapters, init_from=None), trained, device)
    backbone.load_adapters(folder)
    backbone.interface = settings.interface
    return backbone


def _origin(backbone: DualLoRABackbone, settings: Settings) -> dict[str, Any]:
    """What was probed."""
    return {
        "source": settings.data.source,
        "backbone": backbone.name,
        "adapters": settings.adapters.init_from,
        "interface": backbone.interface.name,
        "seed": settings.seed,
    }
