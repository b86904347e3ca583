"""64 clients at once, of the live page and of one encoder: every one gets its own answer, or is told to come back.

The right answers are computed beforehand, one at a time. With TRUST=full, clients ask ten times in a row.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from tests.trust.memory import MemorySamples, resident_megabytes
from tests.trust.records import record
from tests.unit.live.test_server import serving
from twn_lightning import TWNEncoder
from twn_lightning.data.sources import get_source
from twn_lightning.live.corpus import encode_corpus
from twn_lightning.live.limits import Limits
from twn_lightning.live.model import RunModel
from twn_lightning.live.question import Question, read_question
from twn_lightning.live.server import LookServer
from twn_lightning.settings import DataSettings
from twn_lightning.types import EmbeddingMode, Item

CLIENTS = 64
TURNS = 10 if os.environ.get("TRUST") == "full" else 1
PATIENCE_SECONDS = 300
TOLERANCE = 1e-5
GROWTH_MB = 250
"""Most that memory may grow by while 64 clients ask. All questions of 2 MB held at once would take twice that."""

Value = TypeVar("Value")
Result = TypeVar("Result")


@pytest.fixture(scope="module")
def encoder() -> TWNEncoder:
    return TWNEncoder.from_pretrained("nano", device="cpu")


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [pair.query for pair in get_source("nano", DataSettings()).pairs("test", CLIENTS)]


def at_once(work: Callable[[Value], Result], values: Sequence[Value]) -> list[Result]:
    """`work` on all values at once, each in a thread of its own."""
    started = threading.Barrier(len(values))

    def work_together(value: Value) -> Result:
        started.wait(60)
        return work(value)

    with ThreadPoolExecutor(len(values)) as threads:
        return list(threads.map(work_together, values))


def with_growth(work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` returns, and by how many megabytes the process grew meanwhile, at its peak."""
    before = resident_megabytes()
    with MemorySamples(0.05) as samples:
        result = work()
    return result, float(samples.arrays()[1].max(initial=before)) - before


# --- the page --------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """What a client met until it had its answers."""

    answers: list[Any] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    """The reasons why it was told to come back."""
    faults: list[str] = field(default_factory=list)
    """A connection that was cut off, an unexpected status, a refusal that does not say why and when to come back."""


def ask_until_answered(server: LookServer, body: bytes) -> Asked:
    """Ask the same question until it is answered, and come back when told to, `TURNS` times."""
    asked = Asked()
    until = time.monotonic() + PATIENCE_SECONDS * TURNS
    while len(asked.answers) < TURNS and not asked.faults:
        if time.monotonic() > until:
            asked.faults.append(f"no answer within {PATIENCE_SECONDS * TURNS} s")
            break
        try:
            status, after, content = ask_once(server, body)
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            asked.faults.append(f"cut off: {error!r}")
            break
        if status == 200:
            asked.answers.append(content)
        elif status in (429, 503) and after is not None and content["error"]:
            asked.refusals.append(content["error"])
            time.sleep(float(after))
        else:
            asked.faults.append(f"status {status}, Retry-After {after}: {content}")
    return asked


