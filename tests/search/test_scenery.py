from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from siamese_sat.search.detect import Candidates
from siamese_sat.search.scenery import DIMENSIONS, STEPS, Level, Samples, Scenery, sample

MARGIN, STRIDE, SCALE, CORNER = 3, 16, 2.5, (100.0, 40.0)
FINE: Level = (128, 0.0)
COARSE: Level = (512, 0.0)


def tile(cells: torch.Tensor, valid: npt.NDArray[np.bool_], rows: slice, columns: slice) -> Samples | None:
    """Of a map with a margin, the samples of a part."""
    some = (slice(rows.start, rows.stop + 2 * MARGIN), slice(columns.start, columns.stop + 2 * MARGIN))
    first = (rows.start, columns.start)
    return sample(cells[:, *some], valid[some], MARGIN, first, STRIDE, SCALE, CORNER)


def scenery(*parts: Samples | None) -> Scenery:
    return Scenery.join([Scenery({0: FINE}, DIMENSIONS, {} if one is None else {FINE: one}) for one in parts])


@pytest.fixture
def cells() -> torch.Tensor:
    """Whitened cells of 11 rows and 14 columns, with a margin."""
    return torch.randn(80, 11 + 2 * MARGIN, 14 + 2 * MARGIN, generator=torch.Generator().manual_seed(0))


def test_a_sample_is_the_mean_of_the_valid_cells_round_it(cells: torch.Tensor) -> None:
    valid = np.random.default_rng(0).random(cells.shape[1:]) > 0.4
    found = tile(cells, valid, slice(0, 11), slice(0, 14))
    assert found is not None
    # 32 level pixels apart, of 16 pixels to a cell and 2.5 scene pixels to a level pixel.
    assert found.apart == 80
    assert found.first == (101.25, 41.25)
    assert found.places.tolist() == [[y, x] for y in range(6) for x in range(7)]
    assert found.vectors.shape == (42, DIMENSIONS)
    for (y, x), vector in zip(found.places, found.vectors, strict=True):
        around = (slice(2 * y, 2 * y + 7), slice(2 * x, 2 * x + 7))
        mean = cells[:DIMENSIONS, *around].numpy()[:, valid[around]].mean(axis=1)
        np.testing.assert_allclose(vector, STEPS * mean / np.linalg.norm(mean), atol=0.51)


@pytest.mark.parametrize("borders", [(2, 4), (3, 5), (7, 13)])
def test_no_border_of_a_tile_changes_a_sample(cells: torch.Tensor, borders: tuple[int, int]) -> None:
    valid = np.random.default_rng(1).random(cells.shape[1:]) > 0.2
    whole = tile(cells, valid, slice(0, 11), slice(0, 14))
    rows, columns = ([slice(0, b), slice(b, n)] for b, n in zip(borders, (11, 14), strict=True))
    parts = scenery(*(tile(cells, valid, row, column) for row in rows for column in columns)).samples[FINE]
    assert whole is not None
    by_place = {tuple(place): vector for place, vector in zip(parts.places.tolist(), parts.vectors, strict=True)}
    assert len(by_place) == len(parts.places) == len(whole.places)
    for place, vector in zip(whole.places.tolist(), whole.vectors, strict=True):
        np.testing.assert_allclose(by_place[tuple(place)], vector, atol=1)


def test_where_nothing_is_valid_there_is_no_sample(cells: torch.Tensor) -> None:
    none = np.zeros(cells.shape[1:], bool)
    assert tile(cells, none, slice(0, 11), slice(0, 14)) is None
    assert tile(cells, ~none, slice(1, 2), slice(0, 14)) is None, "none falls on an odd row"
    left = none.copy()
    left[:, : MARGIN + 3] = True
    found = tile(cells, left, slice(0, 11), slice(0, 14))
    assert found is not None
    assert set(found.places[:, 1].tolist()) == {0, 1, 2}


def test_places_are_told_the_nearest_sample() -> None:
    vectors = np.arange(1, 6, dtype=np.int8)[:, None] * np.ones(3, np.int8)
    # Of two rows and three columns the middle of the second row is not known.
    samples = Samples((10.0, 20.0), 40.0, np.array([[0, 0], [0, 1], [0, 2], [1, 0], [1, 2]]), vectors)
    points = np.array([[10.0, 20], [29, 39], [31, 20], [110, 61], [48, 50], [-500, 3000], [1e6, -1e6]])
    assert samples.nearest(points)[:, 0].tolist() == [1, 1, 2, 5, 2, 4, 3]


def test_each_class_is_told_by_its_own_level() -> None:
    one, two = (
        Samples((0.0, 0.0), apart, np.array([[0, 0]]), np.full((1, 2), value, np.int8))
        for apart, value in ((8.0, 1), (32.0, 2))
    )
    of = {0: FINE, 1: COARSE, 2: FINE, 3: (999, 0.0)}
    every = Scenery.join([Scenery(of, 2, {FINE: one}), Scenery(of, 2), Scenery(of, 2, {COARSE: two})])
    told = every.round(np.zeros((4, 2)), np.array([1, 0, 3, 2]))
    assert told.tolist() == [[2, 2], [1, 1], [0, 0], [1, 1]]
    assert Scenery.join([Scenery(of, 2)]).round(np.zeros((4, 2)), np.array([1, 0, 3, 2])).tolist() == [[0, 0]] * 4


def test_candidates_know_their_surroundings_once_all_parts_have_told() -> None:
    vectors = np.array([[1, 1], [2, 2]], np.int8)
    left, right = (
        Samples((0.0, 0.0), 100.0, np.array([[0, column]]), vectors[column : column + 1]) for column in (0, 1)
    )
    corner = np.array([[0.0, 0], [95, 3], [40, 0]])
    boxes = np.concatenate([corner, corner + 10], axis=1)
    found = Candidates(boxes, boxes, np.zeros(3, np.int64), np.full(3, 0.5))
    nothing = Candidates.join([])
    parts = [replace(nothing, scenery=Scenery({0: FINE}, 2, {FINE: part})) for part in (left, right)]
    joined = Candidates.join([parts[0], found, parts[1]])
    assert joined.surroundings is None
    told = joined.told
    assert told.scenery is None
    assert told.surroundings is not None
    assert told.surroundings[:, 0].tolist() == [1, 2, 1]
    assert told.told is told
    some = told.at(np.array([1]))
    assert some.surroundings is not None
    assert some.surroundings.tolist() == [[2, 2]]
    assert told.blind.surroundings is None
    again = Candidates.join([told, nothing, some])
    assert again.surroundings is not None
    assert again.surroundings[:, 0].tolist() == [1, 2, 1, 2]
    assert Candidates.join([told, found]).surroundings is None, "not all are known"
    assert found.told is found
