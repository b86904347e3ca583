"""Rows of every file format, from a mirror and from a stand-in for the hub; images lazily; errors by file and row."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twn_lightning.data import json_file, record_files, records
from twn_lightning.data.record_files import StoredImage, TableFile
from twn_lightning.data.records import field_of, read_records, split_names
from twn_lightning.errors import DataError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS = [{"id": i, "text": "ü" * i} for i in range(7)]


def table(start: int = 0, stop: int = 7) -> pa.Table:
    rows = range(start, stop)
    images = [None if i == 2 else {"bytes": f"b{i}".encode(), "path": f"{i}.png"} for i in rows]
    lists = [[{"bytes": f"b{i}-{j}".encode(), "path": None} for j in range(i % 3)] for i in rows]
    return pa.table(
        {
            "id": list(rows),
            "text": ["ü" * i for i in rows],
            "image": pa.array(images, IMAGE),
            "images": pa.array(lists, pa.list_(IMAGE)),
            "raw": [f"r{i}".encode() for i in rows],
        }
    )


def write_saved(folder: Path) -> None:
    """A folder as `datasets` saves it: an Arrow stream and its state."""
    folder.mkdir(parents=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def write_shards(folder: Path) -> None:
    folder.mkdir(parents=True)
    for shard, (start, stop) in enumerate([(0, 4), (4, 7)]):
        pq.write_table(table(start, stop), folder / f"train-{shard:05d}-of-00002.parquet", row_group_size=3)


def write_parquet(folder: Path) -> None:
    folder.mkdir(parents=True)
    pq.write_table(table(), folder / "train.parquet", row_group_size=3)


def write_json(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")


TABLES = {"parquet": write_parquet, "shards": write_shards, "saved": lambda folder: write_saved(folder / "train")}
TEXTS = {
    "jsonl": ("train.jsonl", "\n\n".join(json.dumps(row) for row in ROWS) + "\n"),
    "json": ("train.json", json.dumps(ROWS, ensure_ascii=False, indent=1)),
    "json of lines": ("train.json", "\n".join(json.dumps(row) for row in ROWS)),
}
PLACES = {
    "parquet": "train.parquet, row 5",
    "shards": "train-00001-of-00002.parquet, row 1",
    "saved": "data-00000-of-00001.arrow, row 5",
    "jsonl": "train.jsonl, line 11",
    "json": "train.json, row 5",
    "json of lines": "train.json, line 6",
}
"""Where row 5 is."""


@pytest.mark.parametrize("form", TABLES)
@pytest.mark.parametrize("folder", ["default", "data", "."])
def test_tables_keep_images_in_the_file(tmp_path: Path, form: str, folder: str) -> None:
    TABLES[form](tmp_path / "org/repo" / folder)
    found = pickle.loads(pickle.dumps(read_records(tmp_path, "org/repo", None, "train")))
    assert len(found) == 7
    assert found.column("id") == list(range(7)) == [row["id"] for row in found] == [found[i]["id"] for i in range(7)]
    assert [row["text"] for row in found[2:4]] == ["üü", "üüü"]
    assert found[2]["image"] is None
    image = found[-1]["image"]
    assert isinstance(image, StoredImage)
    assert (image.read(), image.path) == (b"b6", "6.png")
    assert [stored.read() for stored in found[5]["images"]] == [b"b5-0", b"b5-1"]
    assert [row["raw"].read() for row in found] == [f"r{i}".encode() for i in range(7)]
    assert str(tmp_path) in image.name
    assert "column 'image'" in image.name
    assert found.source(5).endswith(PLACES[form])
    assert len({found.source(row) for row in range(7)}) == 7


@pytest.mark.parametrize("form", TABLES)
def test_rows_in_any_order_and_more_than_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(record_files, "_ROWS_AT_A_TIME", 2)
    TABLES[form](tmp_path / "org/repo/default")
    found = read_records(str(tmp_path), "org/repo", None, "train")
    rows = list(found)
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert list(found) == rows == [found[i] for i in range(7)]
    assert [found[i] for i in (6, 0, 3, 3, 4, 5, -7)] == [rows[i] for i in (6, 0, 3, 3, 4, 5, 0)]
    assert (found[2:4], found[::-3]) == (rows[2:4], rows[::-3])
    found[1]["text"] = "changed by its user"
    assert found[1] == rows[1]
    for index in (7, -8):
        with pytest.raises(IndexError, match="of 7"):
            found[index]


def test_bytes_of_images_are_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "org/repo/default")
    asked: list[tuple[int, str]] = []
    stored = TableFile.stored
    monkeypatch.setattr(
        TableFile, "stored", lambda file, row, name: asked.append((row, name)) or stored(file, row, name)
    )
    found = read_records(tmp_path, "org/repo", None, "train")
    rows = list(found)
    assert asked == []
    assert rows[4]["image"].read() == b"b4"
    assert asked == [(4, "image")]


@pytest.mark.parametrize("form", TEXTS)
@pytest.mark.parametrize("scan", [5, 1 << 20])
def test_json_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, scan: int) -> None:
    monkeypatch.setattr(json_file, "_SCAN_BYTES", scan)
    write_json(tmp_path / "org/repo/sub", *TEXTS[form])
    found = read_records(tmp_path, "org/repo", "sub", "train")
    assert list(found) == ROWS == [found[i] for i in range(7)]
    assert found.column("text")[3] == "üüü"
    assert found.column("other") == [None] * 7
    assert found.columns == ["id", "text"]
    assert found.source(5).endswith(f"sub/{PLACES[form]}")


def test_a_byte_order_mark(tmp_path: Path) -> None:
    for name, text in (TEXTS["json"], TEXTS["jsonl"]):
        write_json(tmp_path / "org/repo/sub", name, "\ufeff" + text)
        assert list(read_records(tmp_path, "org/repo", "sub", "train")) == ROWS


def test_a_broken_list_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "_SCAN_BYTES", 8)
    write_json(tmp_path / "org/repo/sub", "train.json", '[{"a": 1}, {"a" 2},' + ' {"a": 3},' * 50 + "{}]")
    with pytest.raises(DataError, match=r"row 1: the JSON list is broken"):
        read_records(tmp_path, "org/repo", "sub", "train")


def test_damaged_rows_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "org/repo/default")
    path = tmp_path / "org/repo/default/train.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36
    path.write_bytes(content)
    found = read_records(tmp_path, "org/repo", None, "train")
    assert found[6]["id"] == 6
    with pytest.raises(DataError, match=r"train\.parquet, rows 0 to 2 cannot be read .* The file is damaged"):
        found[0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.json", '[{"a": 1}, {"a":', r"train\.json, row 1: the JSON list is broken or cut short"),
        ("train.json", '"text"', r"expected a JSON list of objects"),
        ("train.json", "", r"expected a JSON list of objects"),
        ("train.json", "[1, 2]", r"row 0: a row must be a JSON object, this is int"),
        ("train.jsonl", '{"a": 1}\n{"a"', r"train\.jsonl, line 2: this is not JSON"),
        ("train.parquet", "PAR1", r"train\.parquet cannot be read"),
        ("train-00000-of-00002.parquet", "", r"1 of 2 Parquet shards are there.*: numbers 0 of 2\. Fetch"),
        (
            "valid.parquet",
            "",
            r"nothing to read at .*org/repo/default/train \(there: valid\.parquet\) or .*org/repo/data/train "
            r"\(there: no such folder\) or .*org/repo/train \(there: default\); expected \.parquet",
        ),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_json(tmp_path / "org/repo/default", name, text)
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path, "org/repo", None, "train"))


@pytest.mark.parametrize(("line", "why"), [("{broken", "this is not JSON"), ("[1]", "is list"), ("\udcff", "utf-8")])
def test_a_broken_line_is_named_and_the_rest_is_read(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "org/repo/default/train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(f'{{"id": 1}}\n\n{line}\n{{"id": 2}}\n', encoding="utf-8", errors="surrogateescape")
    found = read_records(tmp_path, "org/repo", None, "train")
    assert (found[0], found[2]) == ({"id": 1}, {"id": 2})
    with pytest.raises(DataError, match=rf"train\.jsonl, line 3: .*{why}"):
        found[1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("00000-of-00003", "00002-of-00003"), r"2 of 3 Parquet shards are there.*numbers 0, 2 of 3"),
        (("00000-of-00001", "00001-of-00002"), r"of several versions: numbers 0, 1 of 1, 2"),
    ],
)
def test_shards_that_do_not_belong_together(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        write_json(tmp_path / "org/repo/default", f"train-{name}.parquet", "")
    with pytest.raises(DataError, match=message):
        read_records(tmp_path, "org/repo", None, "train")


def test_a_truncated_table(tmp_path: Path) -> None:
    write_parquet(tmp_path / "org/repo/default")
    path = tmp_path / "org/repo/default/train.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"train\.parquet cannot be read .*It is truncated"):
        read_records(tmp_path, "org/repo", None, "train")


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "org/repo/default").mkdir(parents=True)
    (tmp_path / "org/repo/default/train.json").write_bytes(b'[{"a": "\xff"}]')
    with pytest.raises(DataError, match=r"train\.json: not UTF-8"):
        list(read_records(tmp_path, "org/repo", None, "train"))


@pytest.mark.parametrize(
    "names", [("../other", "default", "train"), ("org/repo", "..", "train"), ("org/repo", "a", "/x")]
)
def test_names_stay_below_the_root(tmp_path: Path, names: tuple[str, str, str]) -> None:
    with pytest.raises(DataError, match="leaves its root"):
        read_records(tmp_path / "root", *names)


def test_a_saved_folder_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "org/repo/default/train"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(DataError, match=r"names the file '\.\./secret\.arrow', which is not in its folder"):
        read_records(tmp_path, "org/repo", None, "train")


def test_a_saved_folder_without_its_list_is_nothing(tmp_path: Path) -> None:
    write_saved(tmp_path / "org/repo/default/train")
    (tmp_path / "org/repo/default/train/state.json").unlink()
    with pytest.raises(DataError, match=r"\(there: train\) .*a folder saved by datasets"):
        read_records(tmp_path, "org/repo", None, "train")
    (tmp_path / "org/repo/default/train/state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state\.json is not the state of a data set saved by datasets"):
        read_records(tmp_path, "org/repo", None, "train")


def test_links_may_not_leave_the_root(tmp_path: Path) -> None:
    write_parquet(tmp_path / "outside/default")
    (tmp_path / "inside/org").mkdir(parents=True)
    (tmp_path / "inside/org/repo").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"leaves its root .* through a symbolic link"):
        read_records(tmp_path / "inside", "org/repo", None, "train")


def test_an_image_without_bytes_names_its_place(tmp_path: Path) -> None:
    path = tmp_path / "org/repo/default/train.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], IMAGE)}), path)
    image = read_records(tmp_path, "org/repo", None, "train")[0]["image"]
    with pytest.raises(DataError, match=r"train\.parquet, row 0, column 'image' holds no image bytes .*'a\.png'"):
        image.read()


def test_required_columns_and_fields(tmp_path: Path) -> None:
    write_parquet(tmp_path / "org/repo/default")
    found = read_records(tmp_path, "org/repo", None, "train")
    found.require(("id", "image"), "source 'x'")
    with pytest.raises(DataError, match=r"source 'x': .*train\.parquet lacks the columns a, b; it has id, text, image"):
        found.require(("a", "id", "b"), "source 'x'")
    assert field_of({"b": 1, "c": 2}, ("a", "c"), "row 1") == 2
    with pytest.raises(DataError, match="row 1: the row lacks one of a, b; its fields are c"):
        field_of({"c": 2}, ("a", "b"), "row 1")


class FakeHub:
    """Files of a folder, served as the hub's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.revisions: list[str | None] = []

    def list_repo_files(self, repo: str, *, repo_type: str, revision: str | None) -> list[str]:
        assert (repo, repo_type) == ("org/repo", "dataset")
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file())

    def download(self, repo: str, name: str, *, repo_type: str, revision: str | None) -> str:
        self.revisions.append(revision)
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    records._hub_files.cache_clear()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fake.download)
    return fake


