from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from siamese_sat.data.chip import resize
from siamese_sat.errors import InputError
from siamese_sat.search.window import axis_tiles, boxes, dense_tiles, level_length, places


def test_the_example_of_the_docstring() -> None:
    assert level_length(200, 96, 64) == 134
    assert places(134, 64, 32).tolist() == [0, 32, 64, 70]
    found = boxes(np.array([70]), np.array([0, 32]), (96, 48), 64)
    assert found.tolist() == [[105, 0, 201, 48], [105, 24, 201, 72]]


@pytest.mark.parametrize(
    ("length", "expected"), [(64, [0]), (65, [0, 1]), (96, [0, 32]), (97, [0, 32, 33]), (128, [0, 32, 64])]
)
def test_the_last_place_is_clamped_inward(length: int, expected: list[int]) -> None:
    assert places(length, 64, 32).tolist() == expected


@pytest.mark.parametrize("stride", [0, -1, 65])
def test_windows_may_not_skip_pixels(stride: int) -> None:
    with pytest.raises(InputError, match="stride"):
        places(200, 64, stride)
    assert places(200, 64, 64).tolist() == [0, 64, 128, 136]


def test_boxes_go_row_by_row_from_the_origin() -> None:
    found = boxes(np.array([0, 32]), np.array([0, 64]), (128, 32), 64, (1000, 50))
    assert found.tolist() == [
        [1000, 50, 1128, 82],
        [1064, 50, 1192, 82],
        [1000, 82, 1128, 114],
        [1064, 82, 1192, 114],
    ]


@pytest.mark.parametrize("stride", [1, 17, 32, 64])
@pytest.mark.parametrize("window", [5, 16, 37, 48, 64, 65, 96, 130, 301])
@pytest.mark.parametrize("length", [1, 20, 63, 64, 65, 100, 129, 640, 1001])
def test_every_pixel_is_in_a_window_and_no_window_runs_away(length: int, window: int, stride: int) -> None:
    where = places(level_length(length, window, 64), 64, stride)
    found = boxes(where, np.array([0]), (window, window), 64)
    starts, ends = found[:, 0], found[:, 2]
    assert starts[0] == 0
    assert ends[-1] >= length
    assert (starts[1:] > starts[:-1]).all()
    assert (starts[1:] <= ends[:-1]).all()
    assert np.allclose(np.diff(starts)[:-1], stride * window / 64)
    # Beyond the end by less than a level pixel; a scene smaller than a window has exactly one.
    assert ends[-1] < max(length + window / 64, window + 1e-9)
    if length <= window:
        assert len(where) == 1


@pytest.mark.parametrize("tile", [60, 200, 512, 1536])
@pytest.mark.parametrize("window", [16, 37, 48, 64, 96, 130, 301])
@pytest.mark.parametrize("length", [30, 301, 2000])
def test_tiles_share_out_the_windows(length: int, window: int, tile: int) -> None:
    tiles = list(axis_tiles(length, window, 64, 32, tile))
    assert (
        np.concatenate([t.places for t in tiles]).tolist() == places(level_length(length, window, 64), 64, 32).tolist()
    )
    for t in tiles:
        assert (t.offsets >= 0).all()
        assert (t.offsets + 64 <= t.level_length).all()
        # A tile's level pixels lie on the whole level's, and have its scale.
        assert ((t.places - t.offsets) * window == t.source * 64).all()
        assert t.level_length * window == t.source_length * 64


@pytest.mark.parametrize("tile", [50, 150])
@pytest.mark.parametrize("window", [64, 48, 96, 37, 130, 20])
def test_a_tile_border_changes_no_window(window: int, tile: int) -> None:
    size, height, width = 64, 233, 307
    scene = torch.from_numpy(np.random.default_rng(0).normal(size=(height, width)).astype(np.float32))
    # Around the scene there is nothing; whole windows of it keep scene and level in step.
    ring = 2 * window
    full = [math.ceil(side / window) * window + 2 * ring for side in (height, width)]
    padded = torch.zeros(*full)
    padded[ring : ring + height, ring : ring + width] = scene
    whole = resize(padded[None, None], full[0] * size // window, full[1] * size // window)[0, 0]
    count = 0
    for row in axis_tiles(height, window, size, 32, tile):
        for column in axis_tiles(width, window, size, 32, tile):
            y, x = ring + row.source, ring + column.source
            assert min(y, x) >= 0, "the ring of this test is too narrow"
            patch = torch.zeros(row.source_length, column.source_length)
            part = padded[y : y + row.source_length, x : x + column.source_length]
            patch[: part.shape[0], : part.shape[1]] = part
            level = resize(patch[None, None], row.level_length, column.level_length)[0, 0]
            for i, p in zip(row.offsets.tolist(), row.places.tolist(), strict=True):
                for j, q in zip(column.offsets.tolist(), column.places.tolist(), strict=True):
                    expected = whole[2 * size + p : 3 * size + p, 2 * size + q : 3 * size + q]
                    assert torch.allclose(level[i : i + size, j : j + size], expected, atol=1e-4)
                    count += 1
    assert count == math.prod(len(places(level_length(s, window, size), size, 32)) for s in (height, width))


@pytest.mark.parametrize("window", [8, 16, 64, 256])
def test_a_tile_is_bounded_in_level_pixels_too(window: int) -> None:
    """Small windows are enlarged: a tile of them must not grow without limit."""
    assert max(t.level_length for t in axis_tiles(20_000, window, 64, 32)) <= 2500
    assert max(t.source_length for t in axis_tiles(20_000, window, 64, 32)) <= 2500


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("window", [37, 64, 130])
@pytest.mark.parametrize("length", [20, 64, 333, 1000])
def test_dense_tiles_show_what_is_around_but_nothing_beyond_the_scene(length: int, window: int, stride: int) -> None:
    size = 64
    tiles = list(dense_tiles(length, window, size, stride, 1, tile=260))
    where = np.concatenate([t.places for t in tiles])
    assert where.tolist() == list(range(0, where[-1] + 1, stride))
    level = level_length(length, window, size)
    assert level <= where[-1] + size < level + stride
    for tile in tiles:
        first, last = tile.seen
        start = tile.places[0] - tile.offsets[0]
        # One window's side around its own windows, but from the first window's beginning to the last one's end.
        assert start + first == max(0, tile.places[0] - size)
        assert start + last >= min(where[-1] + size, tile.places[-1] + 2 * size)
        assert start + last <= where[-1] + size
        assert 0 <= first <= tile.offsets[0]
        assert tile.offsets[-1] + size <= last <= tile.level_length
        assert first % stride == tile.offsets[0] % stride == 0
    if length == 1000:
        assert len(tiles) > 1
