from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search.background import SIDE, Sample, good_deep, sample_background
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.engine import Engine
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY, tiny_embedder

UNIT_SIDE = SIDE * 8  # level pixels of a sample in layer2
ALL = 10_000  # a tile larger than any scene here


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small mostly wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(DeployedEmbedder(tiny_embedder().eval()), torch.device("cpu"))


def noise(path: Path, height: int, width: int, seed: int = 0, hole: tuple[slice, slice] | None = None) -> Scene:
    pixels = np.random.default_rng(seed).normal(1000, 400, (4, height, width)).clip(1, None).round().astype("uint16")
    if hole is not None:
        pixels[:, hole[0], hole[1]] = 0
    return make_scene(path, pixels, nodata=0)


def drawn(
    engine: Engine,
    scenes: Sequence[Scene],
    steps: Sequence[int],
    count: int,
    seed: int = 0,
    deep: str | None = None,
) -> list[Sample]:
    return list(sample_background(engine, scenes, lambda s: RADIOMETRY, steps, "layer2", count, seed, deep))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """410 x 500 pixels; at 128 scene pixels to the level's, 5.6 samples cover it."""
    return noise(tmp_path_factory.mktemp("background") / "noise.tif", 410, 500)


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [
        ([128], 4, 4),
        ([128], 100, math.ceil(410 * 500 / UNIT_SIDE**2)),
        ([256, 128, 200], 100, math.ceil(410 * 500 / UNIT_SIDE**2)),  # by the finest
        ([64], 100, math.ceil(4 * 410 * 500 / UNIT_SIDE**2)),
        ([500, 600, 700], 100, 3),  # one of each level though one would cover the scene
        ([500, 600, 700], 2, 2),
    ],
)
def test_as_many_as_asked_for_and_no_more_than_cover_the_scenes(
    engine: Engine, scene: Scene, steps: list[int], count: int, expected: int
) -> None:
    assert len(drawn(engine, [scene], steps, count)) == expected


def test_levels_are_taken_in_turn(engine: Engine, scene: Scene) -> None:
    for seed in range(4):
        found = Counter(s.step for s in drawn(engine, [scene], [100, 128, 150], 8, seed))
        assert found == {100: 3, 128: 3, 150: 2}


def test_the_same_seed_draws_the_same_places(engine: Engine, scene: Scene) -> None:
    one, two, other = (drawn(engine, [scene], [100, 128], 5, seed) for seed in (3, 3, 4))
    assert [s.step for s in one] == [s.step for s in two]
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.good, b.good)
    assert not all(
        a.features.shape == b.features.shape and torch.allclose(a.features, b.features)
        for a, b in zip(one, other, strict=True)
    )


def test_scenes_are_drawn_by_their_area_and_read_one_after_the_other(
    engine: Engine, scene: Scene, tmp_path: Path
) -> None:
    """Three quarters of the area are empty, hence of the places: these are left out."""
    empty = make_scene(tmp_path / "empty.tif", np.zeros((4, 400, 600), "uint16"), nodata=0)
    asked: list[Scene] = []

    def radiometry_of(scene: Scene) -> Radiometry:
        asked.append(scene)
        return RADIOMETRY

    scenes = [scene.within((0, 0, 200, 200)), empty, scene.within((200, 200, 400, 400))]
    found = list(sample_background(engine, scenes, radiometry_of, [32], "layer2", 60))
    assert asked == scenes, "each once"
    assert 8 <= len(found) <= 22


def test_a_sample_is_a_part_of_the_scenes_feature_map(engine: Engine, scene: Scene) -> None:
    margin = math.ceil(engine.embedder.backbone.reach("layer2") / 8) + 1
    for sample in drawn(engine, [scene], [100, 128, 150], 5):
        (tile,) = feature_tiles(engine, scene, RADIOMETRY, sample.step, margin=margin, tile=ALL)
        cells = tile.features[:, margin:-margin, margin:-margin]
        y, x = place_of(sample.features, cells)
        part = cells[:, y : y + SIDE, x : x + SIDE]
        torch.testing.assert_close(sample.features, part, rtol=0, atol=1e-4)
        assert sample.features.shape[1:] == (SIDE, SIDE)
        np.testing.assert_array_equal(sample.good.numpy(), tile.valid[y : y + SIDE, x : x + SIDE])
        assert min(y, x) >= 1, "the first cell lies half beyond the scene"


def place_of(part: Tensor, cells: Tensor) -> tuple[int, int]:
    """Row and column of the first cell of ``[C, h, w]`` in ``[C, H, W]``."""
    away = (cells - part[:, :1, :1]).abs().amax(0)
    return divmod(int(away.argmin()), away.shape[1])


def test_places_lie_all_over_an_area_of_interest(engine: Engine, scene: Scene) -> None:
    area = scene.within((50, 20, 470, 390))
    (tile,) = feature_tiles(engine, area, RADIOMETRY, 64, margin=8, tile=ALL)
    cells = tile.features[:, 8:-8, 8:-8]
    places = np.array([place_of(s.features, cells) for s in drawn(engine, [area], [64], 30)])
    room = np.array(cells.shape[1:]) - SIDE
    assert len(places) == math.ceil(4 * 370 * 420 / UNIT_SIDE**2)
    assert (places >= 1).all()
    assert (places <= room).all()
    assert (np.ptp(places, axis=0) > 0.7 * room).all()


