"""`twn preview` on corpora: keys as for train, candidates of what is shown, media by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.corpora_fixtures import Mirror, write_mirror
from twn_lightning import cli


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    return write_mirror(tmp_path_factory.mktemp("mirror"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("colpali", "What is"),
        ("llava_hound", "of 3 frames"),
        ("twn", "<think>I see row"),
        ("ume_r1", "ume_r1/llavahound_qa"),
        ("visrag", "visrag/synthetic"),
    ],
)
def test_shows_rows_of_a_corpus(mirror: Mirror, capsys: pytest.CaptureFixture[str], source: str, expected: str) -> None:
    roots = [f"data.annotations_root={mirror.annotations}", f"data.media_root={mirror.media}"]
    shown = ["--model", "tiny", "--count", "20", "--rows", "20"]
    assert cli.main(["preview", "--source", source, *shown, *roots]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert expected in printed
    assert f"source {source}, split train, 20 pairs" in printed


def test_names_what_is_missing(mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = [f"data.annotations_root={mirror.annotations}", f"data.media_root={tmp_path}"]
    assert cli.main(["preview", "--source", "twn", "--model", "tiny", *roots]) == 2
    error = capsys.readouterr().err
    assert "source 'twn/" in error
    assert "does not exist" in error
    assert cli.main(["preview", "--model", "tiny", "data=vlm2vec_v2", f"data.annotations_root={tmp_path}"]) == 2
    assert "TIGER-Lab/MMEB-train, subset ImageNet_1K, split original: nothing to read" in capsys.readouterr().err
