"""Requests that attack the live page: each gets an answer with a reason, and the page still answers the next."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trust.fuzz import broken_files
from tests.trust.fuzz.cases import SECONDS, check, examples, nothing_left
from tests.trust.fuzz.test_fuzz_media import EDITS, WHOLE, same_as_pillow
from tests.trust.fuzz.test_fuzz_rows import JSON, TEXTS
from tests.unit.live.test_server import serving
from twn_lightning.errors import TWNError
from twn_lightning.live.limits import Limits
from twn_lightning.live.question import Question, item_of
from twn_lightning.live.server import LookServer

LIMITS = Limits(media_bytes=100_000, asks_per_second=1e6, burst=10**6, places=64)
HOSTILE = broken_files.unreadable_images() | broken_files.exif_traps() | broken_files.bombs()
SEEN: list[Any] = []
"""Pixels of the image that was asked about last."""


def look(question: Question) -> dict[str, Any]:
    """Decodes as the model does, and says what came."""
    SEEN.clear()
    with item_of(question, 8, LIMITS) as item:
        SEEN.extend(media.content for media in item.media)
        return {"text": question.text, "media": len(item.media)}


@pytest.fixture(scope="module")
def server() -> Iterator[LookServer]:
    with nothing_left("live page"), serving(look, LIMITS) as running:
        yield running


def send(server: LookServer, request: bytes) -> tuple[int, dict[str, Any] | bytes]:
    """The status and the content that bytes on a connection are answered with.

    Raises:
        TWNError: the request was refused; with the reason.
    """
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=SECONDS) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65_536):
            answer += part
    head, _, content = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):  # HTTP/0.9 has no head
        head, content = b"HTTP/0.9 400 -", answer
    status = int(head.split()[1])
    assert status != 500, f"the page failed: {content[:300]!r}"
    if status == 200:
        return status, json.loads(content) if content.startswith(b"{") else content
    raise TWNError(json.loads(content)["error"])


def post(server: LookServer, body: bytes, *, kind: bytes = b"application/json", length: bytes | None = None) -> bytes:
    """A well-formed request with a body."""
    head = [
        b"POST /%s/ask HTTP/1.1" % server.token.encode(),
        b"Host: 127.0.0.1:%d" % server.server_address[1],
        b"Content-Type: " + kind,
        b"Content-Length: " + (b"%d" % len(body) if length is None else length),
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def still_answers(server: LookServer) -> None:
    status, answer = send(server, post(server, b'{"text": "hello"}'))
    assert (status, answer) == (200, {"text": "hello", "media": 0})


@examples(80, 500)
@given(asked=st.dictionaries(st.sampled_from(["text", "task", "media", "other"]), JSON | TEXTS, max_size=4) | JSON)
def test_questions_of_any_json(server: LookServer, asked: Any) -> None:
    def right(found: tuple[int, Any]) -> None:
        assert isinstance(asked, dict)
        assert found == (200, {"text": asked["text"].strip(), "media": 0})

    check("live page", f"{asked}", lambda: send(server, post(server, json.dumps(asked).encode())), right)
    still_answers(server)


@examples(40, 400)
@given(name=st.sampled_from(sorted(WHOLE)), edits=st.just([]) | EDITS)
def test_pictures(server: LookServer, name: str, edits: list[broken_files.Edit]) -> None:
    content = broken_files.damaged(WHOLE[name], edits)
    body = json.dumps({"text": "what?", "media": base64.b64encode(content).decode()}).encode()

    def right(found: tuple[int, Any]) -> None:
        assert found == (200, {"text": "what?", "media": len(SEEN)})
        assert len(SEEN) == bool(content)
        if SEEN and isinstance(SEEN[0], np.ndarray):
            same_as_pillow(content, SEEN[0])

    check("live page", f"{name} {edits}", lambda: send(server, post(server, body)), right)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures(server: LookServer, name: str) -> None:
    content = HOSTILE[name]
    body = json.dumps({"media": base64.b64encode(content).decode()}).encode()
    right = None if not name.startswith("exif") else lambda _: same_as_pillow(content, SEEN[0])
    check("live page", name, lambda: send(server, post(server, body)), right)
    still_answers(server)


@examples(40, 400)
@given(edits=EDITS, body=st.binary(max_size=60) | st.just(b'{"text": "hello"}'))
def test_damaged_requests(server: LookServer, edits: list[broken_files.Edit], body: bytes) -> None:
    """Whatever of a request is damaged, it is refused, or it was the question that it says."""

    def right(found: tuple[int, Any]) -> None:
        assert found[0] == 200

    request = broken_files.damaged(post(server, body), edits)
    assert_answered = lambda: send(server, request) if request.strip() else (200, {})  # noqa: E731
    check("live page", f"{edits} {body!r}", assert_answered, right)
    still_answers(server)


REQUESTS = {
    "no token": b"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "dots": b"GET /{token}/../../etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "encoded dots": b"GET /{token}/%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "other host": b"GET /{token}/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "no host": b"GET /{token}/ HTTP/1.1\r\n\r\n",
    "long line": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    "long header": b"GET /{token}/ HTTP/1.1\r\nHost: {host}\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"GET /{token}/ HTTP/1.1\r\nHost: {host}\r\n" + b"X: a\r\n" * 500 + b"\r\n",
    "other method": b"BREW /{token}/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "other version": b"GET /{token}/ HTTP/9.9\r\nHost: {host}\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "chunks": b"POST /{token}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "two lengths": b"POST /{token}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    b"Content-Length: 99999999\r\nContent-Length: 2\r\n\r\n{}",
    "negative length": b"POST /{token}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    b"Content-Length: -5\r\n\r\n{}",
    "long length": b"POST /{token}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "short body": b"POST /{token}/ask HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    b"Content-Length: 50\r\n\r\n{}",
    "bytes in the path": b"GET /\xff\xfe\x00{token} HTTP/1.1\r\nHost: {host}\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_hostile_requests(server: LookServer, name: str) -> None:
    host = b"127.0.0.1:%d" % server.server_address[1]
    request = REQUESTS[name].replace(b"{token}", server.token.encode()).replace(b"{host}", host)
    check("live page", name, lambda: send(server, request), None)
    still_answers(server)


DEEP = b'{"text": ' + b"[" * 3000 + b"]" * 3000 + b"}"


@pytest.mark.parametrize(
    "body", [DEEP, b"[" * 9000, b"null", b"", b"\xff", b'{"text": "' + b"a" * 9000 + b'"}', b'{"text": "\\ud800"}']
)
def test_hostile_bodies(server: LookServer, body: bytes) -> None:
    check("live page", f"{body[:40]!r}", lambda: send(server, post(server, body)), None)
    still_answers(server)
