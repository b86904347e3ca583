"""Prompts of loaded tasks, to the letter, as the evaluator of VLM2Vec writes them.

What is expected was written by hand from its loaders (commit 6e1e1d4) for rows of the offline mirror.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.mmeb_files import annotation_path, write_image, write_jsonl
from tests.support.mmeb_fixtures import MirrorPaths, build_mirror
from tests.support.prompts import (
    ASKED,
    BLOCK,
    CHOOSE,
    LETTERED,
    LONG_NAME,
    OPTIONS,
    PATCHES,
    SEEN,
    candidate,
    load,
    vlm2vec,
    write_captioned,
)
from twn_lightning.backbone.processor import PROMPT_SUFFIX, PromptProcessor
from twn_lightning.backbone.tiny import tiny_tokenizer
from twn_lightning.benchmark import get_task
from twn_lightning.benchmark.parsers import PARSERS

WATCH = "<|video_pad|> Understand the content of the provided video."
READ = "<|image_pad|> Understand the content of the provided document image."
LOOK = "<|image_pad|>  Represent the given image.\n"
"""Of the mirror's `<|image_1|> Represent the given image.\\n`: the token is followed by a blank of its own."""
VLM2VEC_PROMPTS: dict[str, tuple[str, str, str]] = {
    "ImageNet-1K": (
        "<|image_pad|>\nRepresent the given image for classification\n",
        "ImageNet-1K class 0",
        "ImageNet-1K class 0",
    ),
    "OK-VQA": (
        f"<|image_pad|>\nRepresent the given image with the following question: {ASKED}\n",
        "distractor 0-1",
        "distractor 0-1",
    ),
    "VisualNews_i2t": (
        f"<|image_pad|>\nFind a caption for the news in the given photo. {ASKED}\n",
        "answer 0: größer, 大きい",
        "answer 0: größer, 大きい",
    ),
    "VisDial": (
        f"Represent the given dialogue about an image, which is used for image retrieval: {ASKED}\n\n",
        "VisDial/candidate_0.jpg",
        f"{LOOK}\n",
    ),
    "MSCOCO_t2i": (
        f"Find me an everyday image that matches the given caption: {ASKED}\n",
        "MSCOCO_t2i/candidate_1.jpg",
        f"{LOOK}\n",
    ),
    "CIRR": (
        f"<|image_pad|>\nGiven an image, find a similar everyday image with the described changes: {ASKED}\n",
        "CIRR/candidate_0.jpg:",
        LOOK,
    ),
    "RefCOCO-Matching": (
        f"<|image_pad|>\nSelect the portion of the image that follows the language expressions: {ASKED}\n",
        "RefCOCO-Matching/candidate_0.jpg:object 1 in RefCOCO-Matching/candidate_0.jpg",
        "<|image_pad|>  Select the portion of the image that follows the language expressions:\n"
        ' "object 1 in RefCOCO-Matching/candidate_0.jpg"\n',
    ),
    "SmthSmthV2": (
        "<|video_pad|> What actions or object interactions are being performed by the person in the video?",
        "Déplacer quelque chose",
        "Déplacer quelque chose",
    ),
    "K700": ("<|video_pad|> Recognize the category of the video content.", "waiting_in_line", "waiting_in_line"),
    "Breakfast": (
        "<|video_pad|> Recognize the breakfast type that the person is cooking in the video. ",
        "scrambledegg",
        "scrambledegg",
    ),
    "MVBench": (
        f"<|video_pad|> {CHOOSE} Question:  a man slices an onion 0\nOptions:\n(A) a man slices an onion 0 (0)\n"
        "(B) ein Hund läuft über die Straße 1 (1)\n(C) 两只猫在沙发上睡觉 2 (2)",
        "(B) ein Hund läuft über die Straße 1 (1)",
        "(B) ein Hund läuft über die Straße 1 (1)",
    ),
    "Video-MME": (
        f"<|video_pad|> {CHOOSE} Question:  What does the person say? a man slices an onion 0\n{BLOCK}",
        "A. a man slices an onion 0 (0).",
        "a man slices an onion 0 (0)",
    ),
    "NExTQA": (
        f"<|video_pad|> {CHOOSE} Question:  a man slices an onion 0\nOptions:\n{OPTIONS}",
        "  a caption with outer blanks\n 4 (4)",
        "  a caption with outer blanks\n 4 (4)",
    ),
    "EgoSchema": (
        f"<|video_pad|> {CHOOSE} Question:  Summarise what c does. a man slices an onion 0{LETTERED}",
        "E.   a caption with outer blanks\n 4 (4).",
        "a caption with outer blanks\n 4 (4)",
    ),
    "ActivityNetQA": (
        f"<|video_pad|> {CHOOSE} Question:  is the person with a hat wearing trousers? (A) yes; (B) no.",
        "yes",
        "yes",
    ),
    "DiDeMo": (
        "Find a video that includes the following described scenes: a man slices an onion 0",
        "12090392@N02_0_78f8",
        WATCH,
    ),
    "MSR-VTT": ("Find a video that contains the following visual content: a man slices an onion 0", "video7020", WATCH),
    "MSVD": (
        "Find the video snippet that corresponds to the given summary: a man slices an onion 0",
        "-4wsuPCjDBc_0_15",
        WATCH,
    ),
    "VATEX": (
        "Select a video that fits the description provided: a man slices an onion 0",
        "2gpXvKHrOaQ_000000_000010",
        WATCH,
    ),
    "YouCook2": (
        "Find a video that demonstrates the following action while making a recipe: a man slices an onion 0",
        "xHr8X2Wpmno_0",
        WATCH,
    ),
    "QVHighlight": (
        "<|video_pad|> Find the clip that corresponds to the described scene in the given video: "
        "a man slices an onion 0",
        "NUsG9BgSes0_0.0_210.0/positive_1",
        WATCH,
    ),
    "MomentSeeker": (
        "Find the clip that corresponds to the given text: a man slices an onion 0",
        "video_frames/movie101_0_0",
        "<|video_pad|> Understand the content of the provided video clip.",
    ),
    "ViDoRe_arxivqa": (
        "Find a document image that matches the given query: Où est la courbe № 0 de 東京?",
        "120",
        READ,
    ),
    "VisRAG_ArxivQA": (
        "Find a document image that matches the given query: Où est la courbe № 0 de 東京?",
        LONG_NAME,
        READ,
    ),
}
"""Of a task's first query; a candidate's key; of that candidate."""


