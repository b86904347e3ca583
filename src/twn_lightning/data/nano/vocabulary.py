"""The packaged backbones' word-level tokenizer: every word of the world is one token; Qwen3-VL's special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from twn_lightning.backbone.processor import PROMPT_SUFFIX
from twn_lightning.backbone.tiny import CHAT_TEMPLATE, SPECIAL
from twn_lightning.data.nano import tasks, world
from twn_lightning.data.nano.digits import ARROWS, COLOURS
from twn_lightning.data.nano.ingredients import heading_words, icon_labels
from twn_lightning.data.nano.questions import NAMED_SHADES, VIDEO_GRID

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
PHRASES = (
    *world.INSTRUCTIONS.values(),
    world.ANSWER,
    world.PICTURE,
    world.DESCRIBE,
    PROMPT_SUFFIX,
    "user assistant system start follow until you leave at sum of row largest in grid path total best a b c",
    *tasks.INSTRUCTIONS.values(),
    *tasks.TARGET_INSTRUCTIONS.values(),
    "one cell picture with colour and number text says heading nothing to add follow plus in shade twin twins",
    *NAMED_SHADES,
    "d e f g h A B C D",
    "<0.2 seconds> <1.2 seconds> <2.2 seconds> <3.2 seconds>",
    tasks.DESCRIBE_VIDEO,
    tasks.DESCRIBE_PAGE,
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer over the world's words; unknown words become `<unk>`."""
    numbers = [str(n) for n in range(9 * VIDEO_GRID[1] + 1)]
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.,:?!]"), behavior="isolated")]
    )
    plain = " ".join(PHRASES)
    for tag in TAGS:
        plain = plain.replace(tag, " ")
    words = [word for word, _ in split.pre_tokenize_str(plain)]
    names = (*world.CELLS, *world.cell_names(VIDEO_GRID), *icon_labels(), *heading_words())
    ordered = dict.fromkeys(
        [*SPECIAL, "<unk>", *TAGS, *numbers, *COLOURS, *ARROWS, *names, *words, ".", ",", ":", "?", "!"]
    )
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(ordered)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", unk_token="<unk>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
