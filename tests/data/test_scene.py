from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import torch
from affine import Affine
from rasterio.enums import ColorInterp

from siamese_sat.data.scene import GDAL_CACHE_MB, GDAL_CACHE_MB_OF_ROWS, AlphaRule, SceneReader, open_scene
from siamese_sat.errors import InputError
from tests.conftest import NORTH_UP, UTM33, make_scene, ramp, write_scene
from tests.model.conftest import ROOT

RGBA = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"}])
def test_a_window_holds_exactly_its_pixels(tmp_path: Path, options: dict[str, object]) -> None:
    pixels = ramp(4, 40, 50)
    scene = make_scene(tmp_path / "a.tif", pixels, **options)
    with SceneReader(scene) as reader:
        got, valid = reader.read(13, 7, 20, 11)
    assert got.dtype == np.uint16
    assert got[0, 0, 0] == 10_000 + 700 + 13
    assert got[3, 10, 19] == 40_000 + 1700 + 32
    np.testing.assert_array_equal(got, pixels[:, 7:18, 13:33])
    assert valid.all()


@pytest.mark.parametrize("bands", [(3, 2, 1, 4), (4,), (2, 1)])
def test_bands_come_in_the_order_asked_for(tmp_path: Path, bands: tuple[int, ...]) -> None:
    scene = open_scene(write_scene(tmp_path / "a.tif", ramp(4, 10, 10)), bands)
    with SceneReader(scene) as reader:
        got, _ = reader.read(0, 0, 10, 10)
    assert got[:, 0, 0].tolist() == [10_000 * b for b in bands]


@pytest.mark.parametrize(
    ("window", "placed"),
    [
        ((-2, -1, 5, 4), np.s_[1:4, 2:5]),
        ((7, 5, 5, 4), np.s_[0:1, 0:1]),  # the last column and row, then nothing
        ((-1, -1, 10, 8), np.s_[1:7, 1:9]),
        ((8, 0, 3, 3), np.s_[0:3, 0:0]),
    ],
)
def test_reading_beyond_the_borders(tmp_path: Path, window: tuple[int, int, int, int], placed: tuple[slice]) -> None:
    pixels = ramp(2, 6, 8)
    with SceneReader(make_scene(tmp_path / "a.tif", pixels)) as reader:
        got, valid = reader.read(*window)
    x, y, width, height = window
    expected = np.zeros((height, width), dtype=bool)
    expected[placed] = True
    np.testing.assert_array_equal(valid, expected)
    inside = pixels[:, max(y, 0) : y + height, max(x, 0) : x + width]
    np.testing.assert_array_equal(got[(slice(None), *placed)], inside)
    assert not got[:, ~expected].any()


