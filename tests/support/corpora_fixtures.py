"""Tiny mirrors of every training corpus, in the formats of their repositories, with media below one root."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from twn_lightning.settings import DataSettings, SourceSettings

ROWS = 60
"""Rows of each subset."""
COT = "<think>I see row {row}.</think><answer>thing {row}</answer>"
MMEB_SUBSETS = ("HatefulMemes", "MSCOCO_t2i")
TWN_SUBSETS = ("ChartQA", "Video")
UME_TEACHER = "<think>I see {row}.</think><answer><|begin_of_box|>thing {row}<|end_of_box|>\n<gen_emb>"


@cache
def png(shade: int) -> bytes:
    """An encoded 16 x 16 image of its own content."""
    pixels = np.full((16, 16, 3), shade % 200, np.uint8)
    pixels[0, 0] = (shade // 200, shade % 200, 7)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=16)


def image_column(row: int) -> dict[str, Any]:
    """As `datasets` stores an image; its file name is not unique."""
    return {"bytes": png(row), "path": f"page_{row % 5}.png"}


def mmeb_row(row: int, to_image: bool) -> dict[str, Any]:
    picture = f"images/coco/{row}.png"
    if to_image:
        return {
            "qry": f"Find me an everyday image of thing {row}\n",
            "qry_image_path": "",
            "pos_text": "<|image_1|>\nRepresent the given image.",
            "pos_image_path": picture,
            "neg_text": "<|image_1|>\nRepresent the given image.",
            "neg_image_path": f"images/coco/{(row + 1) % ROWS}.png",
        }
    return {
        "qry": "<|image_1|>\nSay what this is.\n",
        "qry_image_path": picture,
        "pos_text": f"thing {row}",
        "pos_image_path": "",
        "neg_text": f"thing {(row + 1) % ROWS}",
        "neg_image_path": "",
    }


def write_mmeb(annotations: Path) -> None:
    for subset in MMEB_SUBSETS:
        rows = [mmeb_row(row, subset.endswith("t2i")) for row in range(ROWS)]
        folder = annotations / "TIGER-Lab/MMEB-train" / subset
        write_parquet(folder / "original-00000-of-00002.parquet", rows[: ROWS // 2])
        write_parquet(folder / "original-00001-of-00002.parquet", rows[ROWS // 2 :])
        write_parquet(folder / "diverse_instruction.parquet", rows[:10])


def hound_row(row: int) -> dict[str, Any]:
    turns = [("human", "<video>\nWhat happens?"), ("gpt", f"A thing of kind {row} moves.")]
    conversations = [{"from": who, "value": said} for who, said in turns]
    return {"id": f"v{row}", "video": f"v{row}", "conversations": conversations}


def write_llava_hound(annotations: Path) -> None:
    lines = "".join(json.dumps(hound_row(row)) + "\n" for row in range(ROWS))
    folder = annotations / "ShareGPTVideo/train_video_and_instruction/video_instruction/train/sft"
    for name in ("video_caption_300k", "video_240k_caption_15k"):
        write(folder / f"{name}.jsonl", lines)


def write_colpali(annotations: Path) -> None:
    rows = [
        {"query": f"What is {row}?", "image": image_column(row), "answer": f"thing {row}", "source": "arxiv_qa"}
        for row in range(ROWS)
    ]
    write_parquet(annotations / "vidore/colpali_train_set/default/train.parquet", rows)


def write_visrag(annotations: Path) -> None:
    rows = [
        {"query": f"Where is {row}?", "image": image_column(row // 2), "source": ("ChartQA", "Elsewhere")[row % 2]}
        for row in range(ROWS)
    ]
    for name in ("In-domain", "Synthetic"):
        write_parquet(annotations / f"openbmb/VisRAG-Ret-Train-{name}-data/data/train.parquet", rows)


def twn_row(row: int, video: bool) -> dict[str, Any]:
    media = {"video": f"sharegpt_video://train_300k/v{row}"} if video else {"image": f"mmeb_train://coco/{row}.png"}
    return {
        "data_info": {"data_type": "sft", "dataset_name": "Video" if video else "ChartQA", "data_id": f"id{row}"},
        "query": {"text": "<image>\nSay what this is.", **media, "cot": COT.format(row=row)},
        "pos": {"text": f"thing {row}", "image": None, "cot": COT.format(row=row)},
        "neg": [{"text": f"thing {(row + 1) % ROWS}", "image": None}, {"text": f"thing {(row + 2) % ROWS}"}],
    }


def rl_row(row: int) -> dict[str, Any]:
    index = row if row % 2 else f"id{row}"
    return {"data_index": index, "modality": "image", "source_dataset": "ChartQA", "target_hash": "0"}


def write_twn(annotations: Path) -> None:
    folder = annotations / "zhanglx/TWN-training-data"
    for subset in TWN_SUBSETS:
        rows = [twn_row(row, subset == "Video") for row in range(ROWS)]
        write(folder / "sft" / f"{subset}.json", json.dumps(rows))
    write(folder / "rl/rl.json", json.dumps([rl_row(row) for row in range(8)]))


def ume_row(row: int) -> dict[str, Any]:
    def side(text: str, image: str, video: str) -> dict[str, Any]:
        asked = f"<image>\n{text}\n<disc_emb>\nRepresent the above input."
        turns = [("human", asked), ("gpt", UME_TEACHER.format(row=row))]
        conversations = [{"from": who, "value": said} for who, said in turns]
        return {"conversations": conversations, "image": [image], "video": [video] if video else []}

    if row % 2:
        query, positive = side("What happens?", "images/blank.jpg", f"llavahound/v{row}"), ""
        return {
            "dataset_name": "llavahound_qa",
            "qry": query,
            "pos": side(f"thing {row}", "images/blank.jpg", positive),
        }
    query = side("Find it.", f"images/coco/{row}.png", "")
    return {"dataset_name": "MSCOCO_t2i", "qry": query, "pos": side(f"thing {row}", "images/blank.jpg", "")}


def write_ume_r1(annotations: Path) -> None:
    write(annotations / "zhibinlan/UME-sft-train/default/train.json", json.dumps([ume_row(r) for r in range(ROWS)]))


def pairs_row(row: int) -> dict[str, Any]:
    media = {"video": f"clips/v{row}"} if row % 2 else {"image": f"pictures/{row}.png"}
    return {
        "key": f"own{row}",
        "query": {"instruction": "Say what this is.", **media},
        "positive": {"text": f"thing {row}"},
        "query_cot": COT.format(row=row),
        "positive_cot": COT.format(row=row),
        "neg": [{"text": f"thing {(row + 1) % ROWS}"}],
    }


def write_pairs(annotations: Path) -> None:
    write(annotations / "pairs.jsonl", "".join(json.dumps(pairs_row(row)) + "\n" for row in range(ROWS)))


WRITERS: dict[str, Callable[[Path], None]] = {
    "colpali": write_colpali,
    "llava_hound": write_llava_hound,
    "mmeb_train": write_mmeb,
    "pairs": write_pairs,
    "twn": write_twn,
    "ume_r1": write_ume_r1,
    "visrag": write_visrag,
}
ENTRIES: dict[str, list[SourceSettings]] = {
    "colpali": [SourceSettings("colpali")],
    "llava_hound": [SourceSettings("llava_hound")],
    "mmeb_train": [SourceSettings("mmeb_train", subset) for subset in MMEB_SUBSETS],
    "pairs": [SourceSettings("pairs")],
    "twn": [SourceSettings("twn")],
    "ume_r1": [SourceSettings("ume_r1")],
    "visrag": [SourceSettings("visrag")],
}
"""What of each corpus the mirror holds."""


def write_media(media: Path) -> None:
    """Images and frame folders, where each scheme looks for them."""
    for row in range(ROWS):
        write(media / f"mmeb_train/images/coco/{row}.png", png(row))
        write(media / f"ume_r1/images/coco/{row}.png", png(row))
        write(media / f"pairs/pictures/{row}.png", png(row))
        for frame in (1, 2, 10):
            for folder in ("sharegpt_video/train_300k", "ume_r1/llavahound", "pairs/clips"):
                write(media / folder / f"v{row}" / f"frame{frame}.png", png(frame))


@dataclass(frozen=True)
class Mirror:
    """Where the corpora are."""

    annotations: Path
    media: Path

    def settings(self, *names: str, **changes: Any) -> DataSettings:
        """A mixture of some corpora, of all of them without names."""
        entries = [entry for name in names or tuple(WRITERS) for entry in ENTRIES[name]]
        values: dict[str, Any] = {
            "source": "mixture",
            "sources": entries,
            "annotations_root": str(self.annotations),
            "media_root": str(self.media),
            "rows_per_source_global": 4,
            "num_frames": 2,
        }
        return DataSettings(**{**values, **changes})


def write_mirror(root: Path) -> Mirror:
    """All corpora and their media."""
    mirror = Mirror(root / "annotations", root / "media")
    for writer in WRITERS.values():
        writer(mirror.annotations)
    write_media(mirror.media)
    return mirror
