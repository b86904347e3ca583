"""`twn inspect`: a page on this machine that shows a run's decisions and answers questions with its model."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from twn_lightning.commands import parser
from twn_lightning.commands.encoder_flags import device_of
from twn_lightning.errors import ConfigError
from twn_lightning.live.limits import Limits
from twn_lightning.live.model import load_run_model
from twn_lightning.live.page import look_page
from twn_lightning.live.server import LookServer
from twn_lightning.reporting import load_report, load_run
from twn_lightning.reporting.read import SUMMARY_FILE


def main(arguments: list[str]) -> None:
    """Load the run's model, serve the page until Ctrl-C."""
    options = parser(
        "inspect",
        "Look at a run: browse its decisions, and ask its model about a picture, a video or a text: p(think), the CoT, "
        "and the neighbours among the run's candidates without and with it. The page is served on this machine only.",
        """twn inspect outputs/evaluate/run/RUN
        twn inspect outputs/gate/nano_gate/RUN --port 8765 --no-browser
        twn inspect RUN --device cpu --candidates 20000""",
    )
    options.add_argument("run", type=Path, help="a run folder of an evaluation, or of a training with adapters")
    options.add_argument("--port", type=int, default=0, help="default: a free one")
    options.add_argument("--no-browser", action="store_true", help="print the address only")
    options.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    options.add_argument("--candidates", type=int, default=5000, help="most candidates to encode (default 5,000)")
    chosen = options.parse_args(arguments)
    if not 0 <= chosen.port < 65536:
        raise ConfigError(f"--port must be between 0 and 65535, it is {chosen.port}")
    if chosen.candidates < 1:
        raise ConfigError(f"--candidates must be at least 1, it is {chosen.candidates}")
    device = device_of(chosen.device)
    run = load_run(chosen.run)
    data = load_report([chosen.run]) if (chosen.run / SUMMARY_FILE).is_file() else None
    print("loading the model and its candidates ...", flush=True)
    limits = Limits()
    model = load_run_model(chosen.run, device, limit=chosen.candidates, limits=limits)
    try:
        page, policy = look_page(model, run, data)
        server = LookServer(page, policy, model.answer, list(model.corpus.rows), chosen.port, limits)
    except OSError as error:
        raise ConfigError(
            f"--port {chosen.port} cannot be used ({error.strerror}): name another one, or leave it out"
        ) from error
    _serve(server, open_browser=not chosen.no_browser)


def _serve(server: LookServer, *, open_browser: bool) -> None:
    print(f"{server.address}\nCtrl-C ends it.", flush=True)
    if open_browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nstopped")
    finally:
        server.server_close()
