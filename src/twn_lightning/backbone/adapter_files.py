"""The files of a folder of adapters, read one by one: whatever cannot be read is an error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twn_lightning.errors import AdapterError
from twn_lightning.json_object import read_json_object

PEFT_CONFIG_FILE = "adapter_config.json"
QUERY_KEYS = ("queries", "query_embeddings", "learnable_queries", "query_tokens", "weight", "embeddings.weight")
"""Keys under which a queries.pt may hold its (K, D) or (1, K, D) tensor; the first is ours. A bare tensor is fine."""
GATE_WRAPPERS = ("state_dict", "model_state_dict", "gate")
"""Keys under which a gate_mlp.pt may hold its state dictionary, if it is not one itself."""


def read_peft_config(folder: Path, name: str) -> dict[str, Any]:
    """`adapter_config.json` of one adapter, with its rank and alpha.

    Raises:
        AdapterError: it is missing, or does not say them.
    """
    path = folder / name / PEFT_CONFIG_FILE
    if not path.is_file():
        raise AdapterError(f"{path} is missing: without it the adapter's rank and scaling are not known")
    config = read_json_object(path, AdapterError, "copy the folder again", {"r": int})
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or alpha // 1 != alpha:
        raise AdapterError(f"{path}: 'lora_alpha' must be a whole number, it is {alpha!r:.80}: copy the folder again")
    return {**config, "lora_alpha": int(alpha)}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """An adapter's weights by name.

    Raises:
        AdapterError: the file cannot be read.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} cannot be read ({error}): it is cut short or damaged, copy it again") from error
    return tensors


def read_queries(path: Path) -> Tensor:
    """Learnable queries (K, D).

    Raises:
        AdapterError: the file cannot be read, or holds something else.
    """
    content = _load_pt(path)
    tensor = next((content[k] for k in QUERY_KEYS if k in content), None) if isinstance(content, dict) else content
    if isinstance(tensor, Tensor) and tensor.ndim == 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if not isinstance(tensor, Tensor) or tensor.ndim != 2:
        raise AdapterError(
            f"{path} has an unknown layout: found {_describe(content)}; known keys: {', '.join(QUERY_KEYS)}, each of "
            "shape (K, D)"
        )
    return tensor


def read_gate(path: Path) -> dict[str, Any]:
    """A gate's state dictionary.

    Raises:
        AdapterError: the file cannot be read, or holds something else.
    """
    content = _load_pt(path)
    for key in GATE_WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(isinstance(v, Tensor) for v in content.values()):
        raise AdapterError(
            f"{path} has an unknown layout: found {_describe(content)}; expected a dictionary of tensors"
        )
    return content


def _load_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdapterError(f"{path} cannot be read as plain tensors ({type(error).__name__}: {error})") from error


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    if isinstance(value, dict):
        inside = ", ".join(
            f"{k}: {tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__}" for k, v in value.items()
        )
        return f"a dictionary {{{inside}}}"
    return f"a {type(value).__name__}"
