from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from siamese_sat.data.scene import Scene, open_scene
from siamese_sat.errors import InputError
from siamese_sat.search import engine
from siamese_sat.search import window as grid
from siamese_sat.search.engine import WindowBatch
from tests.conftest import make_scene
from tests.search.conftest import MEAN, RADIOMETRY, STD, Pixels, correlation_model, engine_of, ground

Chips = dict[tuple[float, ...], Tensor]


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(500, 5000, (4, height, width)).astype(np.uint16)


def cut(scene: Scene, window: tuple[int, int], stride: int = 32, **options: object) -> list[WindowBatch]:
    return list(engine_of(correlation_model(), **options).windows(scene, RADIOMETRY, window, 64, stride))


def by_box(batches: list[WindowBatch]) -> Chips:
    found = {tuple(b): c for batch in batches for b, c in zip(batch.boxes.tolist(), batch.chips, strict=True)}
    assert len(found) == sum(len(b.boxes) for b in batches), "a window came twice"
    return found


def normalised(pixels: npt.NDArray[np.generic]) -> Tensor:
    values = (pixels.astype(float) - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "axis_tiles", partial(grid.axis_tiles, tile=100))


def test_a_window_at_native_resolution_is_the_scene_normalised(tmp_path: Path, small_tiles: None) -> None:
    pixels = noise(150, 231)
    found = by_box(cut(make_scene(tmp_path / "a.tif", pixels), (64, 64)))
    assert sorted({b[0] for b in found}) == [0, 32, 64, 96, 128, 160, 167]
    assert sorted({b[1] for b in found}) == [0, 32, 64, 86]
    assert len(found) == 28
    for (x0, y0, x1, y1), chip in found.items():
        expected = normalised(pixels[:, int(y0) : int(y1), int(x0) : int(x1)])
        assert torch.allclose(chip, expected, atol=1e-4)


def test_bands_come_in_the_order_asked_for(tmp_path: Path) -> None:
    pixels = noise(64, 64)
    scene = open_scene(make_scene(tmp_path / "a.tif", pixels).path, [3, 1, 4, 2])
    (batch,) = cut(scene, (64, 64))
    assert torch.allclose(batch.chips[0], normalised(pixels[[2, 0, 3, 1]]), atol=1e-4)


def test_batches_are_full_across_tile_borders(tmp_path: Path, small_tiles: None) -> None:
    batches = cut(make_scene(tmp_path / "a.tif", noise(300, 300)), (64, 64), batch_size=11)
    assert [len(b.boxes) for b in batches] == [11] * 7 + [4]  # 9 x 9 windows
    assert all(b.chips.shape == (len(b.boxes), 4, 64, 64) for b in batches)


@pytest.mark.parametrize("window", [(64, 64), (48, 96), (130, 37)])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_tiles_and_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: tuple[int, int], batch_size: int
) -> None:
    scene = make_scene(tmp_path / "a.tif", noise(333, 290))
    whole = by_box(cut(scene, window, batch_size=1000))
    monkeypatch.setattr(grid, "axis_tiles", partial(grid.axis_tiles, tile=80))
    tiled = by_box(cut(scene, window, batch_size=batch_size))
    assert tiled.keys() == whole.keys()
    assert all(torch.allclose(tiled[b], whole[b], atol=1e-4) for b in whole)


def test_windows_have_width_and_height_in_their_places(tmp_path: Path) -> None:
    found = by_box(cut(make_scene(tmp_path / "a.tif", noise(64, 256)), (128, 32)))
    assert sorted({(b[0], b[2]) for b in found}) == [(0, 128), (64, 192), (128, 256)]
    assert sorted({(b[1], b[3]) for b in found}) == [(0, 32), (16, 48), (32, 64)]


def test_the_area_of_interest_shifts_the_grid_and_hides_the_rest(tmp_path: Path) -> None:
    pixels = noise(200, 200)
    scene = make_scene(tmp_path / "a.tif", pixels).within([37, 11, 137, 75])
    found = by_box(cut(scene, (64, 64)))
    assert sorted(found) == [(37, 11, 101, 75), (69, 11, 133, 75), (73, 11, 137, 75)]
    for (x0, y0, x1, y1), chip in found.items():
        assert torch.allclose(chip, normalised(pixels[:, int(y0) : int(y1), int(x0) : int(x1)]), atol=1e-4)


