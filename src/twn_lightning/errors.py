"""Errors with a message for people: the command line prints them without a traceback.

Each message says what is wrong, why, the numbers, and what to set instead. `TWN_DEBUG=1` brings the traceback back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TWNError(Exception):
    """Anything the user can put right."""


class ConfigError(TWNError):
    """One or more problems with a configuration, reported together."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        if len(self.problems) == 1:
            message = self.problems[0]
        else:
            message = f"{len(self.problems)} problems in the configuration:" + "".join(
                f"\n  - {problem}" for problem in self.problems
            )
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.problems,)


class DataError(TWNError):
    """A dataset, a row or a media file that cannot be used."""


class CheckpointError(TWNError):
    """A checkpoint or a run folder that does not fit what is asked of it."""


class AdapterError(TWNError):
    """An adapter folder that is missing, incomplete, or made for another backbone."""


class NumericalError(TWNError):
    """A loss or a gradient that is not finite."""


class StorageError(TWNError):
    """A file for which there is no room."""


class LostProcessError(TWNError):
    """A process that the run needs is gone: another rank, or one that reads data."""


class CheckError(TWNError):
    """Something that would have gone wrong without an error: what a check of `twn doctor --checks` found."""


class RolloutError(TWNError):
    """Completions that an engine cannot sample, or that do not come from the policy that trains."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: the nearest match, whatever its case, then everything there is.

    Args:
        what: the kind of thing, as in "config key" or "source".
        name: what was asked for.
        known: what there is.

    Returns:
        A message such as `unknown source 'nan': did you mean 'nano'? There are: nano, tiny`.
    """
    names = sorted(known)
    folded = {known_name.casefold(): known_name for known_name in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f": did you mean {folded[near[0]]!r}?" if near else "."
    return f"unknown {what} {name!r}{hint} There are: {', '.join(names) or 'none'}"
