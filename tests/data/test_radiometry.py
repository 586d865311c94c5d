from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from siamese_sat.data import radiometry
from siamese_sat.data.radiometry import Radiometry, band_names, detect_scale, estimate, for_imagenet_weights
from siamese_sat.data.scene import open_scene
from siamese_sat.errors import InputError
from tests.conftest import make_scene, write_scene

RNG = np.random.default_rng(1)
ONE = Radiometry(("B", "G"), 100.0, (0.5, 0.25), (0.1, 0.2))


@pytest.mark.parametrize(
    ("dtype", "high", "bits", "expected"),
    [
        ("uint8", 3.0, None, 255),
        ("uint8", 255.0, None, 255),
        ("uint16", 250.0, None, 255),
        ("uint16", 1900.0, None, 2047),
        ("uint16", 2047.0, None, 2047),
        ("uint16", 2048.0, None, 4095),
        ("uint16", 4095.0, None, 4095),
        ("uint16", 4096.0, None, 10_000),
        ("int16", 6000.0, None, 10_000),
        ("uint16", 15_000.0, None, 10_000),  # bright roofs reflect more than 1
        ("uint16", 40_000.0, None, 65_535),
        ("uint32", 100_000.0, None, 100_000),
        ("uint16", 700.0, 11, 2047),  # as declared, however dark
        ("uint16", 700.0, 12, 4095),
        ("uint16", 700.0, 14, 16_383),
        ("uint16", 700.0, 16, 2047),  # says nothing
        ("float32", 0.8, None, 1),
        ("float32", 1.7, None, 1),
        ("float64", 240.0, None, 255),
        ("float32", 9000.0, None, 10_000),
        ("float32", 50_000.0, None, 50_000),
    ],
)
def test_scale(dtype: str, high: float, bits: int | None, expected: float) -> None:
    assert detect_scale(dtype, high, bits) == expected


@pytest.mark.parametrize(
    ("dtype", "top", "options", "expected"),
    [("uint8", 120, {}, 255), ("uint16", 900, {}, 2047), ("uint16", 900, {"nbits": 12}, 4095), ("float32", 0.4, {}, 1)],
)
def test_scale_of_a_file(tmp_path: Path, dtype: str, top: float, options: dict[str, int], expected: float) -> None:
    pixels = (RNG.random((3, 64, 64)) * top).astype(dtype)
    pixels[:, 5, 5] = np.finfo(dtype).max / 2 if dtype == "float32" else min(255, top * 3)  # a single broken pixel
    scene = make_scene(tmp_path / "a.tif", pixels, **options)
    assert estimate([scene], quiet=True).scale == expected


def test_streamed_statistics_are_numpys_over_valid_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radiometry, "BLOCK", 16)
    scenes, values = [], []
    for name, height, width, shift in (("a", 40, 50, 0), ("b", 17, 30, 3000)):
        pixels = RNG.integers(1, 1000, (3, height, width)).astype("uint16") + np.array([0, 2000, 500])[:, None, None]
        pixels = (pixels + shift).astype("uint16")
        invalid = RNG.random((height, width)) < 0.3
        invalid[:16, :16] = True  # a whole block without a valid pixel
        pixels[:, invalid] = 0
        scenes.append(make_scene(tmp_path / f"{name}.tif", pixels, nodata=0))
        values.append(pixels[:, ~invalid])
    scenes[1] = scenes[1].within((0, 0, 25, 17))
    values[1] = (cut := _pixels(tmp_path / "b.tif", 3)[:, :, :25])[:, (cut != 0).any(axis=0)]
    every = np.concatenate(values, axis=1).astype(float) / 10_000
    got = estimate(scenes, quiet=True)
    assert got.scale == 10_000
    assert got.names == ("B", "G", "R")
    np.testing.assert_allclose(got.mean, every.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(got.std, every.std(axis=1), rtol=1e-10)


def _pixels(path: Path, bands: int) -> np.ndarray:
    import rasterio

    with rasterio.open(path) as source:
        return source.read(list(range(1, bands + 1)))


def test_statistics_follow_the_order_of_the_bands(tmp_path: Path) -> None:
    pixels = np.stack([np.full((8, 8), v, dtype="uint8") + np.eye(8, dtype="uint8") for v in (10, 20, 40, 80)])
    path = write_scene(tmp_path / "a.tif", pixels, photometric="minisblack")
    got = estimate([open_scene(path, [3, 2, 1, 4])], quiet=True)
    np.testing.assert_allclose(np.array(got.mean) * 255, [40.125, 20.125, 10.125, 80.125])
    np.testing.assert_allclose(np.array(got.std) * 255, [(7 / 64) ** 0.5] * 4)  # 1/8 of the pixels are 1 higher


def test_some_blocks_spread_over_the_scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radiometry, "BLOCK", 4)
    pixels = np.repeat(np.arange(10, 60, 10), 4)[None, None].repeat(4, axis=1).astype("uint8")  # five blocks
    scene = make_scene(tmp_path / "a.tif", pixels)
    monkeypatch.setattr(radiometry, "detect_scale", lambda *_: 1.0)
    assert estimate([scene], quiet=True).mean == (30.0,)
    got = estimate([scene], max_blocks=2, quiet=True)  # the first and the last
    assert (got.mean, got.std) == ((30.0,), (20.0,))


