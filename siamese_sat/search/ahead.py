"""Reading ahead: what an iterator gives is made in a thread of its own while the last of it is still worked on."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Generator[T, None, None], depth: int = 2) -> Generator[T, None, None]:
    """The same items in the same order, made up to ``depth`` items ahead.

    The whole generator runs in one thread, from its first line to its last ``finally``: files that it opens belong to
    that thread. What it raises is raised here, in the place of the item that it did not give. Closed early, it is
    stopped and waited for, so that no file stays open.

    Args:
        items: not begun yet.
        depth: items, at most, that are made or waiting; 1 or more. So many are held in memory beside the one in use.
    """
    made: queue.SimpleQueue[tuple[bool, T | BaseException | None]] = queue.SimpleQueue()
    room, stopped = threading.Semaphore(depth), threading.Event()

    def work() -> None:
        try:
            with contextlib.closing(items):
                room.acquire()
                while not stopped.is_set():
                    made.put((True, next(items)))
                    room.acquire()
        except StopIteration:
            made.put((False, None))
        except BaseException as error:  # the other thread's to judge
            made.put((False, error))

    worker = threading.Thread(target=work, name="ahead", daemon=True)
    worker.start()
    try:
        while True:
            more, got = made.get()
            if not more:
                if isinstance(got, BaseException):
                    raise got
                return
            room.release()
            yield got  # type: ignore[misc]
            del got  # one item less in memory while the next is awaited
    finally:
        stopped.set()
        room.release()
        worker.join()