def ask_once(server: LookServer, body: bytes) -> tuple[int, str | None, Any]:
    """Status, Retry-After and content of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=PATIENCE_SECONDS)
    connection.request("POST", f"/{server.token}/ask", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, answer.headers["Retry-After"], content


def judge(name: str, clients: list[Asked], mixed_up: int, grew_mb: float) -> None:
    """Record what the clients met, and fail where anything was lost or mixed up, or memory was not bounded."""
    faults = [fault for client in clients for fault in client.faults]
    result = {
        "clients": len(clients),
        "answered": sum(len(client.answers) for client in clients),
        "told_to_come_back": sum(len(client.refusals) for client in clients),
        "lost": sum(TURNS - len(client.answers) for client in clients),
        "mixed_up": mixed_up,
        "grew_mb": round(grew_mb, 1),
    }
    record(f"load-{name}", result)
    assert not faults
    assert (result["lost"], mixed_up) == (0, 0)
    assert grew_mb < GROWTH_MB


def body_of(item: Item) -> bytes:
    """A question as the page sends it."""
    asked: dict[str, Any] = {"text": f"{item.instruction} {item.text}"}
    if item.media:
        picture = io.BytesIO()
        Image.fromarray(np.asarray(item.media[0].content)).save(picture, "PNG")
        asked["media"] = base64.b64encode(picture.getvalue()).decode()
    return json.dumps(asked).encode()


def same_answer(found: Any, expected: Any) -> bool:
    """Equal but for the times, and numbers to the tolerance."""
    if isinstance(expected, float):
        return isinstance(found, (int, float)) and abs(found - expected) <= TOLERANCE
    if isinstance(expected, dict):
        names = expected.keys() - {"seconds"}
        return found.keys() - {"seconds"} == names and all(same_answer(found[name], expected[name]) for name in names)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_answer, found, expected))
    return bool(found == expected)


def test_64_clients_of_the_page_get_their_own_answers(encoder: TWNEncoder, items: list[Item]) -> None:
    source = get_source("nano", DataSettings())
    candidates = {task: source.candidates("test", task) for task in source.tasks}
    model = RunModel(encoder.item_encoder, encode_corpus(encoder.item_encoder, candidates))
    bodies = [body_of(item) for item in items]
    right = [json.loads(json.dumps(model.answer(read_question(body, [], model.limits)))) for body in bodies]
    assert not any(same_answer(other, right[0]) for other in right[1:]), "a mix-up of equal answers would not show"
    with serving(model.answer, model.limits) as server:
        clients, grew_mb = with_growth(lambda: at_once(lambda body: ask_until_answered(server, body), bodies))
    pairs = zip(clients, right, strict=True)
    mixed_up = sum(not same_answer(answer, expected) for client, expected in pairs for answer in client.answers)
    judge("page", clients, mixed_up, grew_mb)
    assert any(client.refusals for client in clients), "64 questions at once are more than the page takes"


def test_clients_beyond_the_limits_are_told_to_come_back() -> None:
    """Fewer connections than clients, and files of 2 MB: nobody is cut off, and few questions are held at a time."""

    def answer(question: Question) -> dict[str, Any]:
        time.sleep(0.02)
        return {"text": question.text}

    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(2_000_000)).decode()
    bodies = [json.dumps({"text": f"question {i}", "media": picture}).encode() for i in range(CLIENTS)]
    limits = Limits(connections=8, places=4, asks_per_second=1000, burst=1000)
    with serving(answer, limits) as server:
        clients, grew_mb = with_growth(lambda: at_once(lambda body: ask_until_answered(server, body), bodies))
    mixed_up = sum(answer != {"text": f"question {i}"} for i, client in enumerate(clients) for answer in client.answers)
    judge("connections", clients, mixed_up, grew_mb)
    reasons = " ".join(reason for client in clients for reason in client.refusals)
    assert "all 8 connections are taken" in reasons
    assert "the model is busy and 4 questions are held already" in reasons


# --- the encoder -----------------------------------------------------------------------------------------------------


def test_64_threads_share_an_encoder(encoder: TWNEncoder, items: list[Item]) -> None:
    modes = [list(EmbeddingMode)[row % 3] for row in range(CLIENTS)]

    def encode(row: int) -> tuple[np.ndarray, list[str | None]]:
        item = items[row]
        asked = {"text": item.text, "instruction": item.instruction}
        media = {"image": np.asarray(item.media[0].content)} if item.media else {}
        out = encoder.encode([asked | media], mode=modes[row])
        return np.asarray(out.embeddings), out.cot

    def tried(row: int) -> list[tuple[np.ndarray, list[str | None]] | Exception]:
        answers: list[Any] = []
        for _ in range(TURNS):
            try:
                answers.append(encode(row))
            except Exception as error:
                answers.append(error)
        return answers

    right = [encode(row) for row in range(CLIENTS)]
    found, grew_mb = with_growth(lambda: at_once(tried, range(CLIENTS)))
    errors = [answer for answers in found for answer in answers if isinstance(answer, Exception)]
    mixed_up = sum(
        not np.allclose(answer[0], expected[0], rtol=0, atol=TOLERANCE) or answer[1] != expected[1]
        for answers, expected in zip(found, right, strict=True)
        for answer in answers
        if not isinstance(answer, Exception)
    )
    answered = CLIENTS * TURNS - len(errors)
    result = {"clients": CLIENTS, "answered": answered, "told_to_come_back": 0, "lost": len(errors)}
    record("load-encoder", {**result, "mixed_up": mixed_up, "grew_mb": round(grew_mb, 1)})
    assert (errors, mixed_up) == ([], 0)
    assert grew_mb < GROWTH_MB
