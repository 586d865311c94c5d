"""A scene's windows read and embedded, here or by workers, for the one process that writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import in_order
from siamese_sat.search.index.encoder import Encoded, Encoder
from siamese_sat.search.index.entry import Signature, scene_date, signature, to_json
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.part import Part
from siamese_sat.search.run import Workers

# Scenes that are looked up at a time, to share them out.
LOOKING = 16


@dataclass(frozen=True)
class Head:
    """What is known of a scene before its pixels are read.

    Attributes:
        path: under which it is known.
        scene: looked up.
        signature: of the file; one that is written to while it is read is seen as changed the next time.
        date: on which it was taken.
    """

    path: str
    scene: Scene
    signature: Signature
    date: date | None


@dataclass(frozen=True)
class Embed:
    """What a worker does: see `siamese_sat.scaleout.pool.Work`.

    Attributes:
        open_scene: looks a scene up.
        encoder: as the index was made with.
        radiometry_of: normalises a scene.
    """

    open_scene: Callable[[str], Scene]
    encoder: Encoder
    radiometry_of: RadiometryOf

    def begin(self, path: str, part: Part = (0, 1)) -> tuple[Head, Iterator[Encoded]]:
        """Looks a scene up; its windows, or those of a part, are made as they are asked for."""
        scene = self.open_scene(path)
        head = Head(path, scene, signature(path), scene_date(path))
        return head, self.encoder.scene(scene, self.radiometry_of(scene), part)

    def __call__(self, item: PathItem) -> Portion:
        """All windows of an item; vectors as they are kept, which is half of what they are computed in."""
        head, parts = self.begin(item.path, item.part)
        return head, [replace(part, vectors=part.vectors.astype(np.float16)) for part in parts]


@dataclass(frozen=True)
class PathItem:
    """A scene, or a part of its tiles, for one worker."""

    path: str
    part: Part = (0, 1)


Portion = tuple[Head, list[Encoded]]
Reading = Callable[[], tuple[Head, Iterable[Encoded]]]


def readings(paths: Sequence[str], embed: Embed, workers: Workers | None) -> Iterator[Reading]:
    """For each scene a way to its windows, which fails where the scene cannot be read."""
    if workers is None:
        yield from (partial(embed.begin, path) for path in paths)
        return
    items = _shared_out(paths, embed, workers.split_mpx)
    held: list[Portion | InputError] = []
    for number, result in in_order(workers.pool.run(embed, items)):
        held.append(result)
        if len(held) == items[number].part[1]:
            yield partial(_gathered, held, embed.encoder.windows)
            held = []


def _shared_out(paths: Sequence[str], embed: Embed, split_mpx: float) -> list[PathItem]:
    """Scenes in their order, large ones in parts."""
    if math.isinf(split_mpx):
        return [PathItem(path) for path in paths]

    def parts(path: str) -> int:
        try:
            return max(1, math.ceil(embed.open_scene(path).megapixels / split_mpx))
        except InputError:
            return 1  # said by the worker that gets it

    # In an object store each takes a moment, in which nothing is computed yet.
    with ThreadPoolExecutor(LOOKING) as threads:
        return [
            PathItem(path, (number, count))
            for path, count in zip(paths, threads.map(parts, paths), strict=True)
            for number in range(count)
        ]


def _gathered(portions: Sequence[Portion | InputError], windows: Sequence[int]) -> Portion:
    """A scene's windows in the order in which one worker alone would have given them.

    Raises:
        InputError: a part cannot be read, or the file was changed between two of them.
    """
    good: list[Portion] = []
    for portion in portions:
        if isinstance(portion, InputError):
            raise portion
        good.append(portion)
    head = good[0][0]
    # As text, for a scene whose nodata value is NaN is not equal to itself.
    if len({(to_json(other.scene), other.signature) for other, _ in good}) > 1:
        raise InputError(f"{head.path} was changed while it was read; index it again.")
    every = [part for _, parts in good for part in parts]
    # Every part has all sizes, the scene has one after the other; the sort keeps the parts' order.
    return head, sorted(every, key=lambda part: windows.index(part.scale))