def test_one_value_only_and_none_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = make_scene(tmp_path / "flat.tif", np.full((1, 8, 8), 51, dtype="uint8"))
    got = estimate([flat], quiet=True)
    assert (got.mean, got.std, got.names) == ((0.2,), (1.0,), ("PAN",))
    assert "one value only" in caplog.text
    empty = make_scene(tmp_path / "empty.tif", np.zeros((1, 8, 8), dtype="uint8"), nodata=0)
    with pytest.raises(InputError, match=r"empty\.tif: no valid pixel"):
        estimate([empty], quiet=True)
    assert estimate([empty, flat], quiet=True).mean == (0.2,)


def test_normalise_by_hand() -> None:
    pixels = torch.tensor([[[50, 60]], [[25, 5]]], dtype=torch.uint8)
    expected = torch.tensor([[[0.0, 1.0]], [[0.0, -1.0]]])
    torch.testing.assert_close(ONE.normalise(pixels), expected)
    torch.testing.assert_close(ONE.normalise(pixels.float()[None].repeat(2, 1, 1, 1)), expected.repeat(2, 1, 1, 1))


def test_invalid_pixels_become_the_band_mean() -> None:
    valid = np.array([[True, False]])
    half = Radiometry(("B", "G"), 255.0, (0.5, 0.1), (0.1, 0.1))
    whole = np.array([[[1, 2]], [[3, 4]]], dtype="uint8")
    got = half.fill(whole, valid)
    assert got.dtype == np.uint8
    assert got.tolist() == [[[1, 128]], [[3, 26]]]  # 127.5 and 25.5, rounded to even
    assert whole.tolist() == [[[1, 2]], [[3, 4]]]
    assert half.fill(whole.astype("float32"), valid).tolist() == [[[1, 127.5]], [[3, 25.5]]]
    assert half.fill(whole, np.ones((1, 2), dtype=bool)) is whole
    filled = torch.from_numpy(ONE.fill(np.zeros((2, 3, 3), dtype="float32"), np.zeros((3, 3), dtype=bool)))
    torch.testing.assert_close(ONE.normalise(filled), torch.zeros(2, 3, 3))


def test_distance_names_and_plain_numbers() -> None:
    other = Radiometry(("B", "G"), 200.0, (0.2, 0.2), (0.1, 0.2))  # means 40 and 40 against 50 and 25, stds 10 and 20
    assert ONE.distance(other) == pytest.approx(1.0)
    assert ONE.distance(ONE) == 0
    assert Radiometry.from_dict(ONE.to_dict()) == ONE
    assert all(isinstance(v, str | float | list) for v in ONE.to_dict().values())
    assert [band_names(n) for n in (1, 2, 3)] == [("PAN",), ("B", "G"), ("B", "G", "R")]
    assert band_names(6) == ("B", "G", "R", "NIR", "X5", "X6")
    assert band_names(2, ["VV", "VH"]) == ("VV", "VH")
    with pytest.raises(InputError, match=r"data\.band_names"):
        band_names(3, ["VV", "VH"])


@pytest.mark.parametrize("names", ["B G R NIR", "R G B", "NIR R G B X5", "PAN", "X1 X2"])
def test_imagenets_constants_by_the_name_of_the_band(names: str) -> None:
    bands = tuple(names.split())
    found = Radiometry(bands, 255.0, tuple(0.1 + i / 50 for i in range(len(bands))), (0.03,) * len(bands))
    got = for_imagenet_weights(found, "uint8")
    assert (got.names, got.scale) == (bands, 255.0)
    constants = {"R": (0.485, 0.229), "G": (0.456, 0.224), "B": (0.406, 0.225)}
    for i, name in enumerate(bands):
        assert (got.mean[i], got.std[i]) == constants.get(name, (found.mean[i], found.std[i]))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "int8"])
def test_other_types_than_8_bit_keep_their_own_statistics(dtype: str) -> None:
    found = Radiometry(("B", "G", "R"), 255.0, (0.1, 0.2, 0.3), (0.1, 0.1, 0.1))
    assert for_imagenet_weights(found, dtype) == found