def test_every_parser_is_compared() -> None:
    assert {get_task(name).parser for name in VLM2VEC_PROMPTS} == set(PARSERS)


@pytest.mark.parametrize("name", VLM2VEC_PROMPTS)
def test_vlm2vec_prompts(name: str, mirror: MirrorPaths) -> None:
    query, key, shown = VLM2VEC_PROMPTS[name]
    task = load(name, mirror)
    assert vlm2vec(task.queries[0]) == query
    assert vlm2vec(candidate(task, key)) == shown


def test_momentseekers_three_kinds_of_query(mirror: MirrorPaths) -> None:
    assert [vlm2vec(query) for query in load("MomentSeeker", mirror).queries[:3]] == [
        "Find the clip that corresponds to the given text: a man slices an onion 0",
        "<|image_pad|> Select the video clip that aligns with the given text and image: "
        "ein Hund läuft über die Straße 1",
        "<|video_pad|> Find the clip that corresponds to the given sentence and video segment: 两只猫在沙发上睡觉 2",
    ]


def test_captions_keep_their_outer_blanks(tmp_path: Path) -> None:
    query = load("MSVD", build_mirror(tmp_path, ["MSVD"], queries=5)).queries[4]
    instruction = "Find the video snippet that corresponds to the given summary:"
    assert vlm2vec(query) == f"{instruction}   a caption with outer blanks\n 4"


