"""An installed wheel brings configs and assets along and works outside the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from twn_lightning.config import conf_dir

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=REPOSITORY, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files_of(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_brings_configs_and_assets(installed: Path) -> None:
    package = installed / "twn_lightning"
    configs = {path.relative_to(conf_dir()) for path in conf_dir().rglob("*.yaml")}
    assert {path.relative_to(package / "conf") for path in (package / "conf").rglob("*.yaml")} == configs
    assert files_of(package / "assets") == files_of(REPOSITORY / "src" / "twn_lightning" / "assets")
    assert (package / "reporting" / "summary.schema.json").is_file()
    assert (package / "live" / "assets" / "live.js").is_file()
    assert (package / "py.typed").is_file()


def test_composes_its_own_configs_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = "from twn_lightning import cli, config; print(config.conf_dir()); cli.main(['config', 'experiment=nano_rl'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == str(installed / "twn_lightning" / "conf")
    assert "name: nano_rl" in done.stdout
