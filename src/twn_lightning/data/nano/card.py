"""The model card that comes with an exported backbone of the offline world."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twn_lightning.data.nano.backbones import SHAPES

_CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---

# {size}: a small trained backbone for twn_lightning

A Qwen3-VL-architecture model of {parameters:,} parameters ({layers} layers of {hidden}, a vision tower of
{vision_layers} layers of {vision_hidden}, {words} words), in standard Hugging Face format, for tests, for studies in
miniature and for learning Think When Needed. It knows nothing but its own worlds.

**Worlds.** The demo's: 3 x 3 grids whose cells have a colour, a handwritten digit and an arrow. MMEB-nano
(docs/mmeb_nano.md): the same grids, videos of 8 frames, pages, emoji, texts. `twn preview` and
`twn preview data=mmeb_nano` show rows. Digits, emoji and typefaces are packaged with the backbone `nano`; their sources
and licences (some CC BY and CC BY-SA) are in its INGREDIENTS.md. No digit image, drawing or typeface is in two of the
splits train / rl / gate / calibration / val / test.

**Pretraining**, on the train split's ingredients only. A step is a batch of captions and CoTs of at most 3 steps, half
and half, and a batch of single cells; AdamW, constant learning rate, linear fall over the last quarter. Weights are
stored in fp16. Commands, logs and what was tried: `experiments/nano_backbone`.

| curriculum | steps | captions and CoTs a step | single cells a step | learning rate | seconds | on |
| --- | ---: | ---: | ---: | ---: | ---: | --- |
{runs}

**Validation**, {rows} rows each, teacher-forced, on ingredients unseen in training (`pretraining.json`). `caption`:
share of right tokens; `cot`: share of CoTs right to the last token, for 0 to 8 steps on a grid, row sums, largest
digits, and the tasks of MMEB-nano with at most 3 steps.

| measured | share |
| --- | ---: |
{scores}

**Adapters.** Both sizes take the same (`adapters=dual_nano`: `reasoning` r 16, `embedding` r 32, 8 queries). Train them
with `twn train experiment=mmeb_nano_sft model={size}`, then the gate with
`twn train experiment=mmeb_nano_gate model={size} adapters.init_from=RUN`, where RUN is the first one's run folder.
"""


def backbone_card(record: Mapping[str, Any], words: int) -> str:
    """The README.md of an exported backbone.

    Args:
        record: what `pretraining.json` holds: settings, `parameters`, `seconds`, `machine`, `validation`,
            `validation_rows`, and under `initialised_from` the same of the run before it.
        words: size of the vocabulary.
    """
    shape = SHAPES[record["size"]]
    runs = [record]
    while earlier := runs[0].get("initialised_from"):
        runs.insert(0, earlier)
    scores = [f"| {name.replace('_', ' ')} | {share:.3f} |" for name, share in record["validation"].items()]
    return _CARD.format(
        size=record["size"],
        parameters=record["parameters"],
        layers=shape.layers,
        hidden=shape.hidden,
        vision_layers=shape.vision_layers,
        vision_hidden=shape.vision_hidden,
        words=words,
        rows=record["validation_rows"],
        runs="\n".join(map(_run, runs)),
        scores="\n".join(scores),
    )


def _run(record: Mapping[str, Any]) -> str:
    cells = [
        record["curriculum"],
        f"{record['steps']:,}",
        record["batch_size"],
        record["picture_rows"],
        record["learning_rate"],
        f"{record['seconds']:,}",
        record["machine"],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"