def test_outside_the_area_of_interest_nothing_is_valid(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", ramp(2, 20, 30)).within((5, 4, 100, 9)).within((0, 0, 12, 100))
    assert scene.aoi == (5, 4, 12, 9)
    with SceneReader(scene) as reader:
        got, valid = reader.read(0, 0, 30, 20)
    expected = np.zeros((20, 30), dtype=bool)
    expected[4:9, 5:12] = True
    np.testing.assert_array_equal(valid, expected)
    assert not got[:, ~expected].any()
    assert scene.within(None) is scene
    for wrong in ((0, 0, 5, 20), (30, 0, 40, 5), (1, 2, 3)):
        with pytest.raises(InputError, match="area of"):
            scene.within(wrong)


def _hole(kind: str, path: Path) -> str:
    """A 2-band raster in which row 2, column 5 alone is invalid."""
    pixels = ramp(2, 6, 8, "float32" if kind in ("nan", "inf", "nan nodata", "float nodata") else "uint16")
    keep = np.ones((6, 8), dtype=bool)
    keep[2, 5] = False
    options: dict[str, object] = {}
    if kind in ("nan", "inf"):
        pixels[1, 2, 5] = np.nan if kind == "nan" else np.inf  # one band is enough
    elif kind == "alpha":
        alpha = np.where(keep, 65_535, 0).astype("uint16")
        pixels = np.concatenate([pixels, alpha[None]])
        options["colorinterp"] = (ColorInterp.gray, ColorInterp.undefined, ColorInterp.alpha)
    elif "mask" in kind:
        options |= {"mask": keep, "internal_mask": kind == "internal mask"}
    else:
        value = {"nodata": 7.0, "nan nodata": np.nan, "float nodata": -3.4e38}[kind]
        pixels[:, 2, 5] = value
        if kind == "nodata":
            pixels[0, 0, 0] = value  # one band dark is not "no data"
        if kind == "float nodata":
            pixels[0, 2, 5] = 1.0  # what no measurement has spoils the pixel from one band
        options["nodata"] = value
    return write_scene(path, pixels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "kind", ["nodata", "float nodata", "nan nodata", "nan", "inf", "internal mask", "side-car mask", "alpha"]
)
def test_what_makes_a_pixel_invalid(tmp_path: Path, kind: str) -> None:
    scene = open_scene(_hole(kind, tmp_path / "a.tif"), [1, 2])
    with SceneReader(scene) as reader:
        got, valid = reader.read(3, 1, 4, 4)
        whole = reader.read(0, 0, 8, 6)[1]
    assert np.argwhere(~valid).tolist() == [[1, 2]]
    assert np.argwhere(~whole).tolist() == [[2, 5]]
    assert np.isfinite(got).all()
    assert got[1, 0, 0] == 20_000 + 100 + 3


def _four(path: Path, fourth: npt.NDArray[np.generic], **options: object) -> str:
    colour = RNG.integers(1, 255, (3, *fourth.shape), dtype=np.uint8)
    return write_scene(path, np.concatenate([colour, fourth[None].astype("uint8")]), **options)  # type: ignore[arg-type]


def test_near_infrared_that_gdal_tags_alpha_is_data(tmp_path: Path) -> None:
    nir = RNG.integers(0, 256, (30, 40))
    path = _four(tmp_path / "a.tif", nir)
    with rasterio.open(path) as source:
        assert source.colorinterp[3] == ColorInterp.alpha  # the trap itself
    scene = open_scene(path, [1, 2, 3, 4])
    assert scene.alpha is None
    assert not scene.has_mask
    with SceneReader(scene) as reader:
        got, valid = reader.read(0, 0, 40, 30)
    np.testing.assert_array_equal(got[3], nir)
    assert valid.all()


def test_alpha_of_two_values_is_a_mask_and_never_a_chosen_band(tmp_path: Path) -> None:
    alpha = np.full((30, 40), 255)
    alpha[:, :10] = 0
    path = _four(tmp_path / "a.tif", alpha, colorinterp=RGBA)
    with pytest.raises(InputError, match=r"band 4 is alpha.*data\.bands=\[3, 2, 1\]"):
        open_scene(path, [1, 2, 3, 4])
    scene = open_scene(path, [3, 2, 1])
    assert scene.alpha == 4
    with SceneReader(scene) as reader:
        valid = reader.read(0, 0, 40, 30)[1]
    np.testing.assert_array_equal(valid, alpha > 0)


@pytest.mark.parametrize(("rule", "is_mask", "varied"), [("mask", True, True), ("data", False, False)])
def test_the_alpha_setting_overrules_the_values(tmp_path: Path, rule: AlphaRule, is_mask: bool, varied: bool) -> None:
    fourth = RNG.integers(0, 256, (30, 40)) if varied else np.where(np.arange(40) < 10, 0, 255)[None].repeat(30, 0)
    path = _four(tmp_path / "a.tif", fourth, colorinterp=RGBA)
    assert (open_scene(path, [3, 2, 1], rule).alpha == 4) is is_mask
    if is_mask:
        with pytest.raises(InputError, match=r"data\.bands"):
            open_scene(path, [1, 2, 3, 4], rule)
    else:
        with SceneReader(open_scene(path, [1, 2, 3, 4], rule)) as reader:
            got, valid = reader.read(0, 0, 40, 30)
        np.testing.assert_array_equal(got[3], fourth)
        assert valid.all()


def test_what_is_known_without_reading(tmp_path: Path) -> None:
    placed = make_scene(tmp_path / "deep" / "a.tif", ramp(1, 6, 8) % 4096, crs=UTM33, transform=NORTH_UP, nbits=12)
    assert (placed.name, placed.width, placed.height, placed.dtype, placed.bits) == ("a.tif", 8, 6, "uint16", 12)
    assert placed.georeferenced
    assert placed.transform == NORTH_UP
    assert placed.crs is not None
    assert placed.crs.to_epsg() == 32633
    bare = make_scene(tmp_path / "b.tif", ramp(1, 6, 8))
    assert not bare.georeferenced
    assert bare.transform == Affine.identity()


@pytest.mark.parametrize("bands", [[1, 2, 3, 4, 5], [0, 1], []])
def test_bands_that_the_file_has_not(tmp_path: Path, bands: list[int]) -> None:
    with pytest.raises(InputError, match=r"data\.bands"):
        open_scene(write_scene(tmp_path / "a.tif", ramp(4, 6, 8)), bands)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    for path in (tmp_path / "missing.tif", text):
        with pytest.raises(InputError, match=path.name):
            open_scene(path, [1])
    with pytest.raises(InputError, match="complex"):
        open_scene(write_scene(tmp_path / "complex.tif", np.ones((1, 4, 4), dtype="complex64")), [1])


def test_a_damaged_file_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    noise = RNG.integers(0, 65_536, (1, 256, 256), dtype=np.uint16)
    scene = make_scene(path, noise, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with SceneReader(scene) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 64, 64)[0], noise[:, :64, :64])
        with pytest.raises(InputError, match=r"a\.tif cannot be read"):
            reader.read(192, 192, 64, 64)


