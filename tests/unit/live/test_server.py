"""The server over HTTP, with a model that is a function: who gets in, what is refused and how, what is sent."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from twn_lightning.errors import DataError
from twn_lightning.live.limits import Limits
from twn_lightning.live.question import Question
from twn_lightning.live.server import LookServer

LIMITS = Limits(media_bytes=1000, asks_per_second=1000, burst=1000, places=64)


def echo(question: Question) -> dict[str, Any]:
    if question.text == "broken":
        raise DataError("item 'question': image that was sent cannot be decoded")
    if question.text == "bug":
        raise RuntimeError("secret detail")
    return {"text": question.text}


@contextmanager
def serving(answer: Any = echo, limits: Limits = LIMITS) -> Iterator[LookServer]:
    server = LookServer("<!doctype html><title>page</title>", "default-src 'none'", answer, ["t/one"], 0, limits)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def request(
    server: LookServer, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def ask(server: LookServer, body: bytes, **headers: str) -> tuple[int, Any]:
    sent = {"Content_Type": "application/json", **headers}
    status, _, content = request(server, "POST", f"/{server.token}/ask", body, **sent)
    return status, json.loads(content)


def asked(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


def test_page_and_answer() -> None:
    with serving() as server:
        status, headers, content = request(server, "GET", f"/{server.token}/")
        assert (status, content) == (200, server.page)
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["server"] == "twn"
        assert ask(server, asked("start a1")) == (200, {"text": "start a1"})
        assert server.server_address[0] == "127.0.0.1"
        assert server.address == f"http://127.0.0.1:{server.server_address[1]}/{server.token}/"
        assert len(server.token) >= 32


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/ask", "//", "/../etc/passwd", "/%2e%2e/"])
def test_nothing_is_served_without_the_token(path: str) -> None:
    with serving() as server:
        for method in ("GET", "POST"):
            status, _, content = request(server, method, path, b"{}" if method == "POST" else None)
            assert status == 403
            assert server.token.encode() not in content


def test_other_hosts_and_origins_are_refused() -> None:
    with serving() as server:
        status, _, content = request(server, "GET", f"/{server.token}/", Host="evil.example")
        assert status == 403
        assert b"127.0.0.1 only" in content
        status, answer = ask(server, asked("x"), Origin="http://evil.example")
        assert status == 403
        assert "from the page itself" in answer["error"]
        port = server.server_address[1]
        assert ask(server, asked("x"), Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_refusals_say_why() -> None:
    with serving() as server:
        there = f"/{server.token}/ask"
        kind = {"Content_Type": "application/json"}
        cases = [
            (request(server, "GET", f"/{server.token}/etc/passwd"), 404, "nothing at this address"),
            (request(server, "POST", f"/{server.token}/other", b"{}", **kind), 404, "nothing at this address"),
            (request(server, "POST", there, b"{}", Content_Type="text/plain"), 415, "application/json"),
            (request(server, "POST", there, b"{}", Content_Length="-1", **kind), 411, "Content-Length"),
            (request(server, "POST", there, b"", Content_Length="9" * 30, **kind), 413, "at most 0.001 MB"),
            (request(server, "POST", there, bytes(LIMITS.body_bytes + 1), **kind), 413, "at most 0.001 MB"),
            (request(server, "POST", there, b"{", **kind), 400, "not JSON"),
            (request(server, "PUT", there, b"{}", **kind), 501, "Unsupported method"),
            (request(server, "POST", there, asked("broken"), **kind), 400, "cannot be decoded"),
        ]
        for (status, headers, content), expected, why in cases:
            assert status == expected
            assert why in json.loads(content)["error"]
            assert headers["content-type"] == "application/json"


def test_an_unexpected_error_tells_its_kind_only(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        status, answer = ask(server, asked("bug"))
    assert status == 500
    assert "RuntimeError" in answer["error"]
    assert "secret" not in answer["error"]
    assert "secret detail" in caplog.text


def test_too_many_questions_are_told_to_come_back() -> None:
    with serving(limits=replace(LIMITS, asks_per_second=0.001, burst=2)) as server:
        assert [ask(server, asked("x"))[0] for _ in range(3)] == [200, 200, 429]
        status, headers, _ = request(
            server, "POST", f"/{server.token}/ask", asked("x"), Content_Type="application/json"
        )
        assert status == 429
        assert headers["retry-after"] == "1"


def test_a_full_queue_is_said_before_the_question_is_read() -> None:
    began, finish = threading.Event(), threading.Event()

    def slow(question: Question) -> dict[str, Any]:
        began.set()
        finish.wait(30)
        return {"text": question.text}

    with serving(slow, replace(LIMITS, places=1)) as server, ThreadPoolExecutor(1) as caller:
        first = caller.submit(ask, server, asked("first"))
        assert began.wait(30)
        status, answer = ask(server, asked("second"))
        finish.set()
        assert status == 503
        assert "the model is busy" in answer["error"]
        assert first.result() == (200, {"text": "first"})
        assert ask(server, asked("third")) == (200, {"text": "third"})


def test_64_clients_get_their_own_answers() -> None:
    with serving() as server, ThreadPoolExecutor(32) as callers:
        answers = list(callers.map(lambda i: ask(server, asked(f"question {i}")), range(64)))
    assert answers == [(200, {"text": f"question {i}"}) for i in range(64)]


def test_too_many_connections_are_turned_away() -> None:
    with serving(limits=replace(LIMITS, connections=1)) as server:
        with socket.create_connection(server.server_address[:2]) as idle:
            idle.sendall(b"GET ")
            with socket.create_connection(server.server_address[:2]) as second:
                head, _, body = second.makefile("rb").read().partition(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.0 503")
                assert b"\r\nRetry-After: 1" in head
                assert json.loads(body) == {"error": "all 1 connections are taken: ask again in a moment"}
        # The idle connection's thread takes a moment to notice that its client hung up.
        assert any(request(server, "GET", f"/{server.token}/")[0] == 200 for _ in range(1000))


def test_a_client_that_hangs_up_or_stalls_harms_nobody() -> None:
    with serving(limits=replace(LIMITS, body_seconds=0.0)) as server:
        head = f"POST /{server.token}/ask HTTP/1.0\r\nHost: 127.0.0.1:{server.server_address[1]}\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        with socket.create_connection(server.server_address[:2]) as gone:
            gone.sendall(head.encode() + b"{")
        with socket.create_connection(server.server_address[:2]) as slow:
            slow.sendall(head.encode() + b"{")
            assert b"408" in slow.makefile("rb").readline()
        assert request(server, "GET", f"/{server.token}/")[0] == 200
