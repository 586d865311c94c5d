"""What is sent to workers in the tests; they import it from here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import Item, Work, attempt
from siamese_sat.scaleout.ship import pack, unpack
from siamese_sat.search.detect import Candidates
from siamese_sat.search.method import Divisible, SearchMethod


@dataclass(frozen=True)
class Number:
    value: int

    @property
    def path(self) -> str:
        return f"number {self.value}"


@dataclass
class Square:
    """Squares on a device; says where it computed. Some numbers fail, kill their process, or kill it once."""

    factor: Tensor = field(default_factory=lambda: torch.ones(1))
    bad: tuple[int, ...] = ()
    deadly: tuple[int, ...] = ()
    once: Path | None = None
    seconds: float = 0.0

    def __call__(self, item: Number) -> tuple[int, int]:
        if item.value in self.bad:
            raise InputError(f"{item.path} is bad.")
        if item.value in self.deadly:
            if self.once is None:
                os.kill(os.getpid(), signal.SIGKILL)
            elif not self.once.exists():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return int(item.value**2 * self.factor.item()), os.getpid()


@dataclass
class Meeting:
    """Another work, begun when what a number waits for is there: a file such as a number's own, made when it comes."""

    work: Work
    folder: Path
    waits: dict[int, str]
    seconds: float = 120.0

    def __call__(self, item: Number) -> Any:  # noqa: ANN401 - the other's
        (self.folder / str(item.value)).touch()
        end = time.monotonic() + self.seconds
        while item.value in self.waits and not (self.folder / self.waits[item.value]).exists():
            if time.monotonic() > end:
                raise InputError(f"{item.path} has waited for {self.waits[item.value]} in vain.")
            time.sleep(0.01)
        return self.work(item)


@dataclass
class Backwards:
    """A pool that does the last item first, each with a copy of the work that has been packed and unpacked."""

    asked: list[Item] = field(default_factory=list)

    def run(self, work: Work, items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        data = pack(work)
        self.asked += items
        for number in reversed(range(len(items))):
            yield number, attempt(unpack(data, torch.device("cpu")), items[number])


@dataclass
class Deadly:
    """Another method, which takes its time, and kills its process at a scene of this name."""

    method: SearchMethod
    name: str = ""
    seconds: float = 0.0

    @property
    def classes(self) -> list[str]:
        return self.method.classes

    def windows(self, scene: Scene) -> dict[str, int]:
        return self.method.windows(scene)

    def prepare(self, *args: Any) -> None:  # noqa: ANN401 - as it is
        self.method.prepare(*args)

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        yield from self.some(scene, thresholds, (0, 1))

    def some(self, scene: Scene, thresholds: Mapping[str, float], part: tuple[int, int]) -> Iterator[Candidates]:
        if scene.name == self.name:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        assert isinstance(self.method, Divisible)
        yield from self.method.some(scene, thresholds, part)

    def whole(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        assert isinstance(self.method, Divisible)
        return self.method.whole(found, thresholds)
