"""Command lines that attack `twn`: every one ends in exit code 0 or 2, and 2 comes with one message that says why."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz.broken_files import encoded, picture
from tests.trust.fuzz.cases import check, examples, nothing_left
from twn_lightning import TWNEncoder
from twn_lightning.cli import main
from twn_lightning.commands import VERBS
from twn_lightning.errors import TWNError

FLAGS = ["", "-", "--", "---", "-1", "--no-such-flag", "=", "a=", "=b", "a=b=c", "stage=", "stage=a,b"]
VALUES = [
    "[",
    "{",
    "{}",
    "${x}",
    "${oc.env:HOME}",
    "*",
    "..",
    "/",
    "~",
    "\x00",
    "nan",
    "1e999",
    "9" * 400,
    "\u202e",
    "x" * 10**4,
]
WORDS = st.text(min_size=1, max_size=12) | st.sampled_from([*FLAGS, *VALUES])
COMMANDS = [
    "aggregate {file}",
    "aggregate {file} {file} --json",
    "aggregate {word}",
    "audit {file}",
    "audit {word}",
    "report {file}",
    "report {file} --output {word}",
    "report sweep={file}",
    "verify {file}",
    "verify {word} --tolerance {word}",
    "export {file} --to {folder}",
    "embed {file} --output {folder} --encoder nano",
    "embed {file} --output {folder} --shard {word}",
    "embed {word} --output {folder} --mode {word}",
    "embed --source {word} --output {folder}",
    "search build {file} {file}",
    "search query {file} --text {word}",
    "search query {word} --text {word} --k {word}",
    "annotate {file} --teacher {word} --output {folder}",
    "inspect {file} --no-browser",
    "inspect {word} --port {word}",
    "tasks {word}",
    "tasks --version {word} --suite {word}",
    "preview --source {word}",
    "preview data.source={word} --rows {word}",
    "mine {file} {file}",
    "plan {word}",
    "probe {word} {word}",
    "completion {word}",
    "train --resume {file}",
    "train --config {file}",
    "evaluate --config {file}",
    "doctor {word}={word}",
    "{word}",
    "{word} {word}",
]
"""Verbs with what may be hostile in them; none trains, downloads or serves."""


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    main(["config"])
    TWNEncoder.from_pretrained("nano", device="cpu")  # what the verbs import stays
    with nothing_left("command line"):
        yield


@pytest.fixture(scope="module")
def files() -> Iterator[list[Path]]:
    """Files and folders of every kind, none of which is what a verb expects."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contents = {
            "empty.json": b"",
            "half.json": b'{"metrics": {"image": ',
            "list.json": b"[]",
            "deep.json": b"[" * 50_000,
            "odd.json": json.dumps({"metrics": {"image": {"x": 3}}}).encode(),
            "rows.jsonl": b'{"key": "a", "text": 3}\n',
            "half.jsonl": b'{"key": "a", "te',
            "broken.parquet": b"PAR1" + bytes(99) + b"PAR1",
            "binary.bin": np.random.default_rng(0).bytes(4000),
            "config.yaml": b"a: [",
            "other.yaml": yaml.safe_dump({"stage": {"name": "none"}}).encode(),
            "picture.png": encoded(picture(), "PNG")[:50],
            "caption.txt": b"\xff\xfe\x00",
        }
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        for part, content in {"run/status.json": b"{", "run/config.yaml": b"\x00", "index/index.json": b"[1]",
                              "embedded/embed.json": b'{"schema_version": 1}', "bare/x": b""}.items():  # fmt: skip
            (folder / part).parent.mkdir(exist_ok=True)
            (folder / part).write_bytes(content)
        (folder / "loop").symlink_to("loop")
        yield [*sorted(folder.iterdir()), folder / "gone"]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command printed.

    Raises:
        TWNError: it ended in exit code 2; with what it said.
    """
    capsys.readouterr()
    try:
        code: object = main(words)
    except SystemExit as ended:  # argparse
        code = ended.code
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    if code == 0:
        return printed.out
    assert code == 2, f"exit code {code}: {printed.err[-500:]}"
    assert re.search(r"^twn: .|^twn \S+: error: |: error: ", printed.err, re.MULTILINE), (
        f"it said {printed.err[-500:]!r}"
    )
    raise TWNError(printed.err)


@examples(30, 700)
@given(command=st.sampled_from(COMMANDS), data=st.data())
def test_no_command_line_ends_in_a_traceback(
    files: list[Path], capsys: pytest.CaptureFixture[str], command: str, data: st.DataObject
) -> None:
    words = []
    for word in command.split():
        for name, values in (("{file}", st.sampled_from(files).map(str)), ("{word}", WORDS)):
            while name in word:
                word = word.replace(name, data.draw(values), 1)
        words.append(word.replace("{folder}", str(files[0].with_name("written"))))
    if words[0] in VERBS and command.startswith("{"):
        words[0] = f"no_{words[0]}"
    check("command line", f"twn {' '.join(words)[:300]!r}", lambda: run(words, capsys), lambda _: None)


OVERRIDES = [
    "stage=no_such_stage",
    "no.such.key=1",
    "stage.batch_size=many",
    "stage.batch_size=-4",
    "stage.batch_size=null",
    "stage.batch_size=1e400",
    "stage.lr=nan",
    "stage=[sft,rl]",
    "+stage.extra=1",
    "~stage",
    "seed=[1]",
    "seed=" + "9" * 50,
    "name=../../escape",
    "name=",
    "data.sources=[{source: x, weight: -1}]",
    "paths.run_dir=\x00",
    "model.max_pixels=0",
    "trainer.devices=-3",
    "task.names=[no_such_task]",
    "stage={",
    "stage.batch_size=${stage.batch_size}",
    "name=${oc.env:NO_SUCH_VARIABLE}",
    "--config-dir=/no/such",
    "hydra.run.dir=/proc/x",
    "@stage=sft",
    "stage.batch_size",
    "=3",
]


@examples(6, 120)
@given(overrides=st.lists(st.sampled_from(OVERRIDES) | WORDS, min_size=1, max_size=3))
def test_overrides(capsys: pytest.CaptureFixture[str], overrides: list[str]) -> None:
    """`twn config` prints YAML, or says what is wrong with an override."""

    def right(printed: str) -> None:
        assert printed.startswith("usage") or {"stage", "model", "data"} <= yaml.safe_load(printed).keys()

    check("command line", f"twn config {overrides}", lambda: run(["config", *overrides], capsys), right)
