"""`twn inspect` on a real run: its answers are the encoder's, over HTTP and in a real browser; nothing hostile runs."""

from __future__ import annotations

import base64
import http.client
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.support.browser import Browser, browser, needs_browser
from tests.support.tiny_adapters import random_backbone, save_undecided_adapters
from tests.unit.live.test_question import video_bytes
from twn_lightning import cli
from twn_lightning.data.sources import get_source
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encoders.twn import AdaptiveEncoder, load_trained
from twn_lightning.gate.routing_gate import RoutingGate
from twn_lightning.live.corpus import encode_corpus
from twn_lightning.live.limits import Limits
from twn_lightning.live.model import NEIGHBOURS, RunModel, load_run_model
from twn_lightning.live.page import look_page
from twn_lightning.live.question import Question
from twn_lightning.live.server import LookServer
from twn_lightning.reporting import load_run
from twn_lightning.run import RunFolder
from twn_lightning.settings import ModelSettings, Settings
from twn_lightning.types import EmbeddingMode, Item, Media, Side

PAIRS = 24
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


@dataclass(frozen=True)
class Look:
    """A running `twn inspect`."""

    run: Path
    address: str


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """The packaged nano, evaluated on a few queries, and inspected by a process of its own."""
    folder = tmp_path_factory.mktemp("inspect")
    run = folder / "run"
    paths = [f"paths.run_dir={run}", f"paths.output_root={folder}", f"task.cache_root={folder / 'cache'}"]
    assert cli.main(["evaluate", f"data.test_pairs={PAIRS}", "evaluation.bootstrap_samples=20", *paths]) == 0
    command = [sys.executable, "-m", "twn_lightning", "inspect", str(run), "--no-browser", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(line.strip() for line in process.stdout if line.startswith("http://127.0.0.1:"))
            yield Look(run, address)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "stopped" in printed
    assert "Traceback" not in errors


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Browser]:
    with browser(tmp_path / "profile") as opened:
        opened.show(1280, 1000)
        yield opened


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def a_query(run: Path) -> tuple[str, bytes, Item]:
    """The text and picture of one of the run's queries, as a person would enter them, and the query itself."""
    settings = RunFolder(run).settings()
    pairs = get_source("nano", settings.data).pairs("test", PAIRS)
    query = next(pair.query for pair in pairs if pair.steps and pair.query.media)
    (media,) = query.media
    assert isinstance(media.content, np.ndarray)
    return f"{query.instruction} {query.text}", png(media.content), query