@pytest.mark.parametrize(
    ("least", "starts"), [(0.5, [0, 32, 64]), (0.51, [0, 32]), (0.0, [0, 32, 64, 96]), (1, [0, 32])]
)
def test_windows_with_too_little_that_is_valid_are_left_out(tmp_path: Path, least: float, starts: list[int]) -> None:
    pixels = noise(64, 160)
    pixels[:, :, 96:] = 0
    batches = cut(make_scene(tmp_path / "a.tif", pixels, nodata=0), (64, 64), min_valid=least)
    assert sorted(b[0] for b in by_box(batches)) == starts


def test_half_valid_is_counted_in_scene_pixels_at_other_scales(tmp_path: Path, small_tiles: None) -> None:
    pixels = noise(128, 320)
    pixels[:, :, 192:] = 0
    found = by_box(cut(make_scene(tmp_path / "a.tif", pixels, nodata=0), (128, 128)))
    assert sorted(b[0] for b in found) == [0, 64, 128]


def test_invalid_pixels_become_the_band_mean(tmp_path: Path) -> None:
    pixels = noise(64, 64)
    pixels[:, 40:, :] = 0
    (batch,) = cut(make_scene(tmp_path / "a.tif", pixels, nodata=0), (64, 64))
    assert torch.allclose(batch.chips[0, :, :40], normalised(pixels[:, :40]), atol=1e-4)
    assert batch.chips[0, :, 40:].abs().max() < 1e-4


def test_an_empty_scene_gives_no_window(tmp_path: Path) -> None:
    assert cut(make_scene(tmp_path / "a.tif", np.zeros((4, 100, 100), np.uint16), nodata=0), (64, 64)) == []


@pytest.mark.parametrize(("width", "height"), [(64, 30), (20, 20), (10, 200)])
def test_a_scene_smaller_than_a_window_is_padded_not_dropped(tmp_path: Path, width: int, height: int) -> None:
    pixels = noise(height, width)
    found = by_box(cut(make_scene(tmp_path / "a.tif", pixels), (64, 64)))
    assert len(found) == (6 if height == 200 else 1)
    for (x0, y0, _, _), chip in found.items():
        # The thing may fill the scene: it stands in the middle, with the mean round it.
        assert x0 == -((64 - width) // 2)
        assert y0 == -((64 - height) // 2) if height < 64 else y0 >= 0
        expected = ground(64 + 400, 64 + 400)
        expected[:, 200 : 200 + height, 200 : 200 + width] = pixels
        y, x = 200 + int(y0), 200 + int(x0)
        assert torch.allclose(chip, normalised(expected[:, y : y + 64, x : x + 64]), atol=1e-4)


def test_a_small_scene_without_valid_pixels_enough_is_still_left_out(tmp_path: Path) -> None:
    pixels = noise(30, 30)
    pixels[:, 10:, :] = 0
    assert cut(make_scene(tmp_path / "a.tif", pixels, nodata=0), (64, 64)) == []


def test_waiting_windows_do_not_hold_their_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_tiles: None
) -> None:
    """A sparse scene has a window here and there: sixty-four whole tiles would not fit in memory."""
    tiles: list[weakref.ref[torch.UntypedStorage]] = []
    alive: list[int] = []
    plain = engine.resize

    def watched(pixels: Tensor, height: int, width: int) -> Tensor:
        alive.append(sum(t() is not None for t in tiles))
        level = plain(pixels, height, width).clone()
        tiles.append(weakref.ref(level.untyped_storage()))
        return level

    monkeypatch.setattr(engine, "resize", watched)
    (batch,) = cut(make_scene(tmp_path / "a.tif", noise(64, 1000)), (64, 64), stride=64)
    assert len(batch.boxes) == 16
    assert len(alive) >= 8
    assert max(alive) <= 2


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"min_valid": -0.1}, {"min_valid": 1.5}])
def test_impossible_settings(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        engine_of(correlation_model(), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_fp32_unit_vectors(dtype: torch.dtype) -> None:
    found = engine_of(correlation_model(), dtype=dtype).embed(torch.randn(3, 4, 64, 64))
    assert found.dtype == torch.float32
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=1e-2)
    assert not found.requires_grad
