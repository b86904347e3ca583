"""Think-when-needed multimodal embeddings: a dual-LoRA reasoner and embedder with a self-supervised routing gate."""

__version__ = "0.1.0"
