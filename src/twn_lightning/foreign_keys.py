"""Keys of other trainers: what they are called here, and why some of them cannot be as they were."""

from __future__ import annotations

FOREIGN_KEYS: dict[str, str] = {
    "gradient_checkpointing": (
        "interface.activation_checkpointing: Hugging Face's own drops the KV cache that the embedder reads, and "
        "recomputes layers under another adapter"
    ),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "accumulate_grad_batches"),
        "stage.chunk_size: a contrastive loss accumulated over batches has only each batch's own negatives, while "
        "chunks of stage.chunk_size rows give the gradients of the whole stage.batch_size",
    ),
    **dict.fromkeys(
        ("per_device_train_batch_size", "train_batch_size"), "stage.batch_size, which counts the rows of all devices"
    ),
    **dict.fromkeys(("num_train_epochs", "epochs"), "stage.max_steps, or stage.max_epochs of stage=gate"),
    "lr": "stage.learning_rate",
    "num_generations": "stage.completions_per_prompt of stage=rl",
    "beta": "stage.kl of stage=rl",
    **dict.fromkeys(("bf16", "fp16"), "trainer.precision"),
    **dict.fromkeys(("gpus", "num_gpus"), "trainer.devices"),
    **dict.fromkeys(("resume_from_checkpoint", "ckpt_path"), "trainer.resume"),
    "output_dir": "paths.output_root, or paths.run_dir for one run",
}
"""By the last part of the key."""


def here_called(key: str) -> str:
    """A sentence to put behind "unknown key ...", with a space before it; empty where nothing is known of the key."""
    ours = FOREIGN_KEYS.get(key.rsplit(".", 1)[-1])
    return f". Other trainers' key; here it is {ours}" if ours else ""
