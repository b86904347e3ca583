"""A headless Chromium driven over the WebDriver protocol, which is plain HTTP: no client library is needed."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium: apt-get install chromium chromium-driver"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The protocol's name for a reference to an element."""
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Browser:
    """One window.

    Args:
        session: address of the driver's session.
    """

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, address: str) -> None:
        _call("POST", f"{self._session}/url", {"url": address})

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns in the page; `arguments[0]` and so on are its arguments."""
        return _call("POST", f"{self._session}/execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        """The text of every element that is shown."""
        script = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility())"
        return list(self.run(f"{script}.map(e => e.textContent)", selector))

    def click(self, selector: str) -> None:
        _call("POST", f"{self._session}/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Type into an element; of a file field, the path of a file."""
        _call("POST", f"{self._session}/element/{self._find(selector)}/value", {"text": text})

    def keys(self, *keys: str) -> None:
        """Press and release keys, one after another, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        _call("POST", f"{self._session}/actions", body)

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Until an expression of the page is true."""
        until = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < until, f"not within {seconds:g} s: {condition}"
            time.sleep(0.05)

    def show(self, width: int, height: int, scheme: str = "light", media: str = "screen") -> None:
        """Size of the page, its colour scheme, and the medium: screen or print."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        # Smooth scrolling would move what is about to be clicked.
        wanted = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self._devtools("Emulation.setEmulatedMedia", {"media": media, "features": features})

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(_call("GET", f"{self._session}/screenshot")))
        return path

    def console(self) -> list[str]:
        """What has landed on the console since the last call: errors, refusals of the content policy."""
        return [entry["message"] for entry in _call("POST", f"{self._session}/se/log", {"type": "browser"})]

    def _find(self, selector: str) -> str:
        found = _call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def _devtools(self, command: str, values: dict[str, Any]) -> None:
        _call("POST", f"{self._session}/goog/cdp/execute", {"cmd": command, "params": values})


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile; it and its driver are gone afterwards."""
    assert CHROMIUM is not None
    assert DRIVER is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _until_ready(lambda: _call("GET", f"{address}/status")["ready"])
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = _call("POST", f"{address}/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        yield Browser(f"{address}/session/{session}")
        _call("DELETE", f"{address}/session/{session}")
    finally:
        driver.terminate()
        driver.wait()


def _until_ready(ready: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except urllib.error.URLError:
            pass
        assert time.monotonic() < until, "chromedriver did not start"
        time.sleep(0.05)


def _call(method: str, address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error
