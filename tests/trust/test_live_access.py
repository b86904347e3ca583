"""Who gets in at the live page: wrong tokens, other hosts and origins, odd requests; and what a refusal gives away."""

from __future__ import annotations

import itertools
import json
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.live.test_server import LIMITS, serving
from twn_lightning.live.server import HOST, LookServer

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


@pytest.fixture(scope="module")
def server() -> Iterator[LookServer]:
    with serving() as running:
        yield running


def sent(server: LookServer, request: str, *, host: str = HOST) -> tuple[int, dict[str, str], str]:
    """The answer to a request as typed: status, headers by lower-case name, body."""
    with socket.create_connection((host, server.server_address[1]), timeout=30) as connection:
        connection.sendall(request.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        head, _, body = connection.makefile("rb").read().decode("latin-1").partition("\r\n\r\n")
    status, *lines = head.split("\r\n")
    return int(status.split()[1]), {n.lower(): v for n, _, v in (line.partition(": ") for line in lines)}, body


def asked(
    server: LookServer, method: str, path: str, *headers: str, body: str = "{}"
) -> tuple[int, dict[str, str], str]:
    """A request with the right host, JSON and length, unless `headers` say otherwise."""
    usual = {
        "Host": f"{HOST}:{server.server_address[1]}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    given = {line.partition(":")[0] for line in headers}
    lines = [f"{name}: {value}" for name, value in usual.items() if name not in given]
    return sent(server, "\r\n".join([f"{method} {path} HTTP/1.1", *lines, *headers, "", body]))


def wrong_tokens(token: str) -> list[str]:
    return [
        "", "x", token[:-1], token + "x", token[:-1] + ("a" if token[-1] != "a" else "b"), token.swapcase(),
        f"x/{token}", f"%2f{token}", f"{token}%00", "ä" * len(token), f"?{token}", f"#{token}", f";{token}",
        "../" + token + "x",
    ]  # fmt: skip


@pytest.mark.parametrize("rest", ["", "/", "/ask", "/live.js", "/favicon.ico", "/../ask", "/%2e%2e/etc/passwd"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_every_address_needs_the_token(server: LookServer, method: str, rest: str) -> None:
    for token in wrong_tokens(server.token):
        status, headers, body = asked(server, method, f"/{token.encode().decode('latin-1')}{rest}")
        assert status == 403, token
        assert server.token not in body
        assert server.page.decode() not in body
        assert headers.items() >= HEADERS.items()


def test_there_is_nothing_but_the_page_and_its_question(server: LookServer) -> None:
    for rest in (
        "/live.js",
        "/../",
        "/etc/passwd",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc",
        "/x\0y",
    ):
        for method in ("GET", "POST"):
            status, headers, body = asked(server, method, f"/{server.token}{rest}")
            assert status == 404, rest
            assert "root:" not in body
            assert headers.items() >= HEADERS.items()
    assert asked(server, "GET", f"/{server.token}/")[2] == server.page.decode()


@pytest.mark.parametrize(
    "host", ["", "evil.example", "127.0.0.1", "localhost", "127.0.0.1:1", "evil.example:{port}", "[::1]:{port}",
             "127.0.0.1:{port}.evil.example", "localhost:{port}@evil.example", "0.0.0.0:{port}", "127.1:{port}"],
)  # fmt: skip
def test_other_names_of_this_machine_are_refused(server: LookServer, host: str) -> None:
    """A page of another name that resolves here (DNS rebinding) sends its own name as host."""
    name = host.format(port=server.server_address[1])
    for method, path in (("GET", f"/{server.token}/"), ("POST", f"/{server.token}/ask")):
        status, headers, body = asked(server, method, path, f"Host: {name}")
        assert status == 403
        assert server.token not in body
        assert headers.items() >= HEADERS.items()


def test_a_request_without_a_host_is_refused(server: LookServer) -> None:
    assert sent(server, f"GET /{server.token}/ HTTP/1.0\r\n\r\n")[0] == 403
    port = server.server_address[1]
    absolute = f"GET http://evil.example/{server.token}/ HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n"
    assert sent(server, absolute)[0] == 403, "the token is the first part of the path, never of an address"


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "https://127.0.0.1:{port}", "http://127.0.0.1:{port}.evil.example",
               "http://localhost", "file://", "http://127.0.0.1:{port}/"],
)  # fmt: skip
def test_other_pages_may_not_ask(server: LookServer, origin: str) -> None:
    line = f"Origin: {origin.format(port=server.server_address[1])}"
    status, headers, _ = asked(server, "POST", f"/{server.token}/ask", line, body='{"text": "x"}')
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "HEAD", "TRACE", "CONNECT", "PATCH", "get"])
def test_other_methods_do_nothing(server: LookServer, method: str) -> None:
    status, headers, body = asked(server, method, f"/{server.token}/ask", "Origin: http://evil.example")
    assert status in (400, 501)
    assert headers.items() >= HEADERS.items()
    assert not [name for name in headers if name.startswith("access-control")]
    assert server.token not in body


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_form_of_another_page_cannot_ask(server: LookServer, kind: str) -> None:
    """What a page may send elsewhere without asking first is refused by its type."""
    assert asked(server, "POST", f"/{server.token}/ask", f"Content-Type: {kind}")[0] == 415


