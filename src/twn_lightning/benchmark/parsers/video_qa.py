"""Multiple choice about a video: the options stand in the question, and are the candidates.

Texts are those of the reference evaluators, of VLM2Vec or of Qwen3-VL-Embedding as the protocol says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from string import ascii_uppercase

from twn_lightning.benchmark.context import LoadContext, Row
from twn_lightning.benchmark.parsers.video_files import find_video
from twn_lightning.benchmark.rows import RowBuilder, RowEntry, TaskRows
from twn_lightning.errors import DataError, unknown_name

NEXTQA_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
YES_NO = ("yes", "no")
MVBENCH_FOLDERS = {
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "counterfactual_inference": "clevrer/video_validation",
}
"""MVBench's subsets in the reference's order, and the folder where its release keeps each one's raw videos."""


def videomme(context: LoadContext) -> TaskRows:
    """Video-MME: columns `videoID`, `question`, `options` ("A. ..."), `answer` (a letter).

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            options = row.texts("options")
            right = _position(row, options, _letter_index(row, "answer"))
            text = row.text("question") + "\n" + "\n".join(options)
            video = find_video(context, row, row.identifier("videoID"))
            entry.query(
                text,
                labels=[options[right]],
                media=(video,),
                instruction=_instruction(context),
                id=_id(row, "question_id"),
            )
            _add_stripped(entry, options)
    return rows.finish()


def egoschema(context: LoadContext) -> TaskRows:
    """EgoSchema: columns `video_idx`, `question`, `option` ("A. ..."), `answer` (a position).

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            options = row.texts("option")
            right = _position(row, options, row.integer("answer"))
            between = " " if context.protocol.prompts == "qwen3" else ""
            text = row.text("question") + between + " ".join(options)
            video = find_video(context, row, row.identifier("video_idx"))
            entry.query(
                text,
                labels=[options[right]],
                media=(video,),
                instruction=_instruction(context),
                id=_id(row, "question_idx"),
            )
            _add_stripped(entry, options)
    return rows.finish()


def nextqa(context: LoadContext) -> TaskRows:
    """NExTQA: columns `video`, `question`, `a0` to `a4`, `answer` (a position).

    Candidates are the bare options, although the question shows them lettered; lettered too in the qwen3 protocol.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            options = [row.text(column) for column in NEXTQA_OPTIONS]
            right = options[_position(row, options, row.integer("answer"))]
            candidates = _lettered(options) if context.protocol.prompts == "qwen3" else options
            labels = [candidate for candidate, option in zip(candidates, options, strict=True) if option == right]
            video = find_video(context, row, row.identifier("video"))
            text = _question_with_options(row.text("question"), options)
            labels = list(dict.fromkeys(labels))
            entry.query(text, labels=labels, media=(video,), instruction=_instruction(context))
            for candidate in candidates:
                entry.candidate(candidate, candidate)
    return rows.finish()


def activitynetqa(context: LoadContext) -> TaskRows:
    """ActivityNetQA: columns `video_name`, `question`, `answer` (yes or no); frames in `v_<video_name>`.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for row in context.rows():
        with rows.row(row) as entry:
            answer = row.text("answer")
            if answer not in YES_NO:
                raise DataError(f"{row.where}: {unknown_name('answer', answer, YES_NO)}")
            video = find_video(context, row, f"v_{row.identifier('video_name')}")
            text = row.text("question") + "? (A) yes; (B) no."
            entry.query(
                text, labels=[answer], media=(video,), instruction=_instruction(context), id=_id(row, "question_id")
            )
            for option in YES_NO:
                entry.candidate(option, option)
    return rows.finish()


def mvbench(context: LoadContext) -> TaskRows:
    """MVBench: columns `video` (file name), `question`, `candidates`, `answer` (one of them), in 20 subsets.

    A local mirror may instead hold one file with a column `subset`. Frames lie in `<subset>/<video>`, file extension
    included. The reference shows whole videos, also where rows give a start and an end.

    Raises:
        DataError: a row that cannot be used.
    """
    rows = RowBuilder(context)
    for subset, row in _mvbench_rows(context):
        with rows.row(row) as entry:
            name = row.text("subset") if subset is None else subset
            if name not in MVBENCH_FOLDERS:
                raise DataError(f"{row.where}: {unknown_name('subset', name, MVBENCH_FOLDERS)}")
            options, answer, file = row.texts("candidates"), row.text("answer"), row.text("video")
            candidates = _lettered(options)
            labels = [candidate for candidate, option in zip(candidates, options, strict=True) if option == answer]
            if options and not labels:
                raise DataError(f"{row.where}: the answer '{answer}' is not among the candidates {options}")
            video = find_video(context, row, f"{name}/{file}", f"{name}/{file}", f"{MVBENCH_FOLDERS[name]}/{file}")
            text = _question_with_options(row.text("question"), options)
            own_id = f"{name}/{row.index}"
            entry.query(text, labels=labels, media=(video,), instruction=_instruction(context), id=own_id)
            for candidate in candidates:
                entry.candidate(candidate, candidate)
    return rows.finish()


def _id(row: Row, column: str) -> str | None:
    """The row's own id, which no other row may have; None in a copy of the data that lacks the column."""
    return row.identifier(column) if row.has(column) else None


def _mvbench_rows(context: LoadContext) -> Iterator[tuple[str | None, Row]]:
    """Rows with the subset whose file they come from; None where one file holds them all."""
    subsets = list(MVBENCH_FOLDERS)
    if context.annotations_root is not None:
        folder = context.annotations_root / context.task.hf_repo
        subsets = [name for name in MVBENCH_FOLDERS if (folder / name).is_dir()]
        if not subsets:
            yield from ((None, row) for row in context.rows())
            return
        missing = [name for name in MVBENCH_FOLDERS if name not in subsets]
        if missing:
            context.warn(f"{len(missing)} of {len(MVBENCH_FOLDERS)} subsets are not in {folder}: {', '.join(missing)}")
    for subset in subsets:
        for row in context.rows(context.records(subset=subset)):
            yield subset, row


def _position(row: Row, options: Sequence[str], index: int) -> int:
    if not options:
        raise DataError(f"{row.where}: the list of options is empty; a query needs candidates to rank")
    if not 0 <= index < len(options):
        raise DataError(
            f"{row.where}: the answer {row.value('answer')!r} points outside the {len(options)} options "
            f"(positions 0 to {len(options) - 1})"
        )
    return index


def _letter_index(row: Row, column: str) -> int:
    letter = row.text(column)
    if len(letter) != 1 or letter not in ascii_uppercase:
        raise DataError(f"{row.where}: column '{column}' must be the letter of an option (A, B, ...), got {letter!r}")
    return ascii_uppercase.index(letter)


def _instruction(context: LoadContext) -> str:
    """The query instruction; VLM2Vec's ends in a blank of its own, so that two stand before the question."""
    return context.query_instruction + ("" if context.protocol.prompts == "qwen3" else " ")


def _add_stripped(entry: RowEntry, options: Sequence[str]) -> None:
    """Options "A. a red bird." as candidates "a red bird" under the full option as key.

    An option stays whole where nothing would be left of it; VLM2Vec takes its last character if there is no ". ".
    """
    for option in options:
        entry.candidate(option, option.partition(". ")[2].strip(". ") or option)


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"({chr(ord('A') + position)}) {option}" for position, option in enumerate(options)]


def _question_with_options(question: str, options: Sequence[str]) -> str:
    return "\n".join([question, "Options:", *_lettered(options)]).rstrip()
