"""TWN as the one module of a sentence-transformers model: `SentenceTransformer(folder, trust_remote_code=True)`.

A folder that `twn export` wrote names this class in its modules.json. It lies outside sentence-transformers, which
asks for `trust_remote_code=True` before it imports any such class; no code comes with the folder.

Prompts are instructions: `encode(texts, prompt="Find the cell.")`. `encode_query` and `encode_document` tell the side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from twn_lightning.encoder import TWNEncoder
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.value_inputs import read_values
from twn_lightning.interop.export import MODULE_FILE
from twn_lightning.types import Item, Side

try:
    from sentence_transformers.base.modality import is_image_url_or_path, is_message_dict, is_video_url_or_path
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ConfigError("this needs sentence-transformers 6: pip install 'twn_lightning[interop]'") from error

MODALITIES = ["text", "image", "video", "message"]
"""A message is what sentence-transformers calls a chat turn; with it, inputs may mix the others."""


class TWNModule(InputModule):
    """Discriminative, generative or adaptive embeddings of texts, images and videos.

    Args:
        encoder: the loaded model.
        mode: of queries, and of inputs whose side is not told; None: adaptive where there is a gate.
        document_mode: of documents; None: discriminative.

    Raises:
        ConfigError: a mode that the encoder does not have.
    """

    config_file_name = MODULE_FILE
    config_keys: ClassVar[list[str]] = ["mode", "document_mode"]
    forward_kwargs: ClassVar[set[str]] = {"mode"}

    def __init__(self, encoder: TWNEncoder, mode: str | None = None, document_mode: str | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.mode = encoder.mode_named(mode, Side.QUERY).value
        self.document_mode = encoder.mode_named(document_mode, Side.CANDIDATE).value
        self.tokenizer = encoder.item_encoder.backbone.processor.tokenizer
        # Submodules, so that devices and parameters are those of the whole model.
        self.backbone, self.gate = encoder.item_encoder.backbone, encoder.item_encoder.gate

    @property
    def modalities(self) -> list[Any]:
        return MODALITIES

    def get_embedding_dimension(self) -> int:
        """Width of the embeddings."""
        return self.encoder.dimension

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs as items; their media are read when the model runs.

        Args:
            inputs: texts, images, videos, dictionaries of them, or messages, as sentence-transformers takes them.
            prompt: what is wanted, put before each text.
            task: `document` for candidates; anything else is a query.
            kwargs: sentence-transformers passes what the model's other modules may want.
        """
        values = [_value(entry) for entry in inputs]
        read = read_values(values, (prompt or "").strip(), self.backbone.processor.max_frames)
        return {"items": read.items, "side": Side.CANDIDATE if task == "document" else Side.QUERY}

    def forward(self, features: dict[str, Any], mode: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Embed items.

        Args:
            features: what `preprocess` gave.
            mode: for this call, as in `model.encode(texts, mode="generative")`.
            kwargs: see `preprocess`.

        Returns:
            `sentence_embedding` (B, D) float32, `think` (B,) bool, `cot_tokens` (B,) int64.
        """
        items: list[Item] = features["items"]
        side: Side = features["side"]
        wanted = mode or (self.document_mode if side is Side.CANDIDATE else self.mode)
        with torch.inference_mode(False):  # tensors that the model keeps must serve calls from outside, too
            encoded = self.encoder.item_encoder.encode(items, side, self.encoder.mode_named(wanted, side))
        count, device = len(items), self.backbone.device
        think = torch.zeros(count, dtype=torch.bool) if encoded.think_N is None else torch.from_numpy(encoded.think_N)
        tokens = torch.zeros(count).long() if encoded.tokens_N is None else torch.from_numpy(encoded.tokens_N)
        embeddings = torch.from_numpy(encoded.embedding_ND).to(device)
        return {"sentence_embedding": embeddings, "think": think, "cot_tokens": tokens}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the adapters in the released layout, and the modes."""
        self.encoder.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> TWNModule:
        """Load the module of a folder or of a repository on the Hub.

        Args:
            model_name_or_path: what `TWNEncoder.from_pretrained` takes.
            subfolder, token, cache_folder, local_files_only: as sentence-transformers passes them.
            revision: of a repository.
            model_kwargs: settings of the backbone, such as `{"path": "/weights", "dtype": "float32"}`.
            kwargs: see `preprocess`.
        """
        found = cls.load_config(
            model_name_or_path,
            subfolder=subfolder,
            token=token,
            cache_folder=cache_folder,
            revision=revision,
            local_files_only=local_files_only,
        )
        encoder = TWNEncoder.from_pretrained(model_name_or_path, revision=revision, device="cpu", model=model_kwargs)
        return cls(encoder, **found)


def _value(entry: Any) -> Any:
    """An input as sentence-transformers takes it, as `read_values` takes it.

    Raises:
        DataError: an address: nothing is downloaded.
    """
    if isinstance(entry, str):
        return _file(entry) if is_image_url_or_path(entry) or is_video_url_or_path(entry) else entry
    if is_message_dict(entry) or (isinstance(entry, list) and entry and is_message_dict(entry[0])):
        return _conversation(entry if isinstance(entry, list) else [entry])
    if not isinstance(entry, Mapping):
        return entry
    if "array" in entry:
        return {"video": entry["array"]}
    video = entry.get("video")
    return {**entry, "video": video["array"]} if isinstance(video, Mapping) else entry


def _file(name: str) -> Path:
    if name.startswith(("http://", "https://", "data:")):
        raise DataError(f"{name[:80]} is an address, and nothing is downloaded: pass the file's path or its pixels")
    return Path(name)


def _conversation(messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Chat turns as one input: system messages are its instruction, all other content is joined in order."""
    texts: dict[bool, list[str]] = {True: [], False: []}
    images: list[Any] = []
    videos: list[Any] = []
    for message in messages:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "text":
                texts[message["role"] == "system"].append(part["text"])
            elif part["type"] in ("image", "video"):
                (images if part["type"] == "image" else videos).append(part[part["type"]])
            else:
                raise DataError(f"a message holds {part['type']!r}; known are text, image and video")
    if len(videos) > 1:
        raise DataError(f"a message holds {len(videos)} videos; one input takes at most one")
    return {
        "instruction": " ".join(texts[True]),
        "text": " ".join(texts[False]),
        "image": images,
        "video": videos[0] if videos else None,
    }
