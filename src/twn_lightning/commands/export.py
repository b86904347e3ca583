"""`twn export`: trained adapters as a folder for others, with a model card; and onto the Hub."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.commands import parser
from twn_lightning.interop.export import export_model, push_to_hub


def main(arguments: list[str]) -> None:
    """Write the folder, push it where asked to, say what was written."""
    options = parser(
        "export",
        "Trained adapters in the released layout, with a model card: for TWNEncoder.from_pretrained and "
        "sentence-transformers, here or on the Hugging Face Hub.",
        """twn export outputs/gate/nano_gate/RUN --to exports/mine
        twn export RUN --to exports/mine --evaluation outputs/evaluate/nano/RUN --license mit
        twn export RUN --to exports/mine --mode generative --overwrite
        twn export RUN --to exports/mine --push owner/name --private""",
    )
    options.add_argument("run", help="a run folder, a folder of adapters, or a packaged backbone: its own")
    options.add_argument("--to", required=True, type=Path, help="the folder to write")
    options.add_argument("--evaluation", type=Path, help="the run of `twn evaluate` whose numbers the card gives")
    options.add_argument(
        "--mode", help="of queries in sentence-transformers (default: adaptive with a gate, else discriminative)"
    )
    options.add_argument("--document-mode", help="of documents (default discriminative)")
    options.add_argument("--license", default="apache-2.0", help="of the adapters (default apache-2.0)")
    options.add_argument("--push", metavar="OWNER/NAME", help="also upload it to this repository on the Hub")
    options.add_argument("--private", action="store_true", help="of a repository that --push makes")
    options.add_argument("--overwrite", action="store_true", help="replace an earlier export")
    chosen = options.parse_args(arguments)
    folder = export_model(
        chosen.run,
        chosen.to.expanduser(),
        name=chosen.push,
        evaluation=chosen.evaluation,
        mode=chosen.mode,
        document_mode=chosen.document_mode,
        licence=chosen.license,
        overwrite=chosen.overwrite,
    )
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    if chosen.push is not None:
        print(push_to_hub(folder, chosen.push, private=chosen.private))
