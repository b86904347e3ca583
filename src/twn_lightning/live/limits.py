"""What the page accepts, how much and how often, and how it says no."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from twn_lightning.errors import TWNError


class Refused(TWNError):
    """A request that is not served.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """Bounds that keep memory, time and the model's queue finite."""

    media_bytes: int = 20_000_000
    text_characters: int = 4000
    frame_pixels: int = 3840 * 2160
    """Of a video; images have the loader's own limit."""
    asks_per_second: float = 5.0
    burst: int = 20
    """Questions at once before the rate counts."""
    places: int = 8
    """Questions held at a time, the one being answered included."""
    connections: int = 64
    body_seconds: float = 60.0
    """For a question to arrive."""

    @property
    def body_bytes(self) -> int:
        """A question as JSON: media in base64, which takes 4 bytes for 3, and text, whose characters take up to 12."""
        return 4 * (self.media_bytes // 3 + 1) + 12 * self.text_characters + 1024


class RateLimit:
    """A token bucket, shared by all connections.

    Args:
        per_second: what comes back.
        burst: what it holds.
        clock: seconds that never go back.
    """

    def __init__(self, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._left, self._seen = float(burst), clock()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Count one question.

        Raises:
            Refused: 429, the bucket is empty.
        """
        with self._lock:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._seen) * self._per_second)
            self._seen = now
            if self._left < 1:
                raise Refused(429, f"more than {self._per_second:g} questions a second: wait a moment and ask again")
            self._left -= 1