@pytest.mark.parametrize("name", ["WebQA", "EDIS"])
def test_the_stray_image_token_is_the_one_difference(name: str, mirror: MirrorPaths) -> None:
    """VLM2Vec has `<|image_pad|>` before this although the query has no image."""
    instruction = {
        "WebQA": "Find a Wikipedia image that answers this question:",
        "EDIS": "Find a news image that matches the provided caption:",
    }
    assert vlm2vec(load(name, mirror).queries[0]) == f"\n{instruction[name]} {ASKED}\n"


ROW = {"qry_inst": "<|image_1|>", "qry_text": "", "qry_img_path": "0.png", "tgt_inst": "<|image_1|>"}


@pytest.mark.parametrize(
    ("name", "row", "query", "shown"),
    [
        (
            "N24News",
            {"qry_inst": " \nName \n it:", "qry_text": "a \n b "},
            "<|image_pad|> \nName\n it: a\n b \n",
            "x \n",
        ),
        ("N24News", {"qry_inst": "<|image_1|> Name it: ", "qry_text": "\na"}, "<|image_pad|>  Name it: \na\n", "x \n"),
        ("N24News", {"qry_text": "a"}, "<|image_pad|>  a\n", "x \n"),
        ("N24News", {"qry_text": None}, "<|image_pad|> \n", "x \n"),
        ("GQA", {"qry_inst": " \n Answer: \n", "qry_text": " a?\n"}, "<|image_pad|>\nAnswer:  a?\n\n", "x \n"),
        ("CIRR", {"qry_inst": "Find", "tgt_text": [""]}, "<|image_pad|>\nFind\n", "<|image_pad|> "),
        ("CIRR", {"tgt_inst": "\nShow: ", "tgt_text": ["\nb "]}, "<|image_pad|>\n\n", "<|image_pad|>\nShow: \nb \n"),
        ("CIRR", {"tgt_inst": "Show:", "tgt_text": ["b \n"]}, "<|image_pad|>\n\n", "<|image_pad|> Show: b\n\n"),
        ("MSCOCO_t2i", {"qry_inst": "Find \n", "qry_text": "a \n"}, "Find \n a \n\n", "<|image_pad|> \n"),
    ],
)
def test_odd_white_space_is_treated_as_in_vlm2vec(
    name: str, row: dict[str, Any], query: str, shown: str, tmp_path: Path
) -> None:
    task = get_task(name)
    target = {"tgt_text": [""], "tgt_img_path": ["0.png"]} if task.target_instruction else {"tgt_text": ["x \n"]}
    write_image(tmp_path / "media" / task.media / "0.png")
    write_jsonl(annotation_path(tmp_path / "annotations", task, suffix=".jsonl"), [ROW | target | row])
    loaded = load(name, MirrorPaths(tmp_path / "annotations", tmp_path / "media"))
    assert vlm2vec(loaded.queries[0]) == query
    assert vlm2vec(loaded.candidates[0]) == shown


def test_captions_are_shown_all_or_none(tmp_path: Path) -> None:
    assert [vlm2vec(item) for item in load("WebQA", write_captioned(tmp_path)).candidates] == [
        "<|image_pad|> Show:  a\n\n",
        "<|image_pad|> Show: \n",
        "<|image_pad|> Show:\n",
        "<|image_pad|> Show:\n",
    ]


def test_twns_own_wrapper_drops_outer_white_space(mirror: MirrorPaths) -> None:
    task = load("OK-VQA", mirror)
    body = "Represent the given image with the following question: What is at № 0, près de l'étoile 星?"
    rendered = PromptProcessor(tiny_tokenizer(), PATCHES).render(task.queries[0])
    assert f"{SEEN}{body}\n{PROMPT_SUFFIX}" in rendered
