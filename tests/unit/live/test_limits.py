"""Rate and queue: what gets through, what is told to come back, and that nobody's answer is another's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from twn_lightning.live.limits import Limits, RateLimit, Refused
from twn_lightning.live.worker import ModelWorker


def test_a_burst_passes_then_the_rate_counts() -> None:
    now = [0.0]
    rate = RateLimit(2.0, 3, clock=lambda: now[0])
    for _ in range(3):
        rate.take()
    with pytest.raises(Refused, match="more than 2 questions a second") as refusal:
        rate.take()
    assert refusal.value.status == 429
    now[0] += 0.5
    rate.take()
    with pytest.raises(Refused):
        rate.take()
    now[0] += 100
    for _ in range(3):
        rate.take()
    with pytest.raises(Refused):
        rate.take()


def test_the_body_limit_leaves_room_for_the_largest_question() -> None:
    limits = Limits(media_bytes=10, text_characters=4)
    assert limits.body_bytes >= len('{"text": "", "task": "", "media": ""}') + 4 * 12 + 16


def test_places_are_bounded_and_come_back() -> None:
    worker: ModelWorker[int, int] = ModelWorker(lambda value: value, places=2)
    with (
        worker.place(),
        worker.place(),
        pytest.raises(Refused, match="2 questions are held") as refusal,
        worker.place(),
    ):
        pass
    assert refusal.value.status == 503
    with worker.place():
        assert worker.run(1) == 1
    worker.close()


def test_one_thread_answers_and_every_caller_gets_its_own_answer() -> None:
    threads = set()

    def square(value: int) -> int:
        threads.add(threading.get_ident())
        return value * value

    worker = ModelWorker(square, places=64)
    with ThreadPoolExecutor(16) as callers:
        answers = list(callers.map(worker.run, range(200)))
    worker.close()
    assert answers == [value * value for value in range(200)]
    assert len(threads) == 1


def test_an_error_reaches_its_caller_and_the_worker_lives_on() -> None:
    worker: ModelWorker[int, float] = ModelWorker(lambda value: 1 / value, places=2)
    with pytest.raises(ZeroDivisionError):
        worker.run(0)
    assert worker.run(2) == 0.5
    worker.close()
