"""`twn annotate`: chains of thought for a user's own pairs, by any local Hugging Face teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twn_lightning.backbone.teacher import HuggingFaceTeacher, TeacherSettings
from twn_lightning.commands import parser
from twn_lightning.commands.encoder_flags import device_of, progress_bar
from twn_lightning.data.annotate import AnnotateSettings, annotate
from twn_lightning.data.pair_rows import PairRows


def main(arguments: list[str]) -> None:
    """Annotate, and print what was kept, what was dropped and why."""
    options = parser(
        "annotate",
        "Chains of thought for your own pairs, one side at a time: the teacher never sees the other. An interrupted "
        "run goes on when started again.",
        """twn annotate pairs.jsonl --teacher Qwen/Qwen3-VL-8B-Instruct --output annotated
        twn annotate pairs.parquet --root media --teacher models/teacher --side both --retries 3 --output annotated
        twn train experiment=qwen3vl_4b_sft data.source=pairs data.annotations_root=annotated""",
    )
    options.add_argument("pairs", help="a .jsonl or .parquet file: rows with query, positive and perhaps key, neg")
    options.add_argument("--teacher", required=True, help="an image-text-to-text model: a local folder or a hub id")
    options.add_argument("--revision", help="the teacher's revision on the hub")
    options.add_argument("--output", required=True, help="the folder to write")
    options.add_argument("--root", help="what media paths are relative to (default: the file's folder)")
    options.add_argument("--side", default="query", help="query, positive or both (default query)")
    options.add_argument("--max-cot-tokens", type=int, default=384, help="longest CoT to keep (default 384)")
    options.add_argument("--max-new-tokens", type=int, default=512, help="longest text to generate (default 512)")
    options.add_argument(
        "--retries", type=int, default=0, help="further attempts, sampled, per refused CoT (default 0)"
    )
    options.add_argument("--temperature", type=float, default=0.7, help="of the retries (default 0.7)")
    options.add_argument("--batch-size", type=int, default=8, help="rows generated and written together (default 8)")
    options.add_argument("--seed", type=int, default=0, help="of the retries (default 0)")
    options.add_argument("--max-frames", type=int, default=8, help="frames shown of a video (default 8)")
    options.add_argument("--max-pixels", type=int, help="pixels of an image or a frame, at most (Qwen3-VL teachers)")
    options.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"])
    options.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    options.add_argument("--on-error", default="raise", choices=["raise", "skip"], help="skip counts and lists")
    options.add_argument("--overwrite", action="store_true", help="replace what is there")
    chosen = options.parse_args(arguments)
    settings = AnnotateSettings(
        side=chosen.side,
        max_cot_tokens=chosen.max_cot_tokens,
        retries=chosen.retries,
        temperature=chosen.temperature,
        batch_size=chosen.batch_size,
        seed=chosen.seed,
        on_error=chosen.on_error,
    )
    root = None if chosen.root is None else Path(chosen.root).expanduser()
    pairs = PairRows(Path(chosen.pairs).expanduser(), root, chosen.max_frames)
    teacher = HuggingFaceTeacher(
        TeacherSettings(
            chosen.teacher,
            chosen.revision,
            chosen.dtype,
            device_of(chosen.device),
            chosen.max_new_tokens,
            chosen.max_frames,
            chosen.max_pixels,
        )
    )
    output = Path(chosen.output).expanduser()
    with progress_bar() as progress:
        bar = progress.add_task("pairs", total=len(pairs))
        record = annotate(
            teacher,
            pairs,
            output,
            settings,
            overwrite=chosen.overwrite,
            progress=lambda done: progress.advance(bar, done),
        )
    _report(record, output)


def _report(record: dict[str, Any], output: Path) -> None:
    table = Table(title="Pairs", title_justify="left")
    table.add_column("what")
    table.add_column("number", justify="right")
    for name, count in record["counts"].items():
        table.add_row(name, str(count))
    for reason, count in sorted(record["dropped"].items(), key=lambda entry: (-entry[1], entry[0])):
        table.add_row(Text(f"dropped: {reason}"), str(count))
    Console().print(table)
    print(f"results: {output}")
