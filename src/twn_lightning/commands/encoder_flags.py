"""The flags that choose an encoder, shared by the verbs that embed; and what they say, for loading it again."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from twn_lightning import config
from twn_lightning.backbone.loading import adapters_folder, model_of
from twn_lightning.backbone.packaged import PACKAGED, default_adapters
from twn_lightning.errors import ConfigError, unknown_name
from twn_lightning.evaluation.encoders import ENCODERS, Encoder, default_cot_cap, get_encoder
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode

_DEFAULTS: dict[str, Any] = {"encoder": "twn", "batch_size": 64}
_COUNTS = ("batch_size", "max_frames", "max_pixels", "max_new_tokens")
_REMEMBERED = ("encoder", "adapters", "model", "model_path", "dtype", "threshold", *_COUNTS)


def add_encoder_flags(options: argparse.ArgumentParser) -> None:
    """Add the flags; all default to None, so that what an index remembers can take their place."""
    group = options.add_argument_group("encoder")
    group.add_argument("--encoder", help=f"one of {', '.join(ENCODERS)} (default twn)")
    group.add_argument("--adapters", help="a run's adapters folder, or a packaged backbone: its own (default nano)")
    group.add_argument("--model", help="the backbone's name (default: what the adapters were trained on)")
    group.add_argument("--model-path", help="a local folder with the backbone's weights")
    group.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: the model's own setting")
    group.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    group.add_argument("--max-frames", type=int, help="frames taken of a video (default: the model's own setting)")
    group.add_argument("--max-pixels", type=int, help="pixels of an image or a frame, at most")
    group.add_argument("--max-new-tokens", type=int, help="cap of a CoT (default 64 on nano, micro and tiny, else 512)")
    group.add_argument("--threshold", type=float, help="think iff probability > this (default: as calibrated)")
    group.add_argument("--batch-size", type=int, help="inputs encoded and written together (default 64)")


def load_encoder(
    chosen: argparse.Namespace, remembered: dict[str, Any] | None = None
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder that the flags name.

    Args:
        chosen: the parsed flags.
        remembered: what an index was built with; a flag goes before it, and another --encoder before all of it.

    Returns:
        The encoder, and how to load it again.

    Raises:
        ConfigError: unknown names, or weights that cannot be had.
        AdapterError: adapters that do not fit.
    """
    given = {name: getattr(chosen, name) for name in _REMEMBERED if getattr(chosen, name) is not None}
    remembered = remembered or {}
    same = given.get("encoder", remembered.get("encoder")) == remembered.get("encoder")
    values = {**_DEFAULTS, **(remembered if same else {}), **given}
    if values["encoder"] not in ENCODERS:
        raise ConfigError(f"--encoder: {unknown_name('encoder', values['encoder'], ENCODERS)}")
    _check_numbers(values)
    for name in ("adapters", "model_path"):
        if name in given and given[name] not in PACKAGED:
            values[name] = str(Path(given[name]).expanduser().resolve())
    model = _model_settings(values)
    values.setdefault("max_new_tokens", default_cot_cap(model.name))
    encoder = get_encoder(
        values["encoder"],
        model=model,
        adapters_path=values.get("adapters"),
        device=device_of(chosen.device),
        max_new_tokens=values["max_new_tokens"],
        batch_size=values["batch_size"],
    )
    if "threshold" in values:
        if not isinstance(encoder, AdaptiveEncoder) or encoder.gate is None:
            raise ConfigError("--threshold is the gate's, and this encoder has none")
        encoder.threshold = values["threshold"]
    return encoder, values


def device_of(name: str | None) -> str:
    """The device asked for; by default the first CUDA device where there is one.

    Raises:
        ConfigError: no such device, or CUDA where there is none.
    """
    cuda = torch.cuda.is_available()
    if name is None:
        return "cuda" if cuda else "cpu"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device: {unknown_name('device', name, ['cpu', 'cuda'])}")
    if name != "cpu" and not cuda:
        raise ConfigError(f"--device {name}: this machine has no CUDA device; use --device cpu")
    return name


def _check_numbers(values: dict[str, Any]) -> None:
    if not 0 <= values.get("threshold", 0) <= 1:
        raise ConfigError(f"--threshold must be between 0 and 1, it is {values['threshold']}")
    for name in _COUNTS:
        if values.get(name, 1) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, it is {values[name]}")


def _model_settings(values: dict[str, Any]) -> ModelSettings:
    name = values.get("model")
    if values["encoder"] == "twn":
        values.setdefault("adapters", default_adapters(name))
        name = name or model_of(adapters_folder(values["adapters"])).name
        settings = config.load_settings([f"model={name}"]).model
    elif name or values.get("model_path"):
        settings = ModelSettings(name=name or values["encoder"])
    else:
        raise ConfigError(f"--encoder {values['encoder']} needs --model (a hub id) or --model-path (a folder)")
    changes: dict[str, Any] = {name: values[name] for name in ("dtype", "max_frames", "max_pixels") if name in values}
    if "model_path" in values:
        changes["path"] = values["model_path"]
    return replace(settings, **changes)


def known_mode(name: str | None) -> EmbeddingMode | None:
    """The mode of that name, before an encoder is loaded; None where none was asked for.

    Raises:
        ConfigError: unknown mode.
    """
    known = [mode.value for mode in EmbeddingMode]
    if name is not None and name not in known:
        raise ConfigError(f"--mode: {unknown_name('mode', name, known)}")
    return None if name is None else EmbeddingMode(name)


def progress_bar() -> Progress:
    """A bar that counts inputs."""
    columns = [*Progress.get_default_columns()[:-1], TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn()]
    return Progress(*columns)
