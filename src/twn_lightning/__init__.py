"""Think-when-needed multimodal embeddings: a dual-LoRA reasoner and embedder with a self-supervised routing gate."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twn_lightning.encoder import TWNEncoder

__version__ = "0.1.0"
__all__ = ["TWNEncoder", "__version__"]


def __getattr__(name: str) -> Any:
    """`TWNEncoder`, imported when it is asked for: the command line starts without torch and transformers."""
    if name != "TWNEncoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from twn_lightning.encoder import TWNEncoder

    return TWNEncoder
