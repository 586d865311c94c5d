"""What is shared out, and how its results come back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch

from siamese_sat.errors import InputError

T = TypeVar("T")

# Items for each worker that may be begun past the first that is not done: their results wait in this process's memory.
AHEAD = 16


class Item(Protocol):
    """A piece of work that can be sent to another process."""

    @property
    def path(self) -> str:
        """Of the scene that it is about, for who reads that it failed."""


class Work(Protocol):
    """What is done with every item; it is sent once to each worker, see `siamese_sat.scaleout.ship`."""

    def __call__(self, item: Any) -> Any:  # noqa: ANN401 - each work has items and results of its own
        """The result of an item.

        Raises:
            InputError: the item cannot be worked on; the others can.
        """


class Pool(Protocol):
    """Workers, each with a device of its own."""

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        """Does all items, each by one worker, and gives each result once.

        Args:
            work: its tensors and models move to the worker's device.
            items: begun in their order.

        Returns:
            Number of the item and its result, or the `InputError` that it raised, in the order in which they are done.
        """


def attempt(work: Work, item: Item) -> Any:  # noqa: ANN401 - whatever the work gives
    """The result of an item, or the `InputError` that it raised."""
    try:
        return work(item)
    except InputError as error:
        return error


def in_order(done: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
    """The same results by their number; one that comes early waits in memory."""
    early: dict[int, T] = {}
    following = 0
    for number, result in done:
        early[number] = result
        while following in early:
            yield following, early.pop(following)
            following += 1


def set_threads(threads: int) -> None:
    """Threads that this process computes with."""
    torch.set_num_threads(threads)


def threads_of(cores: int) -> int:
    """Threads for a worker that has so many cores, such that its results are those of this process to the last bit.

    In fp32, PyTorch computes 1 x 1 convolutions in one way with a single thread and in another with any number of them.
    So a worker of one core has two threads, if this process has more than one: on one core they take turns, which was
    measured to be no slower.
    """
    return 1 if torch.get_num_threads() == 1 else max(2, cores)