@pytest.mark.parametrize(("tiled", "kept"), [(True, GDAL_CACHE_MB), (False, GDAL_CACHE_MB_OF_ROWS)])
def test_more_is_kept_of_a_file_of_whole_rows(tmp_path: Path, tiled: bool, kept: int) -> None:
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
    scene = make_scene(tmp_path / "a.tif", ramp(2, 40, 50), **options)
    assert scene.whole_rows is not tiled
    code = """
import sys
from siamese_sat.data.scene import SceneReader, open_scene
from rasterio._env import get_gdal_config
with SceneReader(open_scene(sys.argv[1], [1, 2])) as reader:
    reader.read(10, 5, 30, 20)
    print(get_gdal_config("GDAL_CACHEMAX"))
with SceneReader(open_scene(sys.argv[2], [1])):
    print(get_gdal_config("GDAL_CACHEMAX"))
"""
    small = write_scene(tmp_path / "b.tif", ramp(1, 40, 50), tiled=True, blockxsize=16, blockysize=16)
    for own, wanted in ((None, [kept, GDAL_CACHE_MB]), ("33", [33, 33])):  # of a process of its own; a user's, if said
        environment = {k: v for k, v in os.environ.items() if k != "GDAL_CACHEMAX"}
        environment |= {"GDAL_CACHEMAX": own} if own else {}
        said = subprocess.run(
            [sys.executable, "-c", code, scene.path, small],
            check=True, capture_output=True, text=True, env=environment, cwd=ROOT,
        ).stdout  # fmt: skip
        assert [int(v) // 2**20 for v in said.split()] == wanted


def test_blocks_are_decoded_by_as_many_threads_as_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(tmp_path / "a.tif", ramp(1, 40, 50))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.delenv("GDAL_NUM_THREADS", raising=False)
    with SceneReader(scene):
        assert rasterio.env.getenv()["GDAL_NUM_THREADS"] == 3
    monkeypatch.setenv("GDAL_NUM_THREADS", "7")  # the user's own
    with SceneReader(scene):
        assert "GDAL_NUM_THREADS" not in rasterio.env.getenv()
