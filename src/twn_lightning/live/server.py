"""The page's server: on this machine only, behind a random token, within limits."""

from __future__ import annotations

import json
import logging
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from twn_lightning.errors import DataError
from twn_lightning.live.limits import Limits, RateLimit, Refused
from twn_lightning.live.question import Question, read_question
from twn_lightning.live.worker import ModelWorker

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_CHUNK = 65536
_DRAIN_SECONDS = 10.0
_SILENT_SECONDS = 2.0


class LookServer(ThreadingHTTPServer):
    """Serves one page and answers its questions; one thread a connection, one for the model.

    Args:
        page: HTML.
        policy: its content security policy.
        answer: a question to plain values; called in one thread only.
        tasks: that a question may name.
        port: 0 takes a free one.
        limits: bounds.

    Raises:
        OSError: the port is taken, or not ours to take.
    """

    daemon_threads = True
    request_queue_size = 128
    """Connections that the system holds until they are taken; those beyond would stall."""

    def __init__(
        self,
        page: str,
        policy: str,
        answer: Callable[[Question], dict[str, Any]],
        tasks: list[str],
        port: int = 0,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.token = secrets.token_urlsafe(24)
        self.page, self.policy, self.tasks = page.encode(), f"{policy}; frame-ancestors 'none'", tasks
        self.rate = RateLimit(self.limits.asks_per_second, self.limits.burst)
        self.worker: ModelWorker[Question, dict[str, Any]] = ModelWorker(answer, self.limits.places)
        self._connections = threading.BoundedSemaphore(self.limits.connections)
        self._refusals = threading.BoundedSemaphore(self.limits.connections)
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        """Where the page is, token included."""
        return f"http://{HOST}:{self.server_address[1]}/{self.token}/"

    @property
    def hosts(self) -> set[str]:
        """Names of this server: a page of another name that resolves here does not get through."""
        return {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give the connection a thread: to serve it, or, where there are too many, to turn it away."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        self._refusals.acquire()  # for seconds at most, and others wait in the system's queue meanwhile
        threading.Thread(target=self._turn_away, args=(request, client_address), daemon=True).start()

    def _turn_away(self, request: Any, client_address: Any) -> None:
        try:
            _TurnedAway(request, client_address, self)
        except Exception:
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
            self._refusals.release()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error of ours; anything else is, and is shown."""
        if isinstance(sys.exc_info()[1], OSError):
            log.debug("connection lost", exc_info=True)
        else:
            log.exception("the live page could not answer a request")

    def server_close(self) -> None:
        """Stop listening; the question being answered is finished, those that wait are dropped."""
        super().server_close()
        self.worker.close()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: LookServer
    timeout = 30
    """Seconds without a byte."""

    def do_GET(self) -> None:
        """The page."""
        self._serve(self._get)

    def do_POST(self) -> None:
        """A question."""
        self._serve(self._post)

    def _serve(self, handle: Callable[[], None]) -> None:
        """Handle a request, and turn what it raises into an answer."""
        try:
            self._admit()
            handle()
        except Refused as refusal:
            self._fail(refusal.status, str(refusal))
        except DataError as error:
            self._fail(400, str(error))
        except TimeoutError:
            self._fail(408, f"nothing came for {self.timeout} seconds")
        except ConnectionError:  # the client is gone
            raise
        except Exception as error:
            log.exception("a question failed")
            self._fail(500, f"the model failed on this question ({type(error).__name__}); the terminal says why")

    def _admit(self) -> None:
        """Refuse what does not come from the page itself.

        Raises:
            Refused: 403.
        """
        if self.headers.get("Host") not in self.server.hosts:
            raise Refused(403, f"this page is served as {HOST} only, not as the host that was asked for")
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            raise Refused(403, "questions are taken from the page itself only")
        if not secrets.compare_digest(self._parts()[0].encode(), self.server.token.encode()):
            raise Refused(403, "wrong or missing token: open the address that `twn inspect` printed")

    def _parts(self) -> tuple[str, str]:
        """The token and what comes after it."""
        token, _, rest = self.path.partition("?")[0].lstrip("/").partition("/")
        return token, rest

    def _get(self) -> None:
        if self._parts()[1]:
            raise Refused(404, "there is nothing at this address")
        self._send(200, self.server.page, "text/html; charset=utf-8")

    def _post(self) -> None:
        if self._parts()[1] != "ask":
            raise Refused(404, "there is nothing at this address")
        length = self._length()
        self.server.rate.take()
        with self.server.worker.place():
            question = read_question(self._body(length), self.server.tasks, self.server.limits)
            answer = self.server.worker.run(question)
        self._send(200, json.dumps(answer, allow_nan=False).encode(), "application/json")

    def _length(self) -> int:
        """Bytes of the body, before any is read.

        Raises:
            Refused: 411, 413 or 415.
        """
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "a question is sent as application/json")
        stated = self.headers.get("Content-Length", "")
        if not (stated.isascii() and stated.isdecimal()) or "Transfer-Encoding" in self.headers:
            raise Refused(411, "a question needs a Content-Length")
        if len(stated) > 12 or int(stated) > self.server.limits.body_bytes:
            limit = self.server.limits.media_bytes
            raise Refused(413, f"the question is too large: files of at most {limit / 1e6:g} MB are taken")
        return int(stated)

    def _body(self, length: int) -> bytes:
        """The body, which must arrive within a time."""
        until = time.monotonic() + self.server.limits.body_seconds
        parts: list[bytes] = []
        while length > 0:
            part = self.rfile.read1(min(length, _CHUNK))
            if not part:
                raise Refused(400, "the question ended before its Content-Length")
            if time.monotonic() > until:
                raise Refused(408, f"the question did not arrive within {self.server.limits.body_seconds:g} seconds")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _fail(self, status: int, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self._send(status, content, "application/json")
        self._drain()

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", self.server.policy)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if status in (429, 503):
            self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(content)

    def _drain(self) -> None:
        """Throw away what a refused client still sends: were it cut off at once, it might never read the answer."""
        until = time.monotonic() + _DRAIN_SECONDS
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(_SILENT_SECONDS)
            while time.monotonic() < until and self.rfile.read1(_CHUNK):
                pass

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the library itself refuses, such as an unknown method, in the same form."""
        self._send(code, json.dumps({"error": message or HTTPStatus(code).phrase}).encode(), "application/json")

    def version_string(self) -> str:
        """No versions for strangers."""
        return "twn"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: request lines hold the token."""


class _TurnedAway(_Handler):
    """A connection beyond the limit."""

    def handle(self) -> None:
        """Say no without reading what is asked."""
        self.requestline, self.request_version = "", self.protocol_version
        self._fail(503, f"all {self.server.limits.connections} connections are taken: ask again in a moment")
