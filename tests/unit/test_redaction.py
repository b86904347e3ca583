"""Secrets are told from text by their shape, by the environment, and by the names of flags; nothing else changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twn_lightning import cli
from twn_lightning.errors import ConfigError
from twn_lightning.redaction import HIDDEN, redact, redact_command, secret_kind
from twn_lightning.run import RunFolder
from twn_lightning.settings import ModelSettings, Settings
from twn_lightning.sweep_folder import SweepFolder
from twn_lightning.validation import settings_from_dict

LETTERS = "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6"
SHAPED = [
    ("a Hugging Face token", f"hf_{LETTERS}"),
    ("a Weights & Biases key", f"wandb_v1_{LETTERS}{LETTERS}"),
    ("an API key", f"sk-proj-{LETTERS}"),
    ("a GitHub token", f"ghp_{LETTERS}"),
    ("a GitHub token", f"github_pat_{LETTERS}"),
    ("a GitLab token", f"glpat-{LETTERS}"),
    ("a Slack token", f"xoxb-{LETTERS}"),
    ("an AWS key", "AKIA" + LETTERS[:16].upper()),
    ("a Google key", f"AIza{LETTERS}xyz"),
    ("a JSON web token", f"eyJ{LETTERS}.eyJ{LETTERS}.{LETTERS}"),
    ("a private key", f"-----BEGIN RSA PRIVATE KEY-----\n{LETTERS}\n-----END RSA PRIVATE KEY-----"),
]
IN_CONTEXT: list[tuple[str | None, str, str, str]] = [  # None: hidden, but no reason to refuse
    ("credentials in an address", "https://", "me:pass-word", "@example.org/x"),
    (None, "http://", "letmein1", "@example.org/x"),
    ("credentials in an address", "s3://", "id:pass-word", "@bucket/x"),
    ("a signature or token in an address", "https://example.org/x?a=1&", "token=letmein", "&b=2"),
    ("a signature or token in an address", "https://example.org/x?", "X-Amz-Signature=0123abcd", "&b=2"),
    (None, "Authorization: Bearer ", "abcdefgh12345678", "\n"),
]
HARMLESS = [
    "experiment=nano_sft data.max_new_tokens=64 seed=1",
    "data.media_roots=[mmeb_train=/data/mmeb]",
    "https://example.org/a@b?page=2",
    "ssh://git@example.org/x.git",
    "outputs/sft/nano_sft/2026-01-02_03-04-05",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",  # a digest
    "the task-specific-instruction-of-a-query-token",
    "sk-learn",
    "paths.output_root=/mnt/sk-hynix-research-share/outputs",
    "/data/sk-learn-embedding-baselines-2",
    "name=wandb_v2_migration_of_gate_runs",
]


@pytest.mark.parametrize(("kind", "secret"), SHAPED)
def test_shapes(kind: str, secret: str) -> None:
    text = f"before {secret} after"
    assert secret_kind(text, {}) == kind
    assert redact(text, {}) == f"before {HIDDEN} after"


@pytest.mark.parametrize(("kind", "before", "secret", "after"), IN_CONTEXT)
def test_addresses_keep_all_but_the_secret(kind: str | None, before: str, secret: str, after: str) -> None:
    text = f"{before}{secret}{after}"
    assert secret_kind(text, {}) == kind
    hidden = redact(text, {})
    assert hidden.startswith(before)
    assert hidden.endswith(after)
    assert secret not in hidden


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_is_left_alone(text: str) -> None:
    assert secret_kind(text, {}) is None
    assert redact(text, {}) == text


def test_what_the_environment_calls_a_secret_is_one() -> None:
    variables = {"DB_PASSWORD": "correct horse", "DB_TOKEN": "correct horse battery", "TOKENIZERS_PARALLELISM": "false"}
    assert secret_kind("the correct horse", variables) == "the value of DB_PASSWORD"
    assert secret_kind("/home/postgres/outputs", {"POSTGRES_PASSWORD": "postgres"}) is None
    assert secret_kind("/workspace/outputs", {"MY_PRIVATE_KEY": "/workspace"}) is None
    assert secret_kind(f"x {LETTERS}", {"DB_PASSWORD": LETTERS}) == "the value of DB_PASSWORD"
    assert redact("a correct horse battery, false", variables) == f"a {HIDDEN}, false"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "WANDB_API_KEY", "HF_TOKEN", "MY_SECRET", "apikey"):
        assert redact("x correct horse", {name: "correct horse"}) == f"x {HIDDEN}"
    for name in ("GPG_KEY", "TOKENS", "KEYBOARD", "HF_TOKEN_PATH"):
        assert redact("x correct horse", {name: "correct horse"}) == "x correct horse"
    assert redact("a word", {"HF_TOKEN": "word"}) == "a word", "too short to be looked for"


def test_values_of_flags_named_like_secrets() -> None:
    words = ["run.py", "--token", "abc", "--api-key=abc", "--tokens", "5", "+x.password=abc", "--secret", "-v"]
    shown = ["run.py", "--token", HIDDEN, f"--api-key={HIDDEN}", "--tokens", "5", f"+x.password={HIDDEN}"]
    assert redact_command(words) == [*shown, "--secret", "-v"]


def test_a_configuration_with_a_secret_is_refused_and_not_repeated(tmp_path) -> None:
    address = "https://me:pass-word@example.org/weights"
    with pytest.raises(ConfigError, match=r"model\.path holds credentials in an address.*HF_TOKEN") as raised:
        settings_from_dict({"model": {"path": address}})
    assert "pass-word" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"model\.path holds credentials in an address"):
        RunFolder(tmp_path / "run").create(Settings(model=ModelSettings(path=address)))
    assert not (tmp_path / "run").exists()


def test_a_sweep_with_a_secret_writes_nothing(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = f"hf_{LETTERS}"
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    assert cli.main(["train", "--multirun", "seed=0,1", f"+hydra.job.env_set.X={secret}", folder]) == 2
    printed = capsys.readouterr().err
    assert "holds a Hugging Face token, which the sweep would write" in printed
    assert secret not in printed
    assert not SweepFolder(tmp_path / "sweep").path.exists()


def test_status_and_overrides_are_redacted(tmp_path) -> None:
    secret = f"ghp_{LETTERS}"
    run = RunFolder(tmp_path / "run").create(Settings(), ["seed=1", f"+note={secret}"])
    run.status("FAILED", f"HTTPError: 401 for https://x:{secret}@example.org")
    assert run.read_status()["error"] == f"HTTPError: 401 for https://{HIDDEN}@example.org"
    assert (run.path / "overrides.txt").read_text() == f"seed=1\n+note={HIDDEN}\n"


def test_messages_and_tracebacks_are_redacted() -> None:
    secret = f"sk-proj-{LETTERS}"
    code = (
        "import logging, sys; from twn_lightning.messages import configure_logging; configure_logging()\n"
        "logging.getLogger('urllib3').warning('retrying with %s', sys.argv[1])\n"
        "raise RuntimeError(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, secret], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"retrying with {HIDDEN}" in done.stderr
    assert f"RuntimeError: {HIDDEN}" in done.stderr
    assert secret not in done.stderr
