"""The trained backbones that come with the package, and the adapters trained on them.

Their SHA-256 digests are in `packaged.sha256`, and no file with another one is loaded. After replacing one on purpose:

    python -m twn_lightning.backbone.packaged
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from twn_lightning.atomic import whole_file
from twn_lightning.errors import ConfigError
from twn_lightning.manifest import file_digest

ASSETS = Path(__file__).resolve().parents[1] / "assets"
PACKAGED = {name: ASSETS / name for name in ("nano", "micro")}
"""Folders in Hugging Face layout by the names of their backbones; trained adapters are in `adapters` inside."""
DIGESTS = Path(__file__).with_suffix(".sha256")
"""In the format of `sha256sum`, names relative to `ASSETS`."""


def packaged_backbone(name: str) -> Path:
    """The folder of a packaged backbone.

    Args:
        name: a key of PACKAGED.

    Raises:
        ConfigError: this installation lacks its weights, or has altered ones.
    """
    folder = PACKAGED[name]
    if not (folder / "model.safetensors").is_file():
        raise ConfigError(
            f"the packaged backbone '{name}' is missing: {folder} has no model.safetensors. Install the package again, "
            f"train it with `{pretraining_command(name)}`, or set model.name to another one"
        )
    _require_unaltered(folder)
    return folder


def packaged_adapters(name: str) -> Path:
    """The folder of the trained adapters that come with a packaged backbone.

    Args:
        name: a key of PACKAGED.

    Raises:
        ConfigError: it comes without adapters, or this installation has altered ones.
    """
    folder = PACKAGED[name] / "adapters"
    if not (folder / "queries.pt").is_file():
        others = [other for other, path in PACKAGED.items() if (path / "adapters" / "queries.pt").is_file()]
        raise ConfigError(
            f"the backbone '{name}' has no packaged adapters: {folder} holds no queries.pt; there are some for "
            f"{', '.join(others) or 'none'}. Train them with `{adapters_command(name)}` and set adapters.init_from to "
            "the run's `adapters` folder"
        )
    _require_unaltered(folder)
    return folder


def altered_files(folder: Path) -> list[str]:
    """The files of a packaged folder whose content is not what the release was made with, or is missing.

    Args:
        folder: below `ASSETS`; of another one nothing is known.

    Returns:
        Names relative to `ASSETS`.
    """
    if ASSETS not in folder.parents:
        return []
    start = f"{folder.relative_to(ASSETS).as_posix()}/"
    return [name for name, digest in _digests().items() if name.startswith(start) and _digest(name) != digest]


def write_digests() -> None:
    """Record the digests of the files as they are now."""
    files = (path for path in ASSETS.rglob("*") if path.is_file() and path.suffix != ".md")
    names = sorted(path.relative_to(ASSETS).as_posix() for path in files)
    with whole_file(DIGESTS) as temporary:
        temporary.write_text("".join(f"{_digest(name)}  {name}\n" for name in names), encoding="utf-8")


@cache
def _require_unaltered(folder: Path) -> None:
    """Refuse a folder with altered files; read once a process."""
    if altered := altered_files(folder):
        raise ConfigError(
            f"{len(altered)} of the packaged files in {folder} are not those that this release was made with: "
            f"{', '.join(altered)}. Install the package again, or, if you replaced them, record their digests with "
            "`python -m twn_lightning.backbone.packaged`"
        )


@cache
def _digests() -> dict[str, str]:
    lines = DIGESTS.read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _digest(name: str) -> str | None:
    path = ASSETS / name
    return file_digest(path) if path.is_file() else None


def default_adapters(name: str | None) -> str:
    """Whose adapters to use where none are named: the backbone's own if it is a packaged one, else nano's."""
    return name if name in PACKAGED else "nano"


def pretraining_command(name: str) -> str:
    """What trains a packaged backbone anew; experiments/nano_backbone has every option."""
    return f"python -m twn_lightning.data.nano.pretrain --size {name} --work outputs/pretrain-{name}"


def adapters_command(name: str) -> str:
    """What trains adapters for a packaged backbone."""
    return f"twn train experiment=mmeb_nano_sft model={name}"


if __name__ == "__main__":
    write_digests()
