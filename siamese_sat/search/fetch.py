"""Results on their way from a GPU, while it is given the next work: to wait for each at once would leave it idle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Fetched:
    """A tensor that is being copied to host memory; one that lies there already is taken as it is.

    Args:
        tensor: of any shape, on any device; it must not be changed afterwards.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.device.type == "cuda":
            # Only into pinned memory can it be copied while the thread goes on.
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(tensor.device))
        elif tensor.device.type != "cpu":
            self._host = tensor.cpu()

    def get(self) -> Tensor:
        """The tensor in host memory, when it is there: what was asked of the GPU later is not waited for."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order, each when the next has been made."""
    held: list[T] = []
    for item in items:
        held.append(item)
        if len(held) > 1:
            yield held.pop(0)
    yield from held
