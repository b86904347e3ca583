"""Secrets in text: tokens, keys and passwords, told by their shape or because the environment holds them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

HIDDEN = "[hidden]"

_SHAPES = {
    "credentials in an address": r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)",
    "a signature or token in an address": (
        r"(?<=[?&])(?:access_|api_|auth_)?(?:token|key|sig|signature|secret|password)=[^&\s'\"]+"
        r"|(?<=[?&])X-Amz-(?:Signature|Credential|Security-Token)=[^&\s'\"]+"
    ),
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a Weights & Biases key": r"\bwandb_v\d+_[A-Za-z0-9_]{40,}",
    "an API key": r"\bsk-(?=[A-Za-z0-9_-]*\d)(?=[A-Za-z0-9_-]*[A-Z])[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{20,}",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{20,}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{30,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
}
"""What a secret looks like, by what to call it."""
_PATTERNS = {what: re.compile(shape) for what, shape in _SHAPES.items()}
_PERHAPS = re.compile(r"(?<=[Bb]earer )[A-Za-z0-9._~+/-]{8,}=*|(?:(?<=http://)|(?<=https://))[^\s/@:]+(?=@)")
"""What may be a token or an everyday word: hidden, but no reason to refuse a configuration."""
_NAME = re.compile(
    r"(?:^|[^a-z])(?:token|secret|password|passwd|(?:api|access|secret|private)[_-]?key(?:[_-]id)?)$", re.IGNORECASE
)
"""Names of environment variables and flags whose values are secrets, such as HF_TOKEN and AWS_SECRET_ACCESS_KEY."""
_SHORTEST = 8
"""Characters of a variable's value that is looked for: a shorter one may be an everyday word."""


def secret_kind(text: str, variables: Mapping[str, str] = os.environ) -> str | None:
    """What kind of secret a text holds.

    Args:
        text: any text.
        variables: the environment, whose tokens are secrets wherever they turn up.

    Returns:
        Such as "a GitHub token" or "the value of HF_TOKEN"; None where none is found.
    """
    for name, value in _environment_secrets(variables):
        if value in text and _is_unmistakable(value):
            return f"the value of {name}"
    return next((what for what, pattern in _PATTERNS.items() if pattern.search(text)), None)


def redact(text: str, variables: Mapping[str, str] = os.environ) -> str:
    """The text with `[hidden]` in the place of each secret, and of what may be one."""
    for _, value in _environment_secrets(variables):
        text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS.values():
        text = pattern.sub(HIDDEN, text)
    return _PERHAPS.sub(HIDDEN, text)


def redact_command(words: Sequence[str]) -> list[str]:
    """A command line whose words are redacted; so are the values of flags named like a secret, whatever they hold."""
    shown, follows_flag = [], False
    for word in words:
        name, equals, _ = word.partition("=")
        if follows_flag and not word.startswith("-"):
            shown.append(HIDDEN)
        elif equals and _NAME.search(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(redact(word))
        follows_flag = word.startswith("-") and not equals and _NAME.search(word) is not None
    return shown


def _environment_secrets(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names and values of the variables that hold secrets, the longest value first: one may contain another."""
    found = ((name, value) for name, value in variables.items() if _NAME.search(name) and len(value) >= _SHORTEST)
    return iter(sorted(found, key=lambda entry: -len(entry[1])))


def _is_unmistakable(value: str) -> bool:
    """Whether a value is a secret wherever it turns up, rather than a word or a folder that a path may hold, too."""
    mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    return len(value) >= 12 and "/" not in value and (mixed or " " in value)
