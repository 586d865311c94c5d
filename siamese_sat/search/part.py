"""A scene's tiles in parts, for several workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
# Number of a part, from 0, and how many parts there are.
Part = tuple[int, int]


def share(things: Sequence[T], part: Part) -> Sequence[T]:
    """One of nearly equal runs of a sequence; all of them, in their order, are the sequence."""
    number, parts = part
    return things[number * len(things) // parts : (number + 1) * len(things) // parts]
