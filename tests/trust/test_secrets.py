"""No file that a run writes, and nothing it prints, holds a secret of the environment, the checkout or a message."""

from __future__ import annotations

import base64
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import wandb

from tests.support.tiny_adapters import save_undecided_adapters
from tests.support.wandb_file import offline_runs
from twn_lightning import cli
from twn_lightning.run import RunFolder

LETTERS = "q7W8e9R0t1Y2u3I4o5P6a7S8d9F0g1H2j3K4l5Z6"
VARIABLES = {
    "HF_TOKEN": f"hf_{LETTERS}",
    "WANDB_API_KEY": LETTERS,
    "OPENAI_API_KEY": f"sk-proj-{LETTERS[::-1]}",
    "AWS_ACCESS_KEY_ID": "AKIA" + LETTERS[:16].upper(),
    "AWS_SECRET_ACCESS_KEY": f"{LETTERS[20:]}/{LETTERS[:19]}",
    "GITHUB_TOKEN": f"ghp_{LETTERS[4:]}",
    "MLFLOW_TRACKING_PASSWORD": "correct horse battery",
}
IN_REMOTE = f"glpat-{LETTERS[:24]}"
"""A token in the address of the checkout's remote, as CI systems put it there."""
SECRETS = {*VARIABLES.values(), IN_REMOTE}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A git repository to run in, with a token in its remote's address and tokens in the environment."""
    wandb.teardown()  # its process reads the environment once, when it starts
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "checkout"
    address = f"https://{IN_REMOTE}@git.example.org/me/project.git"
    for command in (["init", "-q", str(folder)], ["-C", str(folder), "remote", "add", "origin", address]):
        subprocess.run(["git", *command], check=True)
    monkeypatch.chdir(folder)
    yield folder
    wandb.teardown()


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file, Parquet's uncompressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            is_table = path.suffix == ".parquet"
            yield path, repr(pq.read_table(path).to_pydict()).encode() if is_table else path.read_bytes()


def leaks(name: str, content: bytes) -> list[str]:
    """Where a secret stands in some content, plain or in base64."""
    forms = {secret.encode() for secret in SECRETS} | {base64.b64encode(secret.encode()) for secret in SECRETS}
    return [f"{name}: {form.decode()}" for form in forms if form in content]


def test_a_planted_secret_is_found(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(f"401 for {VARIABLES['HF_TOKEN']}")
    ((path, content),) = contents(tmp_path)
    assert f"log.txt: {VARIABLES['HF_TOKEN']}" in leaks(path.name, content)


def test_train_evaluate_and_report_leave_no_secret(
    checkout: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    made = save_undecided_adapters(tmp_path / "made")
    common = ["model=tiny", "logger=wandb", f"paths.output_root={outputs}"]
    train = ["stage=sft", "debug=limit", "stage.max_steps=2", f"paths.run_dir={outputs / 'train'}"]
    evaluate = [
        f"adapters.init_from={made}", "data.test_pairs=8", "data.max_new_tokens=4", "evaluation.bootstrap_samples=20",
        f"task.cache_root={outputs / 'cache'}", f"paths.run_dir={outputs / 'evaluate'}",
    ]  # fmt: skip
    assert cli.main(["train", *common, *train]) == 0
    assert cli.main(["evaluate", *common, *evaluate]) == 0
    assert cli.main(["report", str(outputs / "evaluate"), "--output", str(outputs / "report.html")]) == 0
    assert cli.main(["audit", str(outputs / "train")]) == 0
    for name in ("train", "evaluate"):
        assert len(offline_runs(outputs / name)) == 1, "wandb's file is complete, and among those that are read"
    printed = "".join(capfd.readouterr())
    assert "report" in printed
    found = leaks("what was printed", printed.encode())
    scanned = dict(contents(outputs))
    assert {"config.yaml", "env.json", "overrides.txt", "status.json", "manifest.json", "report.html"} <= {
        path.name for path in scanned
    }
    assert [leak for path, content in scanned.items() for leak in leaks(str(path.relative_to(outputs)), content)] == []
    assert found == []


def test_a_failed_run_does_not_quote_the_address_that_failed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A library's error quotes what it asked for, tokens included; status.json and the terminal must not."""

    def refuse(*_: object) -> None:
        raise OSError(f"401 for https://user:{IN_REMOTE}@example.org/weights?token={VARIABLES['HF_TOKEN']}")

    monkeypatch.setattr("twn_lightning.train.load_backbone", refuse)
    run = RunFolder(tmp_path / "run")
    with pytest.raises(OSError, match="401"):
        cli.main(["train", "model=tiny", f"paths.run_dir={run.path}"])
    assert "401 for https://[hidden]@example.org" in run.read_status()["error"]
    for path, content in contents(run.path):
        assert leaks(path.name, content) == []
    assert leaks("what was printed", "".join(capfd.readouterr()).encode()) == []


@pytest.mark.parametrize(
    "override",
    [
        f"model.path='https://example.org/x?token={LETTERS}'",
        f"logger.project={VARIABLES['WANDB_API_KEY']}",
        f"data.media_roots=['pairs=/data/{VARIABLES['GITHUB_TOKEN']}']",
        "paths.output_root='s3://key:pass-word@bucket'",
        "name=correct horse battery",
    ],
)
def test_an_override_with_a_secret_starts_nothing(
    checkout: Path, tmp_path: Path, override: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(os.listdir(checkout))
    assert cli.main(["train", "model=tiny", f"paths.run_dir={tmp_path / 'run'}", override]) == 2
    assert set(os.listdir(checkout)) == before
    assert not (tmp_path / "run").exists()
    printed = "".join(capfd.readouterr())
    assert f"{override.partition('=')[0]} holds" in printed
    assert leaks("what was printed", printed.encode()) == []
    assert "pass-word" not in printed
