"""Templates matched on the cells of an index, without the scenes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from siamese_sat.data.scene import Scene, open_scene
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index import cells as module
from siamese_sat.search.index.build import build
from siamese_sat.search.index.cells import CellSearch
from siamese_sat.search.index.features import FeatureEncoder
from siamese_sat.search.index.recipe import Recipe
from siamese_sat.search.index.schema import BOX
from siamese_sat.search.index.store import Store
from siamese_sat.search.template import TemplateSearch
from siamese_sat.search.unlike import Unlike
from siamese_sat.searching import OneForAll
from tests.model.conftest import RADIOMETRY
from tests.search.template.planted import BOAT, POOL, draw, error, rows, save, texture

BANDS = [1, 2, 3, 4]
WINDOWS = (64, 128)


@dataclass
class Indexed:
    """Scenes in an index, and a search of all of its windows."""

    model: TrainedModel
    engine: Engine
    store: Store
    encoder: FeatureEncoder

    @classmethod
    def of(cls, folder: Path, model: TrainedModel, engine: Engine, scenes: list[Scene], stride: int = 32) -> Indexed:
        bare = FeatureEncoder(engine, WINDOWS, 64, stride, "layer2")
        encoder = FeatureEncoder(
            engine, WINDOWS, 64, stride, "layer2", bare.fit(scenes, lambda s: RADIOMETRY, 16, 0.3, samples=12)
        )
        recipe = Recipe(
            "features", "w", "m", {}, tuple(BANDS), RADIOMETRY.to_dict(), False, 64, WINDOWS, stride, "layer2", 16, 0.5,
            (stride // 8) ** 2 * 8,
        )  # fmt: skip
        store = Store(str(folder))
        with store.writing():
            store.create(recipe.to_dict(), b"", 16, recipe.cells)
            build(store, [s.path for s in scenes], partial(open_scene, bands=BANDS), encoder, OneForAll(RADIOMETRY))
        return cls(model, engine, store, encoder)

    def hits(self) -> dict[str, pd.DataFrame]:
        entries = self.store.scenes()
        windows = pd.concat([b.to_pandas() for b in self.store.batches(list(BOX))], ignore_index=True)
        return {path: windows[windows.scene == n] for n, path in zip(entries.scene, entries.path, strict=True)}

    def search(self, shown: list[Exemplar], hits: Mapping[str, pd.DataFrame] | None = None) -> CellSearch:
        settings = TemplateSearch(box_scale=1.0, least=0.1)
        method = CellSearch(
            settings, self.store, self.encoder, hits if hits is not None else self.hits(), {"boat": WINDOWS}
        )
        method.prepare(self.model, self.engine, shown, lambda s: RADIOMETRY, [])
        return method


def best(method: CellSearch, scene: Scene, count: int) -> list[tuple[tuple[float, ...], float]]:
    found = suppress(Candidates.join(list(method.candidates(scene, dict.fromkeys(method.classes, 0.0)))), 0.1)
    return [(tuple(b), float(s)) for b, s in zip(found.boxes[:count].tolist(), found.scores[:count], strict=True)]


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Scene, list[tuple[float, float, float, float]]]:
    """Boats of both window sizes, one of them turned."""
    pixels = texture(2, 420, 500)
    boxes = [draw(pixels, BOAT, *p) for p in ((100.4, 90.2, 1.1, 0), (320.7, 130.1, 2, 0), (130, 320, 1.1, 90))]
    return save(tmp_path / "a.tif", pixels), boxes


@pytest.mark.parametrize("stride", [16, 32, 64])
def test_things_are_found_in_their_sizes_when_the_scene_is_gone(
    stride: int,
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    planted: tuple[Scene, list[tuple[float, float, float, float]]],
    tmp_path: Path,
) -> None:
    scene, boxes = planted
    index = Indexed.of(tmp_path / "index", model, engine, [scene], stride)
    Path(scene.path).unlink()
    method = index.search(shown["boat"])
    found = best(method, scene, 4)
    for truth, size in zip(boxes, (1, 2, 1), strict=True):
        away, ratio = min(error(b, truth) for b, _ in found[:3])
        assert away < 5 * size
        assert ratio < 1.25
    assert found[3][1] < 0.5 * found[2][1], "nothing else is like a boat"
    assert found[2][1] > 0.2  # an untrained net


def test_cells_come_back_as_they_were_seen(
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    planted: tuple[Scene, list[tuple[float, float, float, float]]],
    tmp_path: Path,
) -> None:
    scene = planted[0].within([30, 20, 470, 400])
    index = Indexed.of(tmp_path / "index", model, engine, [planted[0]])
    method = index.search(shown["boat"])
    for side in WINDOWS:
        low, high = np.array([-3, 5]), np.array([21, 70])
        found = method._map(planted[0], side, low, high)
        (tile,) = feature_tiles(engine, planted[0], RADIOMETRY, 2 * side, margin=0, tile=1 << 20)
        assert index.encoder.whitening is not None
        seen = index.encoder.whitening.cells(tile.features)
        width, height = seen.shape[2], seen.shape[1]
        # None are kept of the two cells at the border, which are no window's middle, nor beyond.
        assert found[:, :, :5].eq(0).all()
        last = min(height - 2, 70)
        mine, kept = seen[:, 5:last, 2:21], found[:, : last - 5, 5:]
        assert kept.abs().eq(1).all()
        assert width > 21
        assert (torch.sign(mine) == kept).float().mean() > 0.999
    assert scene.aoi != planted[0].aoi


def test_parts_do_not_show(
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    planted: tuple[Scene, list[tuple[float, float, float, float]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = Indexed.of(tmp_path / "index", model, engine, [planted[0]])
    method = index.search(shown["boat"])

    def found() -> Candidates:
        return suppress(Candidates.join(list(method.candidates(planted[0], {"boat": 0.0}))), 0.1)

    whole = found()
    monkeypatch.setattr(module, "TILE", 16)
    assert rows(found()) == pytest.approx(rows(whole), abs=1e-4)


def test_only_what_was_answered_is_looked_at(
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    planted: tuple[Scene, list[tuple[float, float, float, float]]],
    tmp_path: Path,
) -> None:
    scene, boxes = planted
    index = Indexed.of(tmp_path / "index", model, engine, [scene])
    every = index.hits()[scene.path]
    centre = (every.x_min + every.x_max) / 2, (every.y_min + every.y_max) / 2
    near = every[((centre[0] - 100).abs() < 40) & ((centre[1] - 90).abs() < 40)]
    method = index.search(shown["boat"], {scene.path: near})
    whole = best(index.search(shown["boat"]), scene, 3)
    found = best(method, scene, 1)
    # There it is what a look at everything finds, box and score.
    assert min(np.abs(np.array(b) - found[0][0]).max() + abs(s - found[0][1]) for b, s in whole) < 1e-6
    assert error(found[0][0], boxes[0])[0] < 5
    others = best(method, scene, 100)
    assert all(min(error(b, t)[0] for b, _ in others) > 60 for t in boxes[1:])
    assert method.windows(scene) == {"boat": len(near) * 16 * len(method.appears)}
    both = {"there": scene, "nowhere": save(tmp_path / "c.tif", texture(4, 80, 80))}
    several = dict(method.candidates_of(both, {"boat": 0.0}))
    assert list(several) == ["there", "nowhere"]
    assert not len(several["nowhere"].scores)
    alone = Candidates.join(list(method.candidates(scene, {"boat": 0.0})))
    assert np.array_equal(rows(several["there"]), rows(alone))
    elsewhere = save(tmp_path / "b.tif", texture(3, 100, 100))
    assert best(method, elsewhere, 1) == []
    assert method.windows(elsewhere) == {"boat": 0}


def test_what_is_unlike_counts_against_a_place(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    pixels = texture(2, 300, 300)
    boat, pool = draw(pixels, BOAT, 90, 90, 1.1), draw(pixels, POOL, 200, 200, 1.1)
    scene = save(tmp_path / "a.tif", pixels)
    index = Indexed.of(tmp_path / "index", model, engine, [scene])
    plain = index.search(shown["boat"])
    method = Unlike(index.search(shown["boat"]), [Exemplar("not", e.scene, e.box) for e in shown["pool"]])
    method.prepare(model, engine, shown["boat"], lambda s: RADIOMETRY, [])

    def score(found: list[tuple[tuple[float, ...], float]], truth: tuple[float, float, float, float]) -> float:
        return max((s for b, s in found if error(b, truth)[0] < 15), default=0.0)  # type: ignore[arg-type]

    before, after = best(plain, scene, 50), best(method, scene, 50)  # type: ignore[arg-type]
    assert score(after, boat) > 0.8 * score(before, boat)
    assert score(after, pool) < 0.6 * score(before, pool)
    assert method.classes == ["boat"]


@pytest.mark.parametrize(
    ("windows", "sizes"), [((64, 128), 3), ((64,), 3), ((64, 256), 5), ((64, 96, 128), 3), ((16, 4096), 7)]
)
def test_sizes_reach_from_one_window_to_the_next(
    windows: tuple[int, ...], sizes: int, engine: Engine, tmp_path: Path
) -> None:
    encoder = FeatureEncoder(engine, windows, 64, 32, "layer2")
    method = CellSearch(TemplateSearch(), Store(str(tmp_path)), encoder, {}, {})
    assert len(method.appears) == sizes
    assert max(method.appears) <= 72  # a template's cells
