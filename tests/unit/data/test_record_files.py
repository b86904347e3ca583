"""Tables with images: what is read and held, other processes, and files that change under their readers."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.mmeb_files import IMAGE_TYPE, image_bytes, write_dataset_folder, write_jsonl, write_parquet
from twn_lightning.data import record_files, row_groups
from twn_lightning.data.json_file import JsonFile
from twn_lightning.data.record_files import RecordFile, StoredImage, TableFile
from twn_lightning.errors import DataError

NESTED = {
    "image": IMAGE_TYPE,
    "raw": pa.binary(),
    "bare": pa.struct([("bytes", pa.binary())]),
    "images": pa.list_(IMAGE_TYPE),
    "raws": pa.list_(pa.large_binary()),
}


def image_rows(count: int = 7) -> list[dict[str, Any]]:
    return [{"id": n, "image": {"bytes": image_bytes(n), "path": None}} for n in range(count)]


def written(path: Path, rows: list[dict[str, Any]], types: dict[str, pa.DataType], group: int = 3) -> TableFile:
    """The rows as a Parquet file, or as an Arrow file in batches of two."""
    if path.suffix == ".parquet":
        write_parquet(path, rows, types, group)
        return TableFile(path)
    write_dataset_folder(path.parent, [*rows, *rows], types)  # the first of its two files has the rows
    return TableFile(path.parent / "data-00000-of-00002.arrow")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_images_stay_in_the_file(tmp_path: Path, name: str) -> None:
    images = [row["image"] for row in written(tmp_path / name, image_rows(), {"image": IMAGE_TYPE})]
    for row in (0, 1, 4, 3, 6, 0):  # forwards, in one group and over groups, and back
        assert images[row].read() == image_bytes(row)
    assert images[1].name.endswith("row 1, column 'image'")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_missing_images_in_every_kind_of_column(tmp_path: Path, name: str) -> None:
    picture = {"bytes": b"x", "path": "x.png"}
    full = {"image": picture, "raw": b"x", "bare": {"bytes": b"x"}, "images": [picture, picture], "raws": [b"x"]}
    empty: dict[str, Any] = dict.fromkeys(full) | {"images": []}
    rows = [full, empty, dict.fromkeys(full), full, full, full, empty]
    shapes = []
    for row in written(tmp_path / name, rows, NESTED):
        shapes.append({column: len(value) if isinstance(value, list) else value for column, value in row.items()})
        for value in row.values():
            for image in value if isinstance(value, list) else [value]:
                assert image is None or image.read() == b"x"
    assert [shape["images"] for shape in shapes] == [2, 0, None, 2, 2, 2, 0]
    assert [shape["raws"] for shape in shapes] == [1, None, None, 1, 1, 1, None]
    for column in ("image", "raw", "bare"):
        assert [row for row, shape in enumerate(shapes) if shape[column] is None] == [1, 2, 6]


def test_rows_are_read_without_decoding_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": n, "image": {"bytes": b"x", "path": "p"}, "raw": b"x", "bare": {"bytes": b"x"}} for n in range(9)]
    file = written(tmp_path / "a.parquet", rows, NESTED)

    def refuse(*_: object) -> None:
        raise AssertionError("images were decoded")

    monkeypatch.setattr(row_groups, "_image_group", refuse)
    assert [row["id"] for row in file] == list(file.column("id")) == list(range(9))
    with pytest.raises(AssertionError):
        file.row(0)["raw"].read()


def test_two_row_groups_of_images_are_held_over_all_files(tmp_path: Path) -> None:
    files = [written(tmp_path / f"{n}.parquet", image_rows(6), {"image": IMAGE_TYPE}, group=2) for n in range(3)]
    row_groups._image_group.cache_clear()
    for file in files:
        for row in file:
            assert row["image"].read() == image_bytes(row["id"])
            assert row_groups._image_group.cache_info().currsize <= 2
    assert row_groups._image_group.cache_info().misses == 9  # every group is decoded once


def test_rows_in_order_are_converted_together_and_few_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "a.parquet", [{"id": n} for n in range(1000)], {}, group=300)
    asked: list[tuple[int, int]] = []
    rows = TableFile._rows
    monkeypatch.setattr(TableFile, "_rows", lambda f, index, n: asked.append((index, n)) or rows(f, index, n))
    for index in range(1000):
        assert file.row(index) == {"id": index}
        assert len(file._chunk[1]) <= record_files._ROWS_AT_A_TIME
    assert len(asked) == 4 * 5 - 3  # 5 chunks in each of 3 row groups of 300 rows, 2 in the last
    asked.clear()
    assert [file.row(index)["id"] for index in (500, 20, 700)] == [500, 20, 700]
    assert asked == [(500, 1), (20, 1), (700, 1)]  # rows out of order alone


def test_one_bad_row_leaves_its_neighbours(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"b", b"\xff", b"d"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    file = TableFile(tmp_path / "a.parquet")
    assert [file.row(index)["text"] for index in (0, 1, 3)] == ["a", "b", "d"]
    with pytest.raises(DataError, match=r"a\.parquet, row 2 cannot be read .*utf-8"):
        file.row(2)


def test_an_image_is_small_to_send_and_the_same_after_it(tmp_path: Path) -> None:
    image = written(tmp_path / "a.parquet", image_rows(), {"image": IMAGE_TYPE}).row(5)["image"]
    sent = pickle.dumps(image)
    assert len(sent) < 300 + len(str(tmp_path))
    assert pickle.loads(sent) == image
    assert pickle.loads(sent).read() == image_bytes(5)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_forked_processes_read_for_themselves(tmp_path: Path, name: str) -> None:
    """They share the parent's open file, but no position in it."""
    images = [row["image"] for row in written(tmp_path / name, image_rows(12), {"image": IMAGE_TYPE}, group=1)]
    images[0].read()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(StoredImage.read, images * 4) == [image_bytes(n) for n in range(12)] * 4


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_file_that_is_replaced_or_gone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write = write_parquet if name == "a.parquet" else write_jsonl
    write(path, [{"id": n} for n in range(200)])
    file: RecordFile = TableFile(path) if name == "a.parquet" else JsonFile(path)
    assert file.row(0) == {"id": 0}
    write(path, [{"id": n} for n in range(200, 400)])
    os.utime(path, (1, 1))
    for read in (lambda: file.row(150), lambda: list(file), lambda: list(file.column("id"))):
        with pytest.raises(DataError, match=rf"{name} has changed since it was opened"):
            read()
    path.unlink()
    with pytest.raises(DataError, match=rf"{name}.* cannot be read .*No such file"):
        file.row(150)


def test_an_image_whose_file_is_replaced_or_gone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    file = written(path, image_rows(1), {"image": IMAGE_TYPE})
    image = file.row(0)["image"]
    assert image.read() == image_bytes(0)
    sent = pickle.dumps(file)
    write_parquet(path, [{"id": 0, "image": {"bytes": b"another", "path": None}}], {"image": IMAGE_TYPE})
    for read in (image.read, lambda: pickle.loads(sent)):
        with pytest.raises(DataError, match=r"a\.parquet has changed since it was opened"):
            read()
    assert TableFile(path).row(0)["image"].read() == b"another"
    path.unlink()
    with pytest.raises(DataError, match=r"row 0, column 'image' cannot be read"):
        image.read()
