"""`twn verify`: score files computed again and compared."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.commands import parser
from twn_lightning.verify import TOLERANCE, verify


def main(arguments: list[str]) -> int:
    """Repeat each file and print what differs.

    Returns:
        0 where every number is confirmed, else 1.
    """
    options = parser(
        "verify",
        "Compute score files again, from the settings and adapters that they name and without the embedding cache, and "
        "compare every number. Exit code 1 if one differs.",
        """twn verify RUN/eval/mmeb_nano/KEY/NanoVideoCLS/scores.json
        twn verify RUN/eval/mmeb_v2/KEY/N24News --adapters outputs/gate/nano_gate/RUN/adapters
        twn verify RUN/eval/nano/KEY/*/scores.json --tolerance 1e-4""",
    )
    options.add_argument("scores", nargs="+", type=Path, metavar="SCORES.json", help="score files of tasks")
    options.add_argument("--adapters", metavar="FOLDER", help="where the adapters are now, if they have moved")
    options.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="largest difference that counts as none (%(default)s)"
    )
    chosen = options.parse_intermixed_args(arguments)
    confirmed = True
    for path in chosen.scores:
        found = verify(path, adapters=chosen.adapters, tolerance=chosen.tolerance)
        confirmed &= not found.differences
        print(f"{found.task}: {f'values that differ: {len(found.differences)}' if found.differences else 'confirmed'}")
        for line in found.differences:
            print(f"  {line}")
        if found.differences and found.versions:
            print(f"  other versions: {'; '.join(found.versions)}")
    return 0 if confirmed else 1