def test_the_token_is_compared_in_constant_time(server: LookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    original = secrets.compare_digest
    monkeypatch.setattr(
        "twn_lightning.live.server.secrets.compare_digest", lambda a, b: compared.append((a, b)) or original(a, b)
    )
    assert asked(server, "GET", "/guess/")[0] == 403
    assert compared == [(b"guess", server.token.encode())]


def test_tokens_are_long_random_and_never_the_same() -> None:
    tokens = []
    for _ in range(4):
        with serving() as other:
            tokens.append(other.token)
    assert all(len(token) == 32 for token in tokens), "24 random bytes"
    assert all(a != b for a, b in itertools.combinations(tokens, 2))


def test_nobody_outside_this_machine_gets_through(server: LookServer) -> None:
    """The port is open on the loopback address alone: on the machine's others nobody listens."""
    assert server.server_address[0] == HOST
    assert server.socket.getsockname()[0] == HOST
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in {*others, "127.0.0.2"} - {HOST}:
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            sent(server, "GET / HTTP/1.0\r\n\r\n", host=str(address))


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET " + "/" * 70_000 + " HTTP/1.1", 414),
        ("GET / HTTP/1.1\r\n" + "\r\n".join(f"X-{n}: y" for n in range(200)), 431),
        ("GET / HTTP/1.1\r\nX-Long: " + "y" * 70_000, 431),
    ],
)
def test_malformed_requests_are_refused_with_the_same_headers(
    server: LookServer, request_line: str, status: int
) -> None:
    found, headers, body = sent(server, f"{request_line}\r\n\r\n")
    assert found == status
    assert headers.items() >= HEADERS.items()
    assert server.token not in body
    assert "Python" not in headers.get("server", "")


@pytest.mark.parametrize("request_line", ["GET / HTTP/9.9", "nonsense", "<script>alert(1)</script>", "GET"])
def test_a_request_of_no_known_version_gets_an_error_without_headers(server: LookServer, request_line: str) -> None:
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(f"{request_line}\r\n\r\n".encode())
        answer = connection.makefile("rb").read().decode()
    assert json.loads(answer).keys() == {"error"}
    assert server.token not in answer


def test_a_body_must_be_as_long_as_it_says(server: LookServer) -> None:
    there = f"/{server.token}/ask"
    for line in (
        "Content-Length: 1e3",
        "Content-Length: +2",
        "Content-Length: ٣".encode().decode("latin-1"),
        "Transfer-Encoding: chunked",
    ):
        assert asked(server, "POST", there, line)[0] == 411, line
    assert asked(server, "POST", there, f"Content-Length: {LIMITS.body_bytes + 1}")[0] == 413
    assert asked(server, "POST", there, "Content-Length: 50")[0] == 400