def test_the_hub_has_the_same_layout(hub: FakeHub) -> None:
    write_shards(hub.folder / "data")
    write_json(hub.folder / "sft", *TEXTS["json"])
    found = read_records(None, "org/repo", None, "train", revision="abc")
    assert found.column("id") == list(range(7))
    assert hub.revisions == ["abc", "abc"]
    assert list(read_records(None, "org/repo", "sft", "train")) == ROWS
    assert split_names(None, "org/repo", "sft") == ["train"]
    write_json(hub.folder, "top.json", TEXTS["json"][1])
    records._hub_files.cache_clear()
    assert list(read_records(None, "org/repo", None, "top")) == ROWS
    with pytest.raises(DataError, match="org/repo, subset other, split train: the hub repository has no such files"):
        read_records(None, "org/repo", "other", "train")


def test_a_folder_of_other_files_on_the_hub_is_no_saved_split(hub: FakeHub) -> None:
    write_json(hub.folder / "train", "readme.txt", "not a table")
    with pytest.raises(DataError, match="the hub repository has no such files"):
        read_records(None, "org/repo", None, "train")


def test_a_hub_out_of_reach(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> list[str]:
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "list_repo_files", fail)
    with pytest.raises(
        DataError, match=r"org/repo: the hub cannot be reached or refuses \(no route\). Set annotations"
    ):
        read_records(None, "org/repo", None, "train")
