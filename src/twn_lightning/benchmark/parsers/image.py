"""The 36 image tasks: one table, five ways of reading it. In every row the first candidate is the right one.

Instructions are columns of the data. Image paths are relative to the folder all image tasks share. In the vlm2vec
protocol items keep the white space of VLM2Vec's prompts, line breaks included; in qwen3 they hold the bare columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.benchmark.rows import MediaOf, RowBuilder, TaskRows
from twn_lightning.errors import DataError
from twn_lightning.types import Media

EXTRA_BREAK = ("VisDial",)
"""Tasks whose queries end in two line breaks."""

_PLACEHOLDER = "<|image_1|>"


def image_cls(context: LoadContext) -> TaskRows:
    """Image (and caption) to a label: columns qry_inst, qry_text, qry_img_path, tgt_text.

    Returns:
        Queries with the row's labels as candidates; a candidate's key is its text.

    Raises:
        DataError: a row that is not in the schema, or whose image is missing.
    """
    return _to_text(context)


def image_qa(context: LoadContext) -> TaskRows:
    """Image and question to an answer; columns and errors as `image_cls`."""
    return _to_text(context, on_new_line=True)


def image_i2t(context: LoadContext) -> TaskRows:
    """Image to a caption; columns and errors as `image_cls`."""
    return _to_text(context)


def image_t2i(context: LoadContext) -> TaskRows:
    """Text to an image, with a caption in WebQA and EDIS: columns qry_inst, qry_text, tgt_inst, tgt_text, tgt_img_path.

    A candidate's key is its image path: of an image that comes with two captions, the first counts, as in the
    reference. The image placeholder in these two tasks' query instruction is dropped: there is no image.

    Raises:
        DataError: as `image_cls`.
    """
    return _to_image(context, from_image=False)


def image_i2i_vg(context: LoadContext) -> TaskRows:
    """Image and text to an image, a crop, or an image with a caption: columns of `image_cls` and `image_t2i`.

    A candidate's key is `path:caption`: in RefCOCO-Matching one image holds several objects.

    Raises:
        DataError: as `image_cls`.
    """
    return _to_image(context, from_image=True)


def _to_text(context: LoadContext, on_new_line: bool = False) -> TaskRows:
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            answers = row.texts("tgt_text")
            instruction, text = _asked_of_image(context, row, on_new_line)
            image = _image(context, row.text("qry_img_path"), row)
            entry.query(text, answers[:1], media=image, instruction=instruction)
            entry.candidates(answers, partial(_written, answers))
    return rows.finish()


def _to_image(context: LoadContext, from_image: bool) -> TaskRows:
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            paths = row.texts("tgt_img_path")
            captions = _captions(row, len(paths))
            keys = paths
            if from_image:
                keys = [path + ":" + text.strip('"') for path, text in zip(paths, captions, strict=True)]
            instruction, text = _asked_of_image(context, row, True) if from_image else _asked(context, row)
            media = _image(context, row.text("qry_img_path"), row) if from_image else ()
            entry.query(text, keys[:1], media=media, instruction=instruction)
            shown = partial(_shown, context, _instruction(row, "tgt_inst"), captions, from_image)
            entry.candidates(keys, partial(_pictured, context, row, paths, shown))
    return rows.finish()


def _asked(context: LoadContext, row: Row) -> tuple[str, str]:
    """Instruction and text of a query without an image."""
    instruction, text = _instruction(row, "qry_inst"), _own_text(row)
    if context.protocol.prompts == "qwen3":
        return instruction.strip(), text
    return instruction, text + ("\n\n" if context.task.name in EXTRA_BREAK else "\n")


def _asked_of_image(context: LoadContext, row: Row, on_new_line: bool) -> tuple[str, str]:
    """Instruction and text of a query with an image."""
    instruction, text = _instruction(row, "qry_inst"), _own_text(row)
    if context.protocol.prompts == "qwen3":
        return instruction.strip(), text
    return _behind_image("\n" + instruction.strip() if on_new_line else instruction, text)


def _written(answers: list[str], position: int) -> tuple[str, MediaOf, str]:
    """Text, no media and no instruction of one of a row's answers."""
    return answers[position], (), ""


def _pictured(
    context: LoadContext, row: Row, paths: list[str], shown: Callable[[int], tuple[str, str]], position: int
) -> tuple[str, MediaOf, str]:
    """Text, image and instruction of one of a row's images."""
    instruction, text = shown(position)
    return text, partial(_image, context, paths[position], row), instruction


def _shown(
    context: LoadContext, instruction: str, captions: list[str], from_image: bool, position: int
) -> tuple[str, str]:
    """Instruction and text of a candidate; VLM2Vec shows captions only where a row's first one is not blank."""
    text, with_captions = captions[position], bool(captions[0].strip())
    if context.protocol.prompts == "qwen3":
        return "", (text if with_captions else "") if from_image else text.strip()
    if not with_captions:
        return _behind_image(instruction, "", end="" if from_image else "\n")
    return _behind_image(instruction, text) if text else _behind_image(f"{instruction} ", "")


def _behind_image(instruction: str, text: str, end: str = "\n") -> tuple[str, str]:
    """Instruction and text as VLM2Vec has them behind an image token and a blank.

    A blank before a line break is dropped, the token's own and the one between the two included; the break that `end`
    adds comes after that. What begins with white space is all that follows the token, other text follows its blank.
    """
    if text and (not instruction or text[0] == "\n"):  # the blank between the two is dropped, or is the first one
        instruction, text = f"{instruction} {text}", ""
    body = f" {instruction}".replace(" \n", "\n") + ("" if text else end)
    if body[0] == " " and body[1:2].strip():
        body = body[1:]
    return body, text and text.replace(" \n", "\n") + end


def _instruction(row: Row, column: str) -> str:
    """An instruction without its image placeholder."""
    return row.text(column).replace(_PLACEHOLDER, "")


def _own_text(row: Row) -> str:
    """The query's text; tasks whose query is an image alone may leave it null."""
    return row.text("qry_text") if row.value("qry_text") is not None else ""


def _captions(row: Row, count: int) -> list[str]:
    """The captions of a row's images; none at all is that many empty ones."""
    captions = row.texts("tgt_text") if row.has("tgt_text") else []
    if captions and len(captions) != count:
        raise DataError(f"{row.where}: {len(captions)} texts in tgt_text but {count} paths in tgt_img_path")
    return captions or [""] * count


def _image(context: LoadContext, path: str, row: Row) -> tuple[Media, ...]:
    return (context.media.image(path, row.where),)
