"""An index small enough to know by heart, and an encoder that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader, open_scene
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index.build import Built, build
from siamese_sat.search.index.encoder import Encoded
from siamese_sat.search.index.entry import scene_path
from siamese_sat.search.index.recipe import Recipe
from siamese_sat.search.index.schema import MAP, scene_schema
from siamese_sat.search.index.store import Store
from siamese_sat.search.part import Part, share
from siamese_sat.search.run import Workers
from siamese_sat.searching import OneForAll
from tests.conftest import write_scene

RADIOMETRY = Radiometry(("PAN",), 255.0, (0.5,), (0.2,))
RECIPE = Recipe(
    "features", "abc", "ckpt_path=best.ckpt", {}, (1,), RADIOMETRY.to_dict(), False, 64, (16,), 32, "layer2", 8, 0.5
)


@dataclass(frozen=True)
class Columns:
    """Windows of 16 pixels, half overlapping; a vector is the eight means of its columns, two by two, over 100."""

    windows: Sequence[int] = (16,)

    def scene(self, scene: Scene, radiometry: Radiometry, part: Part = (0, 1)) -> Iterator[Encoded]:
        x0, y0, x1, y1 = scene.aoi
        for y in share(range(y0, y1 - 15, 8), part):
            with SceneReader(scene) as reader:
                pixels, valid = reader.read(x0, y, x1 - x0, 16)
            places = np.arange(0, x1 - x0 - 15, 8)
            vectors = np.stack([vector(pixels[0, :, x : x + 16]) for x in places])
            boxes = np.stack([x0 + places, np.full(len(places), y), x0 + places + 16, np.full(len(places), y + 16)], 1)
            held = np.array([valid[:, x : x + 16].mean() for x in places])
            yield Encoded(boxes.astype(float), held, vectors, 16)

    def exemplar(self, exemplar: Exemplar, radiometry: Radiometry, scale: int) -> npt.NDArray[np.float32]:
        x, y = (round((exemplar.box[i] + exemplar.box[i + 2]) / 2 - 8) for i in (0, 1))
        with SceneReader(exemplar.scene) as reader:
            pixels, _ = reader.read(x, y, 16, 16)
        return vector(pixels[0])[None]


def vector(pixels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    means = pixels.astype(np.float32).mean(axis=0).reshape(8, 2).mean(axis=1) - 127
    return np.asarray(means / max(float(np.linalg.norm(means)), 1e-6), np.float32)


class Written(Store):
    """A store that remembers its rows in the order in which they came."""

    def add_windows(self, rows: pa.Table) -> None:
        self.written = [*getattr(self, "written", []), rows]
        super().add_windows(rows)

    @property
    def rows(self) -> pa.Table:
        return pa.concat_tables(self.written).combine_chunks()


def new_store(path: Path, dimensions: int = 8) -> Written:
    store = Written(str(path))
    store.create({**RECIPE.to_dict(), "dimensions": dimensions}, b"tensors", dimensions)
    return store


def fill(store: Store, paths: Sequence[Path | str], **options: Any) -> Built:  # noqa: ANN401 - of build
    with store.writing():
        return build(
            store, [str(p) for p in paths], lambda p: open_scene(p, [1]), Columns(), lambda s: RADIOMETRY, **options
        )


def filled_index(folder: Path, scenes: Path, workers: Workers | None) -> pa.Table:
    """The rows of a new index of three scenes, in their order; its work can be sent to other processes."""
    paths = [scenes / f"{number}.tif" for number in range(3)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(1, 255, (1, 48, 40 + 8 * number))
        if not path.exists():
            write_scene(path, pixels.astype("uint8"))
    store = new_store(folder)
    with store.writing():
        build(
            store, list(map(str, paths)), partial(open_scene, bands=[1]), Columns(), OneForAll(RADIOMETRY),
            workers=workers,
        )  # fmt: skip
    return store.rows


def contents(store: Store) -> dict[str, list[tuple[float, ...]]]:
    """By path, every window's box and vector, in a fixed order."""
    paths = dict(zip(store.scenes().scene, store.scenes().path, strict=True))
    found: dict[str, list[tuple[float, ...]]] = {path: [] for path in paths.values()}
    for batch in store.batches(["scene", "x_min", "y_min", "scale", "valid", "vector"]):
        for row in batch.to_pylist():
            if row["scene"] in paths:  # others are of a scene that has no entry yet
                found[paths[row["scene"]]].append(
                    (row["y_min"], row["x_min"], row["scale"], row["valid"], *map(float, row["vector"]))
                )
    return {path: sorted(rows) for path, rows in found.items()}


def entry(number: int, path: str, windows: int, day: date | None = None, about: str = "", **bounds: float) -> pa.Table:
    row = {
        "scene": number, "path": scene_path(path), "size": 1, "modified": 1, "header": "", "windows": windows,
        "date": day, "about": about, **{c: bounds.get(c) for c in MAP},
    }  # fmt: skip
    return pa.Table.from_pylist([row], schema=scene_schema())
