"""`twn embed`: what is written, interrupted + resumed = straight, shards, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_encoder import DIMENSION, FakeEncoder
from made_images import save_image

from twn_lightning.cli import main
from twn_lightning.errors import ConfigError, DataError, NumericalError
from twn_lightning.evaluation.embed import EmbedSettings, embed_inputs
from twn_lightning.evaluation.embedding_files import read_embeddings
from twn_lightning.evaluation.inputs import Inputs, read_inputs
from twn_lightning.types import EmbeddingMode


def embed(inputs: Inputs, output: Path, encoder: FakeEncoder | None = None, **changes: Any) -> dict[str, Any]:
    overwrite = changes.pop("overwrite", False)
    settings = EmbedSettings(**{"batch_size": 4, **changes})
    return embed_inputs(encoder or FakeEncoder(), inputs, output, settings, overwrite=overwrite)


def test_a_video_file_is_one_item(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for shade in range(0, 240, 20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    inputs = read_inputs(tmp_path)
    assert [media.kind for media in inputs.items[0].media] == ["video"]
    assert embed(inputs, tmp_path / "out")["counts"]["embedded"] == 1
    (tmp_path / "clip.mp4").write_bytes(b"not a video")
    with pytest.raises(DataError, match=r"item 'clip\.mp4'.*cannot be decoded"):
        embed(inputs, tmp_path / "broken")


def test_parquet_holds_embeddings_decisions_and_cots(folder: Path, tmp_path: Path) -> None:
    record = embed(read_inputs(folder), tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "embeddings.parquet")
    assert table.schema.field("embedding").type.list_size == DIMENSION
    rows = {row["key"]: row for row in table.to_pylist()}
    assert rows["hard.txt"]["think"]
    assert rows["hard.txt"]["cot"].startswith("<think>")
    assert rows["hard.txt"]["cot_tokens"] == 5
    assert rows["image3.png"]["think"] is False
    assert rows["image3.png"]["probability"] == pytest.approx(0.25)
    assert rows["image3.png"]["path"] == "image3.png"
    assert np.linalg.norm(rows["clip"]["embedding"]) == pytest.approx(1, abs=1e-6)
    assert record["counts"] == {"embedded": 13, "thought": 1, "malformed": 0, "cot_tokens": 5, "skipped": 0}
    assert record["encoder"]["identity"] == {"version": "one", "mode": "adaptive", "frames": 8}
    assert not (tmp_path / "out" / "parts").exists()


def test_a_mode_that_never_thinks_says_so(folder: Path, tmp_path: Path) -> None:
    embed(read_inputs(folder), tmp_path / "out", mode=EmbeddingMode.DISCRIMINATIVE)
    rows = pq.read_table(tmp_path / "out" / "embeddings.parquet").to_pylist()
    assert {(row["think"], row["probability"], row["cot"]) for row in rows} == {(False, None, None)}


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_interrupted_and_resumed_equals_straight(folder: Path, tmp_path: Path, output_format: str) -> None:
    inputs = read_inputs(folder)
    embed(inputs, tmp_path / "straight", output_format=output_format)
    with pytest.raises(KeyboardInterrupt):
        embed(inputs, tmp_path / "resumed", FakeEncoder(fail_after=2), output_format=output_format)
    with pytest.raises(DataError, match="not complete"):
        read_embeddings(tmp_path / "resumed")
    second = FakeEncoder()
    embed(inputs, tmp_path / "resumed", second, output_format=output_format)
    assert len(second.encoded) == 13 - 8
    names = {path.name for path in (tmp_path / "straight").iterdir()}
    assert names == {path.name for path in (tmp_path / "resumed").iterdir()}
    for name in names:
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes(), name


def test_a_rerun_of_what_is_complete_encodes_nothing(folder: Path, tmp_path: Path) -> None:
    first = embed(read_inputs(folder), tmp_path / "out")
    again = FakeEncoder()
    assert embed(read_inputs(folder), tmp_path / "out", again) == first
    assert again.encoded == []


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
@pytest.mark.parametrize("shards", [3, 6])
def test_shards_join_to_the_unsharded_result(folder: Path, tmp_path: Path, shards: int, output_format: str) -> None:
    inputs = read_inputs(folder)
    embed(inputs, tmp_path / "whole")
    for shard in reversed(range(shards)):  # four chunks: some of six shards have none
        embed(inputs, tmp_path / "sharded", shard=shard, shards=shards, output_format=output_format)
    whole, sharded = read_embeddings(tmp_path / "whole"), read_embeddings(tmp_path / "sharded")
    assert sharded.rows == whole.rows
    assert sharded.embedding_ND.tobytes() == whole.embedding_ND.tobytes()
    (tmp_path / "sharded" / f"embed-00001-of-{shards:05d}.json").unlink()
    with pytest.raises(DataError, match=f"shard 1/{shards} is missing"):
        read_embeddings(tmp_path / "sharded")


def test_npy_holds_the_same_as_parquet(folder: Path, tmp_path: Path) -> None:
    inputs = read_inputs(folder)
    embed(inputs, tmp_path / "parquet")
    embed(inputs, tmp_path / "npy", output_format="npy")
    parquet, npy = read_embeddings(tmp_path / "parquet"), read_embeddings(tmp_path / "npy")
    assert np.load(tmp_path / "npy" / "embeddings.npy").tobytes() == parquet.embedding_ND.tobytes()
    assert npy.rows == parquet.rows


@pytest.mark.parametrize(("output_format", "name"), [("parquet", "embeddings.parquet"), ("npy", "embeddings.npy")])
def test_a_changed_byte_is_noticed_where_digests_are_kept(
    folder: Path, tmp_path: Path, output_format: str, name: str
) -> None:
    embed(read_inputs(folder), tmp_path / "out", output_format=output_format)
    path, record = tmp_path / "out" / name, tmp_path / "out" / "embed.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(DataError, match=rf"{name} is damaged \(its content is not what was written\)"):
        read_embeddings(tmp_path / "out")
    path.write_bytes(whole)
    older = json.loads(record.read_text())
    del older["sha256"]
    record.write_text(json.dumps(older))
    assert len(read_embeddings(tmp_path / "out").rows)


def test_another_encoder_settings_or_inputs_are_refused(folder: Path, tmp_path: Path) -> None:
    embed(read_inputs(folder), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"encoder\.identity\.version: there one, now two.*\n.*--overwrite"):
        embed(read_inputs(folder), tmp_path / "out", FakeEncoder("two"))
    with pytest.raises(ConfigError, match=r"settings\.batch_size: there 4, now 2"):
        embed(read_inputs(folder), tmp_path / "out", batch_size=2)
    with pytest.raises(ConfigError, match=r"inputs\.digest"):
        embed(read_inputs(folder, instruction="Else."), tmp_path / "out")
    before = read_embeddings(tmp_path / "out").embedding_ND
    embed(read_inputs(folder), tmp_path / "out", FakeEncoder("two"), overwrite=True)
    assert not np.array_equal(read_embeddings(tmp_path / "out").embedding_ND, before)


def test_a_file_that_changed_since_is_noticed(folder: Path, tmp_path: Path) -> None:
    embed(read_inputs(folder), tmp_path / "out")
    save_image(folder / "image4.png", 255)
    with pytest.raises(DataError, match=r"'image4\.png' has changed since it was embedded"):
        embed(read_inputs(folder), tmp_path / "out")


def test_an_unreadable_image_is_an_error_or_is_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "image5.png").write_bytes((folder / "image5.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"item 'image5\.png'.*cannot be decoded"):
        embed(read_inputs(folder), tmp_path / "out")
    record = embed(read_inputs(folder), tmp_path / "skipping", on_error="skip")
    assert [entry["key"] for entry in record["skipped"]] == ["image5.png"]
    assert record["counts"]["embedded"] == 12
    stored = read_embeddings(tmp_path / "skipping")
    (folder / "image5.png").unlink()
    embed(read_inputs(folder), tmp_path / "without")
    without = read_embeddings(tmp_path / "without")
    assert stored.rows == without.rows
    assert stored.embedding_ND.tobytes() == without.embedding_ND.tobytes()


def test_bad_embeddings_are_refused(folder: Path, tmp_path: Path) -> None:
    def with_nan(embedding_ND: np.ndarray) -> None:
        embedding_ND[1, 3] = np.nan

    with pytest.raises(NumericalError, match=r"NaN or Inf: item 'hard\.txt'"):
        embed(read_inputs(folder), tmp_path / "out", FakeEncoder(change=with_nan))
    narrow = FakeEncoder()
    narrow.dimension = DIMENSION + 1
    with pytest.raises(DataError, match=r"shape \(4, 8\) for 4 inputs of width 9"):
        embed(read_inputs(folder), tmp_path / "other", narrow)


def test_what_was_not_readable_as_input_is_listed_too(folder: Path, tmp_path: Path) -> None:
    (folder / "empty.txt").write_text("")
    record = embed(read_inputs(folder, on_error="skip"), tmp_path / "out", on_error="skip")
    assert [entry["key"] for entry in record["skipped"]] == ["empty.txt"]
    assert record["counts"]["skipped"] == 1


def test_bad_requests(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no mode 'generative'; it has: discriminative, adaptive"):
        embed(read_inputs(folder), tmp_path / "out", mode=EmbeddingMode.GENERATIVE)
    with pytest.raises(ConfigError, match="shard 3/3"):
        EmbedSettings(shard=3, shards=3)


def test_the_command_embeds_a_folder_with_the_packaged_adapters(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", str(folder), "--max-new-tokens", "8"]) == 0
    assert "13 embedded in mode adaptive" in capsys.readouterr().out
    stored = read_embeddings(tmp_path / "outputs" / "embed" / "photos")
    assert np.linalg.norm(stored.embedding_ND, axis=1) == pytest.approx(1, abs=1e-5)
    assert stored.record["loaded_with"]["adapters"] == "nano"
    assert all(row["probability"] is not None for row in stored.rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to embed"),
        (["photos", "--source", "nano"], "and not both"),
        (["--source", "nano", "--mode", "adaptiv"], "did you mean 'adaptive'"),
        (["--source", "nano", "--side", "querry"], "did you mean 'query'"),
        (["--source", "nano", "--shard", "1"], "as in 0/4"),
        (["--source", "nano", "--shard", "2/2"], "counted from 0, as in 0/4"),
        (["--source", "nano", "--encoder", "twm"], "did you mean 'twn'"),
        (["--source", "nano", "--threshold", "2"], "between 0 and 1"),
        (["--source", "nano", "--adapters", "nowhere"], "nowhere"),
    ],
)
def test_the_command_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["embed", *arguments]) == 2
    assert message in capsys.readouterr().err
