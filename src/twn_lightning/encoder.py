"""TWN in five lines of Python:

from twn_lightning import TWNEncoder

encoder = TWNEncoder.from_pretrained("nano")
out = encoder.encode(["a text", image, {"text": "which one?", "image": image}], mode="adaptive")
out.embeddings, out.think, out.cot, out.tokens
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from rich.progress import Progress

from twn_lightning.backbone.layout import CONFIG_FILE, GATE_FILE, QUERIES_FILE, read_config
from twn_lightning.backbone.loading import adapters_folder, model_of
from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.errors import AdapterError, ConfigError, unknown_name
from twn_lightning.evaluation.embed import EmbedSettings
from twn_lightning.evaluation.encoders import Encoder, default_cot_cap, default_mode, twn
from twn_lightning.evaluation.encoders.truncated import TruncatedEncoder
from twn_lightning.evaluation.outputs import ArrayKind, EncoderOutput
from twn_lightning.evaluation.value_inputs import read_values
from twn_lightning.settings import ModelSettings
from twn_lightning.types import EmbeddingMode, Side

Named = TypeVar("Named", EmbeddingMode, Side)

HUB_FILES = [CONFIG_FILE, GATE_FILE, QUERIES_FILE, "reasoning/*", "embedding/*", "*.json", "README.md"]
"""What of a repository on the Hub is downloaded."""


class TWNEncoder:
    """Texts, images and videos to embeddings; thinks where the gate says so. `from_pretrained` makes one.

    Several threads may share one: calls are answered one at a time. For speed, put many inputs into one call instead.

    Args:
        item_encoder: the backbone with its adapters, its gate and the gate's threshold.
        folder: where the adapters are from, for files that name their encoder.
        matryoshka_dims: widths below the full one that the adapters were trained for.
        model: how the backbone was loaded.
    """

    def __init__(
        self, item_encoder: twn.AdaptiveEncoder, folder: Path, matryoshka_dims: Sequence[int], model: ModelSettings
    ) -> None:
        self.item_encoder = item_encoder
        self.folder = folder
        self.matryoshka_dims = tuple(matryoshka_dims)
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        model: str | Mapping[str, Any] | None = None,
        revision: str | None = None,
        device: str | None = None,
        threshold: float | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
    ) -> TWNEncoder:
        """Load trained adapters and the backbone that they need.

        Args:
            source: `nano` or `micro`, which are packaged; a run folder; a folder of adapters; what `twn export` wrote;
                or a repository on the Hub in the same layout.
            model: another way to load the backbone than the adapters' own: its name, or settings to change, such as
                `{"path": "/weights", "dtype": "float32"}`.
            revision: of a repository on the Hub.
            device: by default the first CUDA device where there is one.
            threshold: think iff the gate's probability is above it; by default as calibrated.
            max_new_tokens: cap of a CoT; by default 64 on the packaged backbones and 512 on others.
            batch_size: most inputs that are encoded together.

        Raises:
            AdapterError: no adapters there, or ones that do not fit the backbone.
            ConfigError: weights that cannot be had, or a device that is not there.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, it is {batch_size}")
        folder = _folder_of(source, revision)
        settings = _model_settings(folder, {"name": model} if isinstance(model, str) else model or {})
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        backbone, gate, calibrated = twn.load_trained(settings, str(folder), device=device)
        item_encoder = twn.AdaptiveEncoder(
            backbone,
            gate,
            calibrated if threshold is None else threshold,
            default_cot_cap(settings.name) if max_new_tokens is None else max_new_tokens,
            batch_size,
        )
        return cls(item_encoder, folder, read_config(folder).get("matryoshka_dims", []), settings)

    @property
    def dimension(self) -> int:
        """Width of the embeddings."""
        return self.item_encoder.dimension

    @property
    def modes(self) -> tuple[EmbeddingMode, ...]:
        """The modes it has; adaptive needs a gate."""
        return self.item_encoder.modes

    def mode_named(self, mode: str | EmbeddingMode | None, side: Side) -> EmbeddingMode:
        """The mode of that name; None: adaptive for queries where there is a gate, else discriminative.

        Raises:
            ConfigError: there is none, or this encoder does not have it.
        """
        found = default_mode(self.item_encoder, side) if mode is None else _named(EmbeddingMode, "mode", mode)
        if found not in self.modes:
            raise ConfigError(f"mode '{found.value}' needs adapters with a gate, and {self.folder} has none")
        return found

    def encode(
        self,
        inputs: Sequence[Any],
        *,
        mode: str | EmbeddingMode | None = None,
        side: str | Side = Side.QUERY,
        instruction: str = "",
        truncate_dim: int | None = None,
        convert_to: ArrayKind = "numpy",
        show_progress: bool = False,
    ) -> EncoderOutput:
        """Embed inputs.

        Args:
            inputs: texts, Pillow images, `pathlib.Path`s of images, videos or folders of frames, uint8 arrays
                (height, width, 3) or (frames, height, width, 3), or dictionaries with some of `text`, `image`, `video`,
                `instruction` and `key`.
            mode: `discriminative`, `generative` or `adaptive`; by default adaptive for queries where there is a gate,
                else discriminative.
            side: `query` or `candidate`.
            instruction: what is wanted, put before each text that has none of its own.
            truncate_dim: keep so many dimensions; one of `matryoshka_dims`.
            convert_to: `numpy` or `torch` (on the CPU).
            show_progress: show a bar.

        Returns:
            Embeddings, think decisions, CoTs and their tokens, in the order of the inputs.

        Raises:
            ConfigError: an unknown mode, side or kind of array, or a width that was not trained.
            DataError: no list, or an input that cannot be read; names it.
        """
        chosen_side = _named(Side, "side", side)
        chosen_mode = self.mode_named(mode, chosen_side)
        if convert_to not in get_args(ArrayKind):
            raise ConfigError(unknown_name("kind of array", str(convert_to), get_args(ArrayKind)))
        encoder: Encoder = self.item_encoder
        if truncate_dim is not None:
            encoder = TruncatedEncoder(self.item_encoder, truncate_dim, self.matryoshka_dims)
        read = read_values(inputs, instruction, self.item_encoder.backbone.processor.max_frames)
        with Progress(disable=not show_progress, transient=True) as progress:
            bar = progress.add_task("inputs", total=len(read))
            encoded = encoder.encode(read.items, chosen_side, chosen_mode, lambda done: progress.advance(bar, done))
        settings = EmbedSettings(chosen_side, chosen_mode, self.item_encoder.batch_size)
        return EncoderOutput.of(encoded, read, encoder, settings, self._loaded_with(), convert_to)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write adapters, queries, gate and settings in the released layout; overwrites what is there."""
        gate = self.item_encoder.gate
        state = None if gate is None else {key: value.detach().cpu() for key, value in gate.state_dict().items()}
        kept = {key: value for key, value in read_config(self.folder).items() if key in ("stage", "model")}
        kept["matryoshka_dims"] = list(self.matryoshka_dims)
        if gate is not None:
            kept["gate_threshold"] = self.item_encoder.threshold
        self.item_encoder.backbone.save_adapters(folder, state, kept)

    def _loaded_with(self) -> dict[str, Any]:
        """What makes `twn embed` and `twn search` load the same encoder."""
        packaged = {path / "adapters": name for name, path in PACKAGED.items()}
        values: dict[str, Any] = {
            "encoder": self.item_encoder.name,
            "adapters": packaged.get(self.folder) or str(self.folder.resolve()),
            "model": self.model.name,
            "model_path": self.model.path,
            "dtype": self.model.dtype,
            "max_frames": self.model.max_frames,
            "max_pixels": self.model.max_pixels,
            "max_new_tokens": self.item_encoder.max_new_tokens,
            "batch_size": self.item_encoder.batch_size,
        }
        if self.item_encoder.gate is not None:
            values["threshold"] = self.item_encoder.threshold
        return {name: value for name, value in values.items() if value is not None}


def _folder_of(source: str | Path, revision: str | None) -> Path:
    """The folder of adapters that a packaged backbone, a folder or a repository on the Hub means."""
    folder = adapters_folder(source)
    if folder.is_dir():
        return folder
    owner, slash, name = str(source).partition("/")
    if not (slash and owner and name) or "/" in name or owner.startswith((".", "~")):
        known = ", ".join(PACKAGED)
        raise AdapterError(
            f"{source}: there is no such folder; name one, a repository on the Hub (owner/name), or one of {known}"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=HUB_FILES))
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{source} is no folder here and cannot be had from the Hub ({first}). Offline? Download it once with "
            f"`hf download {source}`, or name a folder"
        ) from error


def _model_settings(folder: Path, changes: Mapping[str, Any]) -> ModelSettings:
    """What the adapters say of their backbone, with changes; another name starts from the defaults.

    Raises:
        AdapterError: they say nothing, and no name is given.
        ConfigError: a setting that does not exist.
    """
    known = [field.name for field in fields(ModelSettings)]
    for name in changes:
        if name not in known:
            raise ConfigError(unknown_name("setting of the backbone", name, known))
    return replace(ModelSettings() if "name" in changes else model_of(folder), **changes)


def _named(kind: type[Named], what: str, name: str) -> Named:
    """The member of an enumeration by its value.

    Raises:
        ConfigError: there is none.
    """
    values = [str(member.value) for member in kind]
    if name not in values:
        raise ConfigError(unknown_name(what, str(name), values))
    return kind(name)
