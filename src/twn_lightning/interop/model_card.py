"""The model card of an export: what it is, how to use it, what it was trained on, what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from twn_lightning.backbone.layout import GATE_FILE, read_config
from twn_lightning.backbone.loading import HUB_IDS, model_of
from twn_lightning.backbone.packaged import PACKAGED
from twn_lightning.interop.training_record import StageRecord

_CARD = """\
---
{header}---

# {name}

Think-When-Needed embeddings of text, images and videos: two LoRA adapters on a frozen {backbone}.
`reasoning` writes a chain of thought, `embedding` reads what it has understood{gate}.
Trained with twn_lightning, an independent reconstruction of [arXiv 2605.14448](https://arxiv.org/abs/2605.14448); these
are not the authors' weights.

## Use

```python
from twn_lightning import TWNEncoder

encoder = TWNEncoder.from_pretrained("{name}")
out = encoder.encode(["a text", image, {{"text": "which one?", "image": image}}])
out.embeddings, out.think, out.cot, out.tokens
```

With sentence-transformers and `pip install 'twn_lightning[interop]'`; the class is the installed package's, no code
comes with these files:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{name}", trust_remote_code=True)
queries, documents = model.encode_query(["a text"]), model.encode_document([image])
```

## Results

{results}

## Training

{training}

## Details

| | |
| --- | --- |
{details}

Chains of thought are generated: they may be wrong even where the embedding is right. The data's own licences apply to
what was learned from it.
"""


def model_card(
    name: str,
    *,
    adapters: Path,
    stages: Sequence[StageRecord],
    evaluation: dict[str, Any] | None,
    licence: str,
) -> str:
    """The README.md of an export.

    Args:
        name: what users load: a folder's name, or `owner/name` on the Hub.
        adapters: the folder of adapters that is exported.
        stages: the stages that were trained.
        evaluation: the content of an evaluation's summary.json.
        licence: an identifier of the Hub.
    """
    backbone = model_of(adapters).name
    return _CARD.format(
        header=_header(backbone, licence),
        name=name,
        backbone=_backbone_name(backbone),
        gate=", and a gate decides for each input whether to think" if _has_gate(adapters) else "",
        results=_results(evaluation),
        training=_training(stages),
        details="\n".join(f"| {key} | {value} |" for key, value in _details(adapters, evaluation).items()),
    )


def _backbone_name(name: str) -> str:
    if name in PACKAGED:
        return f"`{name}` (a small backbone that comes with twn_lightning)"
    return HUB_IDS.get(name, f"`{name}`")


def _has_gate(adapters: Path) -> bool:
    return (adapters / GATE_FILE).is_file()


def _header(backbone: str, licence: str) -> str:
    """The front matter that the Hub reads."""
    values: dict[str, Any] = {
        "license": licence,
        "library_name": "sentence-transformers",
        "pipeline_tag": "feature-extraction",
        "tags": ["sentence-transformers", "feature-extraction", "multimodal", "think-when-needed", "lora"],
    }
    if backbone in HUB_IDS:
        values["base_model"] = HUB_IDS[backbone]
    return yaml.safe_dump(values, sort_keys=False)


def _results(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return "Not evaluated. `twn evaluate adapters.init_from=RUN`, then export again with `--evaluation`."
    rows = [
        f"| {name} | {100 * score['hit@1']:.1f} | {100 * score['ci95'][0]:.1f} to {100 * score['ci95'][1]:.1f} "
        f"| {score['tokens_per_query']:.1f} | {_percent(score.get('think_rate'))} |"
        for name, score in summary["modes"].items()
    ]
    lines = [
        f"{summary['num_queries']:,} held-out queries of {summary['suite']}, 95 % bootstrap intervals over queries.",
        "`never` and `always` never and always think, `adaptive` asks the gate, `oracle` knows the outcome.",
        "",
        "| router | hit@1, % | 95 % interval | CoT tokens a query | think rate |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    if "paired" in summary:
        difference, (low, high) = summary["paired"]["difference"], summary["paired"]["ci95"]
        lines += [
            "",
            f"Adaptive minus always on the same queries: {100 * difference:+.1f} points ({100 * low:+.1f} to "
            f"{100 * high:+.1f}).",
        ]
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _training(stages: Sequence[StageRecord]) -> str:
    if not stages:
        return "The run folders of the training were not at hand when this was exported."
    rows = [f"| {stage.name} | {stage.data} | {stage.headline} |" for stage in stages]
    commands = "\n".join(stage.command for stage in stages)
    table = ["| stage | data | on validation pairs |", "| --- | --- | --- |", *rows]
    return "\n".join([*table, "", "```", commands, "```"])


def _details(adapters: Path, summary: dict[str, Any] | None) -> dict[str, str]:
    config = read_config(adapters)
    settings, backbone = config["adapters"], model_of(adapters).name
    found = {
        "backbone": f"{_backbone_name(backbone)}, frozen",
        "digest of its weights": f"`{config['backbone']['digest'] or 'unknown'}`",
        "LoRA `reasoning`": f"r {settings['reasoning']['r']}, alpha {settings['reasoning']['alpha']}",
        "LoRA `embedding`": f"r {settings['embedding']['r']}, alpha {settings['embedding']['alpha']}",
        "learnable queries": str(settings["num_queries"]),
        "interface": f"`{config['interface']}`",
    }
    if settings["arrangement"] == "shared":
        found["arrangement"] = "one LoRA in both roles, at the sum of the ranks"
    ratio = ((summary or {}).get("added_parameter_ratio") or {}).get(backbone)
    if ratio is not None:
        found["added parameters"] = f"{100 * ratio:.1f} % of the language model"
    if _has_gate(adapters):
        found["thinks where the gate's probability is above"] = f"{config.get('gate_threshold', 0.5):.3f}"
    if dims := config.get("matryoshka_dims"):
        found["embeddings may be cut to"] = ", ".join(map(str, dims))
    return found
