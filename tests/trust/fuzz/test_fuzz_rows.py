"""Rows and folders that attack what reads them: the paths that they name, and the texts that they hold."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz.broken_files import encoded, picture
from tests.trust.fuzz.cases import check, examples, nothing_left
from twn_lightning.data import record_files, row_groups
from twn_lightning.data.pair_rows import PairRows
from twn_lightning.data.roots import MediaRoot
from twn_lightning.evaluation.inputs import Inputs, read_inputs
from twn_lightning.types import Item

TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "\u202egnp.exe",
        "e\u0301",
        "\ufeff",
        "\x00",
        "👩‍👩‍👧",
        "<|im_end|>",
        "<script>alert(1)</script>",
        "../../etc/passwd",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def release() -> None:
    """Close the files that stay open for their images."""
    record_files._table.cache_clear()
    row_groups._image_group.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left() -> Iterator[None]:
    with nothing_left("rows", release):
        yield


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def written(path: Path, content: bytes) -> Path:
    """The file, new on the disk: readers refuse one that changes under them."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def tree(folder: Path) -> Path:
    """A root with pictures, and links that lead out of it, in circles and nowhere."""
    root, secret = folder / "root", folder / "secret"
    for place in (root / "a" / "b", secret):
        place.mkdir(parents=True)
        (place / "1.png").write_bytes(encoded(picture(), "PNG"))
    (root / "file_out.png").symlink_to(secret / "1.png")
    (root / "folder_out").symlink_to(secret)
    (root / "a" / "up").symlink_to("../..")
    (root / "circle").symlink_to("circle")
    (root / "self").symlink_to(root)
    (root / "gone.png").symlink_to("nowhere.png")
    (root / "inside.png").symlink_to("a/b/1.png")
    os.mkfifo(root / "pipe.png")
    return root


PARTS = st.sampled_from(
    ["a", "b", "1.png", "..", ".", "", "file_out.png", "folder_out", "up", "circle", "self", "gone.png", "inside.png",
     "secret", "pipe.png", "~", "\x00", "a" * 300, "..%2f", "\\..\\", "C:", "file:", "…", " ", "\udcff"]
)  # fmt: skip


@examples(100, 700)
@given(
    parts=st.lists(PARTS, min_size=1, max_size=5), is_absolute=st.booleans(), kind=st.sampled_from(["image", "video"])
)
def test_no_path_leaves_its_root(tree: Path, parts: list[str], is_absolute: bool, kind: str) -> None:
    relative = ("/" if is_absolute else "") + "/".join(parts)
    root = MediaRoot(tree)

    def paths() -> list[Path]:
        media = root.image(relative, "row 7") if kind == "image" else root.video(relative, [relative], "row 7", 4)
        found = media.content if isinstance(media.content, tuple) else (media.content,)
        return [path for path in found if isinstance(path, Path)]

    def right(found: list[Path]) -> None:
        for path in found:
            assert os.path.realpath(path).startswith(os.path.realpath(tree) + os.sep)
            assert path.read_bytes() == encoded(picture(), "PNG")

    check("paths", repr(relative), paths, right, names="row 7")


PATHS = st.sampled_from(["a/b/1.png", "inside.png", ["inside.png", "a/b/1.png"]])
ROW_FIELDS = st.fixed_dictionaries(
    {"key": st.text(min_size=1, max_size=3)},
    optional={
        "instruction": TEXTS,
        "text": TEXTS,
        "image": PATHS,
        "video": st.sampled_from(["a/b", "self/a/b"]),
    },
) | st.fixed_dictionaries(
    {},
    optional={
        "key": JSON,
        "instruction": JSON,
        "text": JSON,
        "image": JSON | st.sampled_from(["file_out.png", ["inside.png", "folder_out/1.png"]]),
        "video": JSON | st.sampled_from(["folder_out", "a"]),
    },
)


@examples(80, 400)
@given(rows=st.lists(ROW_FIELDS, min_size=1, max_size=4), skip=st.booleans())
def test_rows_to_embed(tree: Path, rows: list[dict[str, Any]], skip: bool) -> None:
    path = written(tree.parent / "embed.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def right(found: Inputs) -> None:
        assert len(found) + len(found.skipped) == len(rows)
        assert skip or not found.skipped
        kept = [row for row in rows if row.get("key") in [item.key for item in found.items]]
        for item in found.items:
            assert item.key
            assert any(row["key"] == item.key and (row.get("text") or "") == item.text for row in kept)
            assert all(os.path.realpath(p).startswith(os.path.realpath(tree)) for p in media_paths(item))

    def read() -> Inputs:
        return read_inputs(path, root=tree, on_error="skip" if skip else "raise")

    check("rows to embed", f"{rows}", read, right, names=path.name)


def media_paths(item: Item) -> list[Path]:
    """The files of an item's media."""
    contents = [m.content if isinstance(m.content, tuple) else (m.content,) for m in item.media]
    return [path for content in contents for path in content if isinstance(path, Path)]


SIDES = (
    st.fixed_dictionaries({"text": st.text(min_size=1, max_size=5)}, optional={"instruction": TEXTS, "image": PATHS})
    | st.fixed_dictionaries({}, optional={"instruction": JSON, "text": JSON, "image": JSON})
    | JSON
)


@examples(60, 300)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"query": SIDES, "positive": SIDES}, optional={"key": JSON, "query_cot": JSON}),
        min_size=1,
        max_size=3,
    )
)
def test_rows_to_annotate(tree: Path, rows: list[dict[str, Any]]) -> None:
    path = written(tree.parent / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def read() -> list[tuple[Item, str]]:
        pairs = PairRows(path, tree)
        return [
            (pairs.item(i, side), pairs.cot(i, "query")) for i in range(len(pairs)) for side in ("query", "positive")
        ]

    def right(found: list[tuple[Item, str]]) -> None:
        sides = [row[side] for row in rows for side in ("query", "positive")]
        assert [item.text for item, _ in found] == [side.get("text") or "" for side in sides]
        assert [cot for _, cot in found[::2]] == [row.get("query_cot") or "" for row in rows]

    check("rows to annotate", f"{rows}", read, right, names=path.name)


def test_a_folder_of_odd_names_and_files(tree: Path) -> None:
    """Each entry of a folder to embed is read or refused by its name."""
    folder = tree.parent / "odd"
    folder.mkdir(exist_ok=True)
    contents = {
        "empty.txt": b"",
        "latin.txt": "grün".encode("latin-1"),
        "utf_16.txt": "grün".encode("utf-16"),
        "long.txt": b"caption " * 1_300_000,
        "mark.txt": b"\xef\xbb\xbftext",
        "new\nline.txt": b"text",
        "‮txt.exe.txt": b"text",
    }
    names = [os.fsencode(folder / name) for name in contents] + [os.fsencode(folder) + b"/not_utf8_\xff.txt"]
    for name, content in zip(names, [*contents.values(), b"text"], strict=True):
        Path(os.fsdecode(name)).write_bytes(content)
        single = tree.parent / "single"
        single.mkdir(exist_ok=True)
        os.replace(name, os.fsencode(single) + b"/" + os.path.basename(name))

        def right(found: Inputs, content: bytes = content) -> None:
            assert [item.text for item in found.items] == [content.decode("utf-8-sig").strip()]
            found.items[0].key.encode()

        check("folders to embed", repr(name), lambda single=single: read_inputs(single), right)
        for path in single.iterdir():
            path.unlink()
