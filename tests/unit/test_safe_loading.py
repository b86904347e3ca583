"""Nothing that is loaded can run code: weights are plain tensors, arrays hold no objects, no code comes with a model.

Ruff's bandit rules forbid pickle, unsafe YAML, eval, shells and the like; these are the loaders that it does not know.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REQUIRED = {"torch.load": ("weights_only", True)}
"""Calls that must say it."""
FORBIDDEN = {"allow_pickle": (True,), "trust_remote_code": (True,)}
"""Keyword arguments of any call, and the values that none may pass."""
UNSAFE = ("torch.hub.load", "joblib.load", "dill.loads", "cloudpickle.loads", "pandas.read_pickle", "np.fromfile")
"""Calls that read code or unchecked memory."""
AUTO_CLASSES = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor", "AutoImageProcessor")
"""Hugging Face's classes that would import a model's own code if they were allowed to."""


def sources() -> Iterator[tuple[str, str]]:
    """Name and Python code of every file that ships or that documents use."""
    for folder in ("src", "experiments", "docs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path.name, "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def problems(name: str, code: str) -> list[str]:
    """What is unsafe in some code, with the line."""
    found = []
    for call in (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        given = {word.arg: word.value for word in call.keywords if word.arg}
        constants = {word: value.value for word, value in given.items() if isinstance(value, ast.Constant)}
        where = f"{name}:{call.lineno}: {called}"
        if called in REQUIRED:
            word, value = REQUIRED[called]
            if constants.get(word) is not value:
                found.append(f"{where} needs {word}={value}")
        if called in UNSAFE:
            found.append(f"{where} is not allowed")
        if called.partition(".")[0].startswith(AUTO_CLASSES) and called.endswith(".from_pretrained"):
            spread = any(word.arg is None for word in call.keywords)
            if constants.get("trust_remote_code") is not False and not spread:
                found.append(f"{where} needs trust_remote_code=False")
        found += [f"{where} passes {w}={v}" for w, v in constants.items() if v in FORBIDDEN.get(w, ())]
        for values in (node for node in (*call.args, *given.values()) if isinstance(node, ast.Dict)):
            for key, value in zip(values.keys, values.values, strict=True):
                word, passed = getattr(key, "value", None), getattr(value, "value", None)
                if passed in FORBIDDEN.get(word, ()):
                    found.append(f"{where} passes {word}={passed}")
    return found


def test_no_source_loads_code() -> None:
    checked = dict(sources())
    assert len(checked) > 300
    assert [problem for name, code in checked.items() for problem in problems(name, code)] == []


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("torch.load(path)", "needs weights_only=True"),
        ("torch.load(path, weights_only=False)", "needs weights_only=True"),
        ("torch.load(path, weights_only=flag)", "needs weights_only=True"),
        ("np.load(path, allow_pickle=True)", "passes allow_pickle=True"),
        ("AutoModelForCausalLM.from_pretrained(x)", "needs trust_remote_code=False"),
        ("load(x, trust_remote_code=True)", "passes trust_remote_code=True"),
        ("load(x, {'trust_remote_code': True})", "passes trust_remote_code=True"),
        ("joblib.load(x)", "is not allowed"),
    ],
)
def test_unsafe_code_is_found(code: str, problem: str) -> None:
    assert problem in problems("x.py", code)[0]


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=False)",
    ],
)
def test_safe_code_is_not(code: str) -> None:
    assert problems("x.py", code) == []


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("S102", "exec(text)"),
        ("S301", "import pickle\npickle.loads(x)"),
        ("S306", "import tempfile\ntempfile.mktemp()"),
        ("S307", "eval(text)"),
        ("S506", "import yaml\nyaml.load(x, Loader=yaml.Loader)"),
        ("S602", "import subprocess\nsubprocess.run(x, shell=True)"),
        ("S605", "import os\nos.system(x)"),
        ("S202", "import tarfile\ntarfile.open(x).extractall()"),
    ],
)
def test_the_linter_forbids_the_rest(rule: str, code: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", "src/x.py", "--output-format", "concise", "-"]
    done = subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert f" {rule} " in done.stdout
