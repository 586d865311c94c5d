from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from siamese_sat.errors import InputError
from siamese_sat.search.ahead import ahead


@pytest.mark.parametrize("depth", [1, 2, 5, 100])
def test_the_same_items_in_the_same_order(depth: int) -> None:
    assert list(ahead((i for i in range(50)), depth)) == list(range(50))
    assert list(ahead((i for i in ()), depth)) == []


def test_all_of_it_runs_in_one_other_thread() -> None:
    seen: list[int] = []

    def items() -> Generator[int, None, None]:
        seen.append(threading.get_ident())
        try:
            for i in range(3):
                yield i
                seen.append(threading.get_ident())
        finally:
            seen.append(threading.get_ident())

    assert list(ahead(items())) == [0, 1, 2]
    assert len(seen) == 5
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen


def test_an_error_comes_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise InputError("a.tif cannot be read.")

    found: list[int] = []
    with pytest.raises(InputError, match=r"^a.tif cannot be read\.$"):
        found.extend(ahead(items()))
    assert found == [1, 2]


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_than_asked_for(depth: int) -> None:
    made: list[int] = []
    reached = threading.Event()

    def items() -> Generator[int, None, None]:
        for i in range(100):
            made.append(i)
            if i == depth:
                reached.set()
            yield i

    running = ahead(items(), depth)
    assert next(running) == 0
    assert reached.wait(10)
    # One in use, and `depth` made beyond it; the thread waits for room now.
    assert len(made) <= depth + 1
    assert next(running) == 1


def test_closed_early_it_closes_what_it_reads_before_it_returns() -> None:
    closed: list[bool] = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    before = threading.active_count()
    running = ahead(items(), 2)
    assert next(running) == 0
    running.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert threading.active_count() == before
