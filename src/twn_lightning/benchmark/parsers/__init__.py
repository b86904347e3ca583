"""One function for each of the 21 schemas that MMEB-V2's annotations come in, found by the task's `parser`."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from twn_lightning.benchmark.context import LoadContext
from twn_lightning.benchmark.rows import TaskRows
from twn_lightning.errors import ConfigError, unknown_name

Parser = Callable[[LoadContext], TaskRows]

_MODULES = {
    "image": ("image_cls", "image_qa", "image_i2t", "image_t2i", "image_i2i_vg"),
    "video_classification": ("ssv2", "video_classification"),
    "video_qa": ("videomme", "nextqa", "egoschema", "mvbench", "activitynetqa"),
    "video_retrieval": ("msrvtt", "msvd", "didemo", "youcook2", "vatex"),
    "moment_retrieval": ("moment_retrieval", "momentseeker"),
    "visdoc": ("vidore", "visrag"),
}
PARSERS = {name: f"{__name__}.{module}:{name}" for module, names in _MODULES.items() for name in names}
"""Where the parsers are; a module is imported when one of its parsers is asked for."""


def get_parser(name: str) -> Parser:
    """The parser of that name.

    Raises:
        ConfigError: unknown name; lists what exists with the nearest match.
    """
    if name not in PARSERS:
        raise ConfigError(unknown_name("parser", name, PARSERS))
    module, _, function = PARSERS[name].partition(":")
    parser: Parser = getattr(importlib.import_module(module), function)
    return parser
