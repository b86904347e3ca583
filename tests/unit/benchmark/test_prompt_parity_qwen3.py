"""Prompts of loaded tasks, to the letter, as the evaluator of Qwen3-VL-Embedding writes them.

What is expected was written by hand from its loaders (commit 8ce3aab) for rows of the offline mirror; the chat template
is that of the tiny tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.mmeb_fixtures import MirrorPaths, build_mirror
from tests.support.prompts import (
    ASKED,
    BLOCK,
    CHOOSE,
    LETTERED,
    LONG_NAME,
    OPTIONS,
    SEEN,
    WATCHED,
    candidate,
    load,
    qwen3,
    turns,
    write_captioned,
)
from twn_lightning.benchmark import all_tasks

ANYTHING = "Represent the user's input."
"""What the system message says of a candidate."""
QWEN3_PROMPTS: dict[str, tuple[str, str, str, str]] = {
    "ImageNet-1K": (
        "Represent the given image for classification.",
        SEEN,
        "ImageNet-1K class 0",
        "ImageNet-1K class 0",
    ),
    "OK-VQA": (
        "Represent the given image with the following question:",
        f"{SEEN}{ASKED}",
        "distractor 0-1",
        "distractor 0-1",
    ),
    "VisDial": (
        "Represent the given dialogue about an image, which is used for image retrieval:",
        ASKED,
        "VisDial/candidate_0.jpg",
        SEEN,
    ),
    "WebQA": (
        "Find a Wikipedia image that answers this question:",
        ASKED,
        "WebQA/candidate_0.jpg",
        f'{SEEN}"object 0 in WebQA/candidate_0.jpg"',
    ),
    "RefCOCO-Matching": (
        "Select the portion of the image that follows the language expressions:",
        f"{SEEN}{ASKED}",
        "RefCOCO-Matching/candidate_0.jpg:object 1 in RefCOCO-Matching/candidate_0.jpg",
        f'{SEEN}"object 1 in RefCOCO-Matching/candidate_0.jpg"',
    ),
    "Breakfast": (
        "Recognize the breakfast type that the person is cooking in the video.",
        WATCHED,
        "scrambledegg",
        "scrambledegg",
    ),
    "NExTQA": (
        CHOOSE,
        f"{WATCHED}a man slices an onion 0\nOptions:\n{OPTIONS}",
        "(E)   a caption with outer blanks\n 4 (4)",
        "(E)   a caption with outer blanks\n 4 (4)",
    ),
    "EgoSchema": (
        CHOOSE,
        f"{WATCHED}Summarise what c does. a man slices an onion 0 {LETTERED}",
        "E.   a caption with outer blanks\n 4 (4).",
        "a caption with outer blanks\n 4 (4)",
    ),
    "Video-MME": (
        CHOOSE,
        f"{WATCHED}What does the person say? a man slices an onion 0\n{BLOCK}",
        "A. a man slices an onion 0 (0).",
        "a man slices an onion 0 (0)",
    ),
    "ActivityNetQA": (
        CHOOSE,
        f"{WATCHED}is the person with a hat wearing trousers? (A) yes; (B) no.",
        "no",
        "no",
    ),
    "DiDeMo": (
        "Find a video that includes the following described scenes.",
        "a man slices an onion 0",
        "12090392@N02_0_78f8",
        WATCHED,
    ),
    "MSR-VTT": (
        "Find a video that contains the following visual content.",
        "a man slices an onion 0",
        "video7020",
        WATCHED,
    ),
    "MSVD": (
        "Find the video snippet that corresponds to the given summary.",
        "a man slices an onion 0",
        "-4wsuPCjDBc_0_15",
        WATCHED,
    ),
    "VATEX": (
        "Select a video that fits the description provided.",
        "a man slices an onion 0",
        "2gpXvKHrOaQ_000000_000010",
        WATCHED,
    ),
    "YouCook2": (
        "Find a video that demonstrates the following action while making a recipe.",
        "a man slices an onion 0",
        "xHr8X2Wpmno_0",
        WATCHED,
    ),
    "Charades-STA": (
        "Find the clip that corresponds to the described scene in the given video.",
        f"{WATCHED}a man slices an onion 0",
        "NUsG9BgSes0_0.0_210.0/positive_1",
        WATCHED,
    ),
    "ViDoSeek-doc": (
        "Find a document image that matches the given query.",
        "Où est la courbe № 0 de 東京?",
        "120",
        SEEN,
    ),
    "VisRAG_ArxivQA": (
        "Find a document image that matches the given query.",
        "Où est la courbe № 0 de 東京?",
        LONG_NAME,
        SEEN,
    ),
}
"""Of a task's first query the system message and the user's; a candidate's key; its user message."""


@pytest.mark.parametrize("name", QWEN3_PROMPTS)
def test_qwen3_prompts(name: str, mirror: MirrorPaths) -> None:
    system, user, key, shown = QWEN3_PROMPTS[name]
    task = load(name, mirror, "qwen3")
    assert qwen3(task.queries[0]) == turns(system, user)
    assert qwen3(candidate(task, key)) == turns(ANYTHING, shown)


def test_momentseekers_three_kinds_of_query(mirror: MirrorPaths) -> None:
    assert [qwen3(query) for query in load("MomentSeeker", mirror, "qwen3").queries[:3]] == [
        turns("Find the clip that corresponds to the given text.", "a man slices an onion 0"),
        turns(
            "Select the video clip that aligns with the given text and image.",
            f"{SEEN}ein Hund läuft über die Straße 1",
        ),
        turns(
            "Find the clip that corresponds to the given sentence and video segment.",
            f"{WATCHED}两只猫在沙发上睡觉 2",
        ),
    ]


def test_captions_keep_their_outer_blanks(tmp_path: Path) -> None:
    query = load("MSVD", build_mirror(tmp_path, ["MSVD"], queries=5), "qwen3").queries[4]
    instruction = "Find the video snippet that corresponds to the given summary."
    assert qwen3(query) == turns(instruction, "  a caption with outer blanks\n 4")


def test_each_caption_is_shown_by_itself_and_without_outer_blanks(tmp_path: Path) -> None:
    candidates = load("WebQA", write_captioned(tmp_path), "qwen3").candidates
    assert [qwen3(item) for item in candidates] == [turns(ANYTHING, SEEN + text) for text in ("a", "", "", "b")]


def test_wordings_are_in_the_table_of_every_task_whose_instruction_is_no_data() -> None:
    """Classification asks the same in both protocols."""
    for task in all_tasks():
        reworded = task.modality == "visdoc" or task.meta_task in ("V-QA", "V-RET", "V-MRET")
        assert bool(task.qwen3_query_instruction) == reworded, task.name
        assert "{text}" not in (task.qwen3_query_instruction or "")
        assert set(task.qwen3_query_instruction_variants) == set(task.query_instruction_variants)
