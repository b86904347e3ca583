"""One thread for the model, and a bounded number of places before it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

from twn_lightning.live.limits import Refused

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class ModelWorker(Generic[Question, Answer]):
    """Answers one question at a time, in the order in which they came.

    Args:
        answer: the work; runs in the worker's thread only.
        places: questions held at a time, the one being answered included.
    """

    def __init__(self, answer: Callable[[Question], Answer], places: int) -> None:
        self._answer = answer
        self._places = threading.BoundedSemaphore(places)
        self._count = places
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place in the queue, taken before a question is read so that what waits in memory is bounded.

        Raises:
            Refused: 503, all places are taken.
        """
        if not self._places.acquire(blocking=False):
            raise Refused(503, f"the model is busy and {self._count} questions are held already: ask again in a moment")
        try:
            yield
        finally:
            self._places.release()

    def run(self, question: Question) -> Answer:
        """The answer to one question, once those before it are answered."""
        return self._thread.submit(self._answer, question).result()

    def close(self) -> None:
        """Drop the questions that wait; the one being answered is finished."""
        self._thread.shutdown(wait=True, cancel_futures=True)