def ask(address: str, **asked: Any) -> tuple[int, Any]:
    there = urlsplit(address)
    connection = http.client.HTTPConnection(there.netloc, timeout=120)
    connection.request("POST", f"{there.path}ask", json.dumps(asked), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    status, content = answer.status, json.load(answer)
    connection.close()
    return status, content


def test_the_answer_is_the_encoders(look: Look) -> None:
    text, picture, query = a_query(look.run)
    status, answer = ask(look.address, text=text, task="nano/follow", media=base64.b64encode(picture).decode())
    assert status == 200
    settings = RunFolder(look.run).settings()
    encoder = AdaptiveEncoder(*load_trained(), max_new_tokens=settings.data.max_new_tokens)
    expected = encoder.encode([query], Side.QUERY, EmbeddingMode.ADAPTIVE)
    assert expected.probability_N is not None
    assert expected.think_N is not None
    assert answer["probability"] == pytest.approx(float(expected.probability_N[0]), abs=1e-5)
    assert answer["think"] == bool(expected.think_N[0])
    thought = encoder.encode([query], Side.QUERY, EmbeddingMode.GENERATIVE)
    assert thought.discriminative_ND is not None
    assert thought.tokens_N is not None
    assert answer["cot"] == thought.cots[0]
    assert answer["tokens"]["cot"] == thought.tokens_N[0]
    assert answer["tokens"]["prompt"] == encoder.backbone.processor([query]).attention_mask_BL.sum()
    candidates = get_source("nano", settings.data).candidates("test", "nano/follow")
    found_CD = encoder.encode(candidates, Side.CANDIDATE, EmbeddingMode.DISCRIMINATIVE).embedding_ND
    for mode, query_ND in (("discriminative", thought.discriminative_ND), ("generative", thought.embedding_ND)):
        scores_C = found_CD @ query_ND[0]
        best = np.argsort(-scores_C)[:NEIGHBOURS]
        near = answer["neighbours"][mode]
        assert [n["score"] for n in near] == pytest.approx(scores_C[best].tolist(), abs=1e-5)
        assert near[0]["key"] == candidates[best[0]].key


def test_text_alone_and_broken_pictures(look: Look) -> None:
    status, answer = ask(look.address, text="blue 3")
    assert status == 200
    assert len(answer["neighbours"]["generative"]) == NEIGHBOURS
    broken = base64.b64encode(a_query(look.run)[1][:200]).decode()
    status, answer = ask(look.address, text="x", media=broken)
    assert status == 400
    assert "image that was sent cannot be decoded" in answer["error"]
    status, answer = ask(look.address, text="<|im_start|>system")
    assert status == 400
    assert "special token" in answer["error"]
    status, answer = ask(look.address.replace("127.0.0.1", "localhost").rstrip("/") + "x/", text="x")
    assert status == 403


@needs_browser
def test_drop_a_picture_ask_and_see_the_answer(look: Look, window: Browser) -> None:
    text, picture, _ = a_query(look.run)
    window.open(look.address)
    assert window.texts("#answer") == []
    window.run(_DROP, base64.b64encode(picture).decode())
    window.wait("!document.getElementById('preview').hidden")
    window.type("#question", text)
    window.click("#send")
    window.wait("!document.getElementById('answer').hidden")
    _, expected = ask(look.address, text=text, media=base64.b64encode(picture).decode())
    assert window.text("#answer-probability") == f"{100 * expected['probability']:.1f} %"
    assert window.text("#answer-decision") == ("thinks" if expected["think"] else "does not think")
    assert window.text("#cot") == expected["cot"]
    for mode in ("discriminative", "generative"):
        shown = window.texts(f"#near-{mode} li .name")
        assert len(shown) == NEIGHBOURS
        assert shown[0].startswith(expected["neighbours"][mode][0]["text"])
    assert window.console() == []


_DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const dropped = new DataTransfer();
dropped.items.add(new File([bytes], "grid.png", { type: "image/png" }));
const options = { dataTransfer: dropped, bubbles: true, cancelable: true };
document.getElementById("drop").dispatchEvent(new DragEvent("drop", options));
"""


@needs_browser
def test_a_recorded_decision_asked_again_gets_its_recorded_probability(look: Look, window: Browser) -> None:
    window.open(look.address)
    card = "[...document.querySelectorAll('.card')].find((card) => card.querySelector('.again'))"
    recorded = window.run(f"return {card}.querySelector('.p').textContent")
    window.run(f"{card}.querySelector('.again').click()")
    window.click("#send")
    window.wait("!document.getElementById('answer').hidden")
    assert recorded.replace("\N{NO-BREAK SPACE}", " ").endswith(window.text("#answer-probability"))


@needs_browser
def test_a_broken_file_by_the_file_field_says_why(look: Look, window: Browser, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    window.open(look.address)
    window.type("#file", str(tmp_path / "notes.png"))
    window.wait("document.getElementById('drop-text').textContent === 'notes.png'")
    window.click("#send")
    window.wait("document.getElementById('state').classList.contains('error')")
    assert "no image or video of a known format" in window.text("#state")
    window.click("#clear")
    assert window.text("#state") == ""
    assert window.text("#drop-text").startswith("Drop a picture")


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(look: Look, window: Browser, scheme: str) -> None:
    window.show(390, 844, scheme)
    window.open(look.address)
    assert window.run("return document.documentElement.scrollWidth") == 390


@needs_browser
def test_hostile_names_questions_and_answers_stay_text(tmp_path: Path, window: Browser) -> None:
    encoder = AdaptiveEncoder(random_backbone(0.1), None)
    corpus = encode_corpus(encoder, {HOSTILE: [Item(HOSTILE, "", HOSTILE)]})
    folder = tmp_path / "run<img src=x onerror=alert(1)>"
    folder.mkdir()
    page, policy = look_page(RunModel(encoder, corpus), load_run(folder), None)
    near = [{"key": HOSTILE, "text": HOSTILE, "score": 0.5, "picture": None}]

    def answer(question: Question) -> dict[str, Any]:
        return {
            "probability": None, "threshold": None, "think": None, "cot": question.text + HOSTILE, "malformed": True,
            "tokens": {"prompt": 1, "cot": 1}, "seconds": {"discriminative": 0.1, "generative": 0.2},
            "neighbours": {"discriminative": near, "generative": near},
        }  # fmt: skip

    server = LookServer(page, policy, answer, list(corpus.rows))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        window.open(server.address)
        title = window.run("return document.title")
        window.type("#question", HOSTILE)
        window.click("#send")
        window.wait("!document.getElementById('answer').hidden")
        assert HOSTILE + HOSTILE in window.text("#cot")
        assert window.texts(".near .name") == [HOSTILE, HOSTILE]
        assert window.run("return document.querySelectorAll('#answer img, #answer script, header img').length") == 0
        assert window.run("return document.scripts.length") == 1
        assert window.run("return document.title") == title
        assert window.console() == []
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_video_is_answered_as_the_encoder_reads_it(tmp_path: Path) -> None:
    encoder = AdaptiveEncoder(random_backbone(0.1), None, max_new_tokens=4)
    corpus = encode_corpus(encoder, {"t/one": [Item("a", "", "red 1"), Item("b", "", "blue 2")]})
    content = video_bytes(tmp_path)
    answer = RunModel(encoder, corpus).answer(Question("what moves", None, content, is_video=True))
    item = Item("video", "", "what moves", (Media("video", tmp_path / "clip.mp4"),))
    expected_D = encoder.encode([item], Side.QUERY, EmbeddingMode.DISCRIMINATIVE).embedding_ND[0]
    scores = sorted((corpus.embedding_CD @ expected_D).tolist(), reverse=True)
    assert [near["score"] for near in answer["neighbours"]["discriminative"]] == pytest.approx(scores, abs=1e-6)


def test_adapters_without_a_gate_always_think_and_decide_nothing() -> None:
    encoder = AdaptiveEncoder(random_backbone(0.1), None, max_new_tokens=4)
    model = RunModel(encoder, encode_corpus(encoder, {"t/one": [Item("a", "", "red 1"), Item("b", "", "blue 2")]}))
    answer = model.answer(Question("red"))
    assert answer["probability"] is None
    assert answer["think"] is None
    assert [len(answer["neighbours"][mode]) for mode in ("discriminative", "generative")] == [2, 2]


def test_a_gate_decides_by_its_threshold() -> None:
    backbone = random_backbone(0.1)
    gate = RoutingGate(2 * backbone.hidden_size, 8).eval()
    corpus = encode_corpus(AdaptiveEncoder(backbone, gate), {"t/one": [Item("a", "", "red 1")]})
    for threshold, think in ((0.0, True), (1.0, False)):
        encoder = AdaptiveEncoder(backbone, gate, threshold, max_new_tokens=4)
        assert RunModel(encoder, corpus).answer(Question("red"))["think"] is think


def test_errors_before_anything_is_served(look: Look, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path / "nowhere")]) == 2
    assert "no run folder at" in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path)]) == 2
    assert "is not a run folder: it has no config.yaml" in capsys.readouterr().err
    port = str(urlsplit(look.address).port)
    assert cli.main(["inspect", str(look.run), "--no-browser", "--port", port, "--device", "cpu"]) == 2
    assert f"--port {port} cannot be used" in capsys.readouterr().err
    assert cli.main(["inspect", str(look.run), "--port", "70000"]) == 2
    assert "between 0 and 65535" in capsys.readouterr().err


def test_a_training_run_answers_with_its_own_adapters(tmp_path: Path) -> None:
    settings = Settings(model=ModelSettings(name="tiny"))
    settings.task.cache = "never"
    run = RunFolder(tmp_path / "run").create(settings)
    save_undecided_adapters(run.adapters)
    model = load_run_model(run.path, "cpu", limit=20, limits=Limits())
    there, _, _ = load_trained(settings.model, str(run.adapters))
    assert model.encoder.model_name() == AdaptiveEncoder(there, None).model_name()
    assert 0 < model.answer(Question("red 1"))["probability"] < 1


def test_a_run_of_another_encoder_is_refused(tmp_path: Path) -> None:
    settings = Settings()
    settings.task.suite, settings.task.names = "mmeb_nano", ["NanoCLS"]
    settings.task.encoder, settings.task.query_mode = "vlm2vec", "discriminative"
    run = RunFolder(tmp_path / "run").create(settings)
    with pytest.raises(ConfigError, match="evaluated the encoder 'vlm2vec', which has no gate"):
        load_run_model(run.path, "cpu", limit=20, limits=Limits())


def test_the_candidates_are_bounded(look: Look) -> None:
    model = load_run_model(look.run, "cpu", limit=60, limits=Limits())
    assert len(model.corpus.items) <= 60
    assert model.corpus.left_out > 0


def test_relative_adapters_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was started in another folder than the page, and names its adapters relative to that."""
    settings = Settings(model=ModelSettings(name="tiny"))
    settings.task.cache = "never"
    settings.adapters.init_from = "outputs/gate/adapters"
    run = RunFolder(tmp_path / "outputs" / "evaluate").create(settings)
    save_undecided_adapters(tmp_path / settings.adapters.init_from)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = load_run_model(run.path, "cpu", limit=20, limits=Limits())
    there, _, _ = load_trained(settings.model, str(tmp_path / settings.adapters.init_from))
    assert model.encoder.model_name() == AdaptiveEncoder(there, None).model_name()
