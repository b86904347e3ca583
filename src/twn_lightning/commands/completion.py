"""`twn completion`: a script that completes verbs, flags and overrides in bash or zsh."""

from __future__ import annotations

import importlib
import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from string import Template

from twn_lightning import config
from twn_lightning.commands import VERBS, parser
from twn_lightning.settings import Settings
from twn_lightning.validation import STAGES, flatten, settings_to_dict

_PASSED_ON = ("bench",)
"""Verbs whose arguments belong to another program."""


class _Script(Template):
    """A template whose placeholders are `@name`: `$` belongs to the shell."""

    delimiter = "@"


_BASH = """# Completion of twn for bash, written by `twn completion bash`; write it again after an update.
_twn_keys='@keys'
_twn_options='@options'

_twn() {
  # The word so far, from the line: bash itself ends a word at each "=".
  local line=${COMP_LINE:0:COMP_POINT} flags='' words
  local current=${line##*[[:space:]]}
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W '@verbs --help --version' -- "$current"))
    return
  fi
  case ${COMP_WORDS[1]} in
@flags
  esac
  words=$flags
  case ${COMP_WORDS[1]} in
    @overriding)
      if [[ $current == *=* ]]; then
        words=$_twn_options
      elif [[ $current != -* ]]; then
        words+=" $_twn_keys"
        compopt -o nospace 2> /dev/null
      fi
      ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
    COMPREPLY=("${COMPREPLY[@@]#"${current%%=*}="}")
  fi
}
complete -o default -F _twn twn
"""

_ZSH = """#compdef twn
# Completion of twn for zsh, written by `twn completion zsh`; write it again after an update.
_twn_keys='@keys'
_twn_options='@options'

_twn() {
  local current=$words[CURRENT] verb=$words[2]
  if ((CURRENT == 2)); then
    compadd -- @verbs --help --version
    return
  fi
  local flags=''
  case $verb in
@flags
  esac
  if [[ $current == -* ]]; then
    compadd -- ${=flags}
    return
  fi
  case $verb in
    @overriding)
      if [[ $current == *=* ]]; then
        compadd -- ${(f)_twn_options}
      else
        compadd -S '' -- ${(f)_twn_keys}
      fi
      ;;
  esac
  _files
}

if [[ $funcstack[1] == _twn ]]; then
  _twn "$@@"
else
  compdef _twn twn
fi
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH}


def main(arguments: list[str]) -> None:
    """Print the script."""
    options = parser(
        "completion",
        "A completion script for a shell, of the verbs, flags and configuration of this version.",
        """twn completion bash > ~/.local/share/bash-completion/completions/twn
        twn completion zsh > ~/.zfunc/_twn    (with fpath+=~/.zfunc before compinit in ~/.zshrc)""",
    )
    options.add_argument("shell", choices=sorted(_SCRIPTS))
    print(completion_script(options.parse_args(arguments).shell), end="")


@dataclass(frozen=True)
class VerbWords:
    """What can follow a verb: its flags, and whether it takes overrides."""

    flags: list[str]
    overrides: bool


def completion_script(shell: str) -> str:
    """The script for a shell: `bash` or `zsh`."""
    verbs = {verb: verb_words(verb) for verb in VERBS if verb not in _PASSED_ON}
    options = {group: names for group, names in config.groups().items() if names}
    return _Script(_SCRIPTS[shell]).substitute(
        verbs=" ".join(VERBS),
        flags="\n".join(f"    {verb}) flags='{' '.join(words.flags)}' ;;" for verb, words in verbs.items()),
        overriding="|".join(verb for verb, words in verbs.items() if words.overrides),
        keys="\n".join(f"{name}=" for name in [*options, *setting_keys()]),
        options="\n".join(f"{group}={name}" for group, names in options.items() for name in names),
    )


def verb_words(verb: str) -> VerbWords:
    """Read the help of a verb."""
    text = io.StringIO()
    try:
        with redirect_stdout(text):
            importlib.import_module(f"twn_lightning.commands.{verb}").main(["--help"])
    except SystemExit:
        pass
    flags = re.findall(r"^  (?:-\w, )?(--[a-z][a-z-]*)", text.getvalue(), re.MULTILINE)
    return VerbWords(list(dict.fromkeys(flags)), "[overrides ...]" in text.getvalue())


def setting_keys() -> list[str]:
    """Every key that a configuration of any stage has."""
    keys = (key for stage in STAGES.values() for key in flatten(settings_to_dict(Settings(stage=stage()))))
    return sorted(set(keys))
