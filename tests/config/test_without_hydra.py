"""A resolved file starts a run where hydra, omegaconf and wandb cannot be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from twn_lightning.config import load_settings, resolved_yaml
from twn_lightning.run import RunFolder
from twn_lightning.validation import STAGES

BLOCK = "import sys; sys.modules.update(dict.fromkeys(['hydra', 'omegaconf', 'wandb'])); "
TRAIN_EACH = BLOCK + (
    "from twn_lightning.cli import main; "
    "codes = [main(['train', '--config', f'{f}/config.yaml', f'paths.run_dir={f}/run', 'seed=3']) "
    "for f in sys.argv[1:]]; "
    "sys.exit(max(codes))"
)
TRAIN = BLOCK + "from twn_lightning.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_every_stage_starts_from_a_resolved_file(tmp_path: Path) -> None:
    for stage in STAGES:
        (tmp_path / stage).mkdir()
        settings = load_settings([f"stage={stage}", "model=tiny", "debug=limit"])
        (tmp_path / stage / "config.yaml").write_text(resolved_yaml(settings))
    done = python(TRAIN_EACH, *(str(tmp_path / stage) for stage in STAGES))
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        run = RunFolder(tmp_path / stage / "run")
        assert run.read_status()["status"] == "COMPLETED"
        assert run.settings().seed == 3
        assert run.settings().stage.name == stage
        assert (run.path / "overrides.txt").read_text().splitlines()[-1] == "seed=3"
        assert run.metrics()["headline"]["metric"]


def test_overrides_of_groups_say_what_is_missing() -> None:
    done = python(TRAIN, "experiment=nano_sft")
    assert done.returncode == 2
    assert "needs hydra" in done.stderr
    assert "--config" in done.stderr