@pytest.mark.parametrize("step", [100, 128, 167])
def test_scenes_smaller_than_a_sample(engine: Engine, scene: Scene, step: int) -> None:
    """Valid throughout: a scene a little larger than what is sought has a background as well."""
    small = scene.within((0, 0, 130, 140))
    (sample,) = drawn(engine, [small], [step], 1)
    level = [-(-n * 128 // step) for n in (140, 130)]
    assert sample.features.shape[1:] == tuple(n // 8 - 1 for n in level)
    assert sample.good.all()
    assert sample.deep is None


@pytest.mark.parametrize("side", [1, 5, 9, 20])
def test_scenes_of_a_few_pixels(engine: Engine, scene: Scene, side: int) -> None:
    found = drawn(engine, [scene.within((0, 0, side, side))], [128, 160], 10)
    assert len(found) <= 2
    for sample in found:
        assert sample.features.shape[1:] == sample.good.shape
        assert 1 <= min(sample.good.shape) <= max(sample.good.shape) <= 2
        assert torch.isfinite(sample.features).all()


def test_places_without_a_valid_cell_are_left_out(engine: Engine, tmp_path: Path) -> None:
    half = noise(tmp_path / "half.tif", 200, 900, hole=(slice(None), slice(400, None)))
    found = drawn(engine, [half], [128], 99)
    assert 0 < len(found) < math.ceil(200 * 900 / UNIT_SIDE**2)
    empty = make_scene(tmp_path / "empty.tif", np.zeros((4, 200, 200), "uint16"), nodata=0)
    assert drawn(engine, [empty], [128, 160], 5) == []


def test_which_cells_are_valid_is_told(engine: Engine, tmp_path: Path) -> None:
    # A scene in which there is one place to draw: cells 1 to 24, centred on pixels 8 to 192.
    holed = noise(tmp_path / "a.tif", 200, 200, hole=(slice(100, None), slice(0, 61)))
    (sample,) = drawn(engine, [holed], [128], 1)
    expected = torch.ones(24, 24, dtype=torch.bool)
    expected[12:, :7] = False  # row 13 is of pixels 100 to 107, column 7 of 52 to 59, 8 of 60 to 67
    expected[11, :7] = True  # 92 to 99
    assert torch.equal(sample.good, expected)


@pytest.mark.parametrize(("deep", "phase"), [("layer3", 2), ("layer4", 4)])
def test_the_deep_stage_lies_on_the_scenes_own_grid(engine: Engine, tmp_path: Path, deep: str, phase: int) -> None:
    """Its first cell is centred where that of the first stage is, in a scene of one place."""
    land = noise(tmp_path / "a.tif", 8 * 60, 8 * 60)
    margin = 20
    (tile,) = feature_tiles(engine, land, RADIOMETRY, 128, deep=deep, margin=margin, tile=ALL)
    assert tile.deep is not None
    for sample in drawn(engine, [land], [128], 3, deep=deep):
        assert sample.deep is not None
        assert sample.deep.shape[1:] == (SIDE // phase, SIDE // phase)
        y, x = place_of(sample.features, tile.features[:, margin:-margin, margin:-margin])
        assert y % phase == x % phase == 0
        row, column = (int((margin + at) / phase + o) for at, o in zip((y, x), tile.origin, strict=True))
        part = tile.deep()[:, row : row + SIDE // phase, column : column + SIDE // phase]
        # What lies far away is left out, so no more than the middle is the same, and nearly.
        inner = np.s_[:, 2:-1, 2:-1] if phase == 2 else np.s_[:, 2:4, 2:4]
        alike = torch.nn.functional.cosine_similarity(sample.deep[inner], part[inner], dim=0)
        assert float(alike.min()) > 0.98
        beside = torch.nn.functional.cosine_similarity(sample.deep[inner], part.roll(1, 2)[inner], dim=0)
        assert float(beside.mean()) < float(alike.min())


@pytest.mark.parametrize("side", [1, 9, 20, 130])
def test_deep_cells_of_small_scenes(engine: Engine, scene: Scene, side: int) -> None:
    for sample in drawn(engine, [scene.within((0, 0, side, side))], [128, 160], 10, deep="layer3"):
        assert sample.deep is not None
        assert sample.deep.shape[1:] == tuple(-(-n // 2) for n in sample.good.shape)
        assert torch.isfinite(sample.deep).all()


def test_deep_cells_count_where_one_of_theirs_is_valid() -> None:
    good = torch.zeros(3, 5, dtype=torch.bool)
    good[0, 1] = good[2, 4] = True
    deep = torch.arange(6.0).reshape(1, 2, 3)
    sample = Sample(torch.zeros(2, 3, 5), deep, good, 128)
    assert good_deep(sample, 2).flatten().tolist() == [0, 5]
    everywhere = Sample(torch.zeros(2, 3, 5), deep, torch.ones(3, 5, dtype=torch.bool), 128)
    assert good_deep(everywhere, 2).shape == (1, 6, 1)
