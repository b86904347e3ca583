"""Doors to other libraries: the Hugging Face Hub, sentence-transformers and mteb. Each is imported in its own file."""
