"""The trained backbones that come with the package, and the adapters trained on them."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.errors import ConfigError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PACKAGED = {name: ASSETS / name for name in ("nano", "micro")}
"""Folders in Hugging Face layout by the names of their backbones; trained adapters are in `adapters` inside."""


def packaged_backbone(name: str) -> Path:
    """The folder of a packaged backbone.

    Args:
        name: a key of PACKAGED.

    Raises:
        ConfigError: this installation lacks its weights.
    """
    folder = PACKAGED[name]
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(
            f"the packaged backbone '{name}' is missing: {folder} has no model.safetensors. Install the package again, "
            f"train it with `{pretraining_command(name)}`, or set model.name to another one"
        )
    return folder


def packaged_adapters(name: str) -> Path:
    """The folder of the trained adapters that come with a packaged backbone.

    Args:
        name: a key of PACKAGED.

    Raises:
        ConfigError: it comes without adapters.
    """
    folder = PACKAGED[name] / "adapters"
    if not (folder / "queries.pt").is_file():
        others = [other for other, path in PACKAGED.items() if (path / "adapters" / "queries.pt").is_file()]
        raise ConfigError(
            f"the backbone '{name}' has no packaged adapters: {folder} holds no queries.pt; there are some for "
            f"{', '.join(others) or 'none'}. Train them with `{adapters_command(name)}` and set adapters.init_from to "
            "the run's `adapters` folder"
        )
    return folder


def default_adapters(name: str | None) -> str:
    """Whose adapters to use where none are named: the backbone's own if it is a packaged one, else nano's."""
    return name if name in PACKAGED else "nano"


def pretraining_command(name: str) -> str:
    """What trains a packaged backbone anew; experiments/nano_backbone has every option."""
    return f"python -m twn_lightning.data.nano.pretrain --size {name} --work outputs/pretrain-{name}"


def adapters_command(name: str) -> str:
    """What trains adapters for a packaged backbone."""
    return f"twn train experiment=mmeb_nano_sft model={name}"
