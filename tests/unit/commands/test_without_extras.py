"""Every verb explains itself where only the required packages are installed."""

from __future__ import annotations

import subprocess
import sys

from twn_lightning.commands import VERBS

EXTRAS = (
    "av", "datasets", "faiss", "flash_attn", "hydra_plugins", "liger_kernel", "mteb", "nbconvert", "pypdfium2",
    "sentence_transformers", "sklearn", "tensorboard", "torchvision", "trl", "vllm", "wandb_workspaces",
)  # fmt: skip
SCRIPT = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS!r}))  # None: importing it is an ImportError
from twn_lightning.commands.completion import completion_script
print(completion_script("bash"))
"""


def test_completion_reads_the_help_of_all_verbs() -> None:
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    for verb in set(VERBS) - {"bench"}:
        assert f"    {verb}) flags='--" in found.stdout, verb
