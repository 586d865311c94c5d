"""A scene's windows read and embedded, here or by workers, for the one process that writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import in_order
from siamese_sat.search.index.encoder import Encoded, Encoder
from siamese_sat.search.index.entry import Signature, scene_date, signature
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.run import Workers


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

    def begin(self, path: str) -> tuple[Head, Iterator[Encoded]]:
        """Looks a scene up; its windows are made as they are asked for."""
        scene = self.open_scene(path)
        head = Head(path, scene, signature(path), scene_date(path))
        return head, self.encoder.scene(scene, self.radiometry_of(scene))

    def __call__(self, item: PathItem) -> tuple[Head, list[Encoded]]:
        """All windows of a scene; vectors as they are kept, which is half of what they are computed in."""
        head, parts = self.begin(item.path)
        return head, [replace(part, vectors=part.vectors.astype(np.float16)) for part in parts]


@dataclass(frozen=True)
class PathItem:
    """A scene for one worker."""

    path: str


Reading = Callable[[], tuple[Head, Iterable[Encoded]]]


def readings(paths: Sequence[str], embed: Embed, workers: Workers | None) -> Iterator[Reading]:
    """For each scene a way to its windows, which fails where the scene cannot be read."""
    if workers is None:
        yield from (partial(embed.begin, path) for path in paths)
        return
    for _, result in in_order(workers.pool.run(embed, [PathItem(path) for path in paths])):
        yield partial(_told, result)


def _told(result: tuple[Head, list[Encoded]] | InputError) -> tuple[Head, list[Encoded]]:
    if isinstance(result, InputError):
        raise result
    return result
