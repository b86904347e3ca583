"""The outcomes of the suites in this folder, which `make trust` merges into experiments/trust.json."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from twn_lightning.atomic import whole_file


def record(name: str, content: dict[str, Any]) -> None:
    """Write one outcome to `<TRUST_RECORDS>/<name>.json`, over an earlier one of that name.

    Args:
        name: of the fragment, without a folder or suffix.
        content: JSON values. Without the environment variable TRUST_RECORDS nothing is written.
    """
    folder = os.environ.get("TRUST_RECORDS")
    if folder:
        with whole_file(Path(folder) / f"{name}.json") as unfinished:
            unfinished.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
