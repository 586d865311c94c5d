from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine

from siamese_sat.errors import InputError
from siamese_sat.report.colour import PALETTE
from siamese_sat.report.picture import overlay
from siamese_sat.report.render import NO_DATA_GREY, preview, stretch_limits, to_rgb
from siamese_sat.report.sheet import contact_sheet
from tests.report.helpers import load, make_scene, near, table

ALL = np.ones((10, 10), dtype=bool)


def test_stretch_takes_percentiles_of_valid_pixels_per_band() -> None:
    pixels = np.stack([np.arange(100).reshape(10, 10) * k for k in (1, 2, 3, 4)]).astype(np.uint16)
    valid = ALL.copy()
    pixels[:, 0, 0], valid[0, 0] = 60_000, False
    limits = stretch_limits(pixels, valid)
    np.testing.assert_allclose(limits[0], np.percentile(np.arange(1, 100) * 3, [2, 98]))
    rgb = to_rgb(pixels, valid)
    assert rgb.shape == (10, 10, 3)
    assert rgb.dtype == np.uint8
    assert rgb[0, 0].tolist() == [NO_DATA_GREY] * 3
    assert rgb[0, 1].tolist() == [0, 0, 0]
    assert rgb[9, 9].tolist() == [255, 255, 255]
    assert abs(int(rgb[5, 0, 0]) - 127) < 4


def test_bands_become_the_colours_they_are_told_to() -> None:
    pixels = np.zeros((4, 10, 10), dtype=np.uint8)
    pixels[2, :, 5:] = 200
    limits = np.array([[0, 200]] * 3, dtype=float)
    assert to_rgb(pixels, ALL, limits=limits)[0, 9].tolist() == [255, 0, 0]
    assert to_rgb(pixels, ALL, rgb=(3, 2, 1), limits=limits)[0, 9].tolist() == [0, 255, 0]
    with pytest.raises(InputError, match="4 bands"):
        to_rgb(pixels, ALL, rgb=(4, 1, 0))


@pytest.mark.parametrize("bands", [1, 2])
def test_few_bands_are_grey(bands: int) -> None:
    pixels = np.linspace(-1, 1, 100, dtype=np.float32).reshape(1, 10, 10).repeat(bands, axis=0)
    rgb = to_rgb(pixels, ALL)
    assert (rgb[..., 0] == rgb[..., 2]).all()
    assert rgb[0, 0, 0] == 0
    assert rgb[9, 9, 0] == 255


def test_flat_empty_and_nearly_flat_scenes() -> None:
    pixels = np.full((4, 10, 10), 7, dtype=np.uint16)
    assert to_rgb(pixels, ALL)[0, 0].tolist() == [128, 128, 128]
    assert (to_rgb(pixels, ~ALL) == NO_DATA_GREY).all()
    pixels[:, 4, 4] = 900
    assert to_rgb(pixels, ALL)[4, 4].tolist() == [255, 255, 255]
    assert to_rgb(pixels, ALL)[0, 0].tolist() == [0, 0, 0]


def test_boxes_are_drawn_where_the_detections_are(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", np.full((4, 200, 300), 100, dtype=np.uint16))
    detections = table([40, 60, 100, 120, "Boat", "a", 0.9], [200, 20, 280, 50, "Pond", "a", 0.8])
    overlay(scene, detections, tmp_path / "o.png", max_side=300)
    picture = load(tmp_path / "o.png")
    assert picture.shape[1] == 300
    assert picture.shape[0] > 200
    boat, pond = near(picture[:200], PALETTE[0]), near(picture[:200], PALETTE[1])
    for side in (np.s_[70:110, 38:42], np.s_[70:110, 98:102]):
        assert boat[side].any(axis=1).all()
    assert boat[58:62, 50:90].any(axis=0).all()
    assert not boat[66:114, 46:94].any()
    assert pond[48:52, 210:270].any(axis=0).all()
    # The label stands on the colour of its class, outside the box; the legend below the scene.
    assert boat[40:58, 40:100].sum() > 100
    assert near(picture[200:], PALETTE[0]).any()
    assert near(picture[200:], PALETTE[1]).any()
    assert not near(picture[200:], PALETTE[2]).any()


def test_a_small_scene_is_enlarged_and_a_large_one_shrunk(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", np.full((3, 50, 100), 100, dtype=np.uint8))
    detections = table([20, 10, 60, 40, "Boat", "a", 0.9])
    for side, zoom in ((450, 4), (50, 0.5)):
        overlay(scene, detections, tmp_path / "o.png", max_side=side)
        picture = load(tmp_path / "o.png")
        assert picture.shape[1] == 100 * zoom
        boat = near(picture[: int(50 * zoom)], PALETTE[0], 60)
        left, right = int(20 * zoom), int(60 * zoom)
        assert boat[int(25 * zoom), left - 2 : left + 3].any()
        assert boat[int(25 * zoom), right - 2 : right + 3].any()
        assert not boat[int(25 * zoom), left + 6 : right - 5].any()


def test_the_picture_begins_at_the_area_of_interest(tmp_path: Path) -> None:
    pixels = np.full((4, 200, 300), 100, dtype=np.uint16)
    pixels[:, 100:, :] = 200
    scene = make_scene(tmp_path / "a.tif", pixels).within((100, 50, 250, 150))
    overlay(scene, table([150, 80, 190, 120, "Boat", "a", 0.9]), tmp_path / "o.png", max_side=150)
    picture = load(tmp_path / "o.png")
    assert picture.shape[1] == 150
    assert picture[48, 10].max() < 10
    assert picture[52, 10].min() > 245
    assert near(picture, PALETTE[0])[50, 48:53].any()


def test_truth_is_dashed_white_and_classes_keep_their_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 60, (4, 200, 300)).astype(np.uint16)
    scene = make_scene(tmp_path / "a.tif", pixels)
    limits = np.array([[0, 1000]] * 3, dtype=float)
    truth = table([40, 60, 240, 160, "Pond", "a", 1])[["x_min", "y_min", "x_max", "y_max"]]
    detections = table([10, 10, 30, 30, "Pond", "a", 0.5])
    overlay(scene, detections, tmp_path / "o.png", truth, max_side=300, classes=["Boat", "Car", "Pond"], limits=limits)
    picture = load(tmp_path / "o.png")
    edge = near(picture[58:63, 50:230], "white", 90).any(axis=0)
    assert 0.3 < edge.mean() < 0.9
    assert near(picture[:200], PALETTE[2]).any()
    assert not near(picture[:200], PALETTE[0]).any()


def test_a_crowd_has_no_labels(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", np.full((4, 400, 400), 100, dtype=np.uint16))
    places = [(x, y) for x in range(10, 390, 45) for y in range(10, 390, 45)]
    crowd = table(*([x, y, x + 20, y + 20, "Boat", "a", 0.9] for x, y in places))
    few = crowd.head(50)
    ink = []
    for detections in (few, crowd):
        overlay(scene, detections, tmp_path / "o.png", max_side=400)
        ink.append(near(load(tmp_path / "o.png")[:400], PALETTE[0]).sum() / len(detections))
    assert ink[0] > 2 * ink[1]


def test_nothing_found_and_odd_names_are_drawn_too(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif")
    overlay(scene, table(), tmp_path / "o.png", truth=table())
    assert not near(load(tmp_path / "o.png"), PALETTE[0]).any()
    overlay(scene, table([1, 1, 20, 20, r"_$\frac", "a", 0.9]), tmp_path / "o.png")
    assert near(load(tmp_path / "o.png"), PALETTE[0]).any()


def test_preview_reads_few_pixels_and_knows_what_is_empty(tmp_path: Path) -> None:
    pixels = np.full((4, 100, 200), 50, dtype=np.uint16)
    pixels[:, :, 100:] = 0
    scene = make_scene(tmp_path / "a.tif", pixels, "EPSG:32632", Affine(1, 0, 0, 0, -1, 0), nodata=0)
    view = preview(scene, 20, (2, 1, 0))
    assert view.pixels.shape == (3, 10, 20)
    assert view.valid[:, :10].all()
    assert not view.valid[:, 10:].any()
    assert (view.pixels[:, view.valid] == 50).all()
    assert (view.zoom_x, view.zoom_y) == (0.1, 0.1)
    with pytest.raises(InputError, match="cannot be read"):
        preview(replace(scene, path=str(tmp_path / "gone.tif")), 20, (0,))


def test_contact_sheet_groups_chips_by_class(tmp_path: Path) -> None:
    chips = np.zeros((5, 4, 32, 32), dtype=np.uint16)
    for i, band in enumerate((2, 0, 2, 2, 0)):
        chips[i, :] = 1
        chips[i, band] = 100
    limits = np.array([[1, 100]] * 3, dtype=float)
    classes = ["Red", "Blue", "Red", "Red", "Blue"]
    contact_sheet(chips, classes, tmp_path / "s.png", list("abcde"), per_row=2, limits=limits)
    picture = load(tmp_path / "s.png")
    red, blue = near(picture, "red", 5), near(picture, "blue", 5)
    assert red.sum() == 3 * 96 * 96
    assert blue.sum() == 2 * 96 * 96
    # Two rows of red, then one of blue.
    assert np.flatnonzero(red.any(axis=1)).size == 2 * 96
    assert np.flatnonzero(red.any(axis=1)).max() < np.flatnonzero(blue.any(axis=1)).min()
    left = int(np.flatnonzero(red.any(axis=0)).min())
    assert (picture[:, : left - 2].min(axis=-1) < 100).any()
    with pytest.raises(ValueError, match="as many"):
        contact_sheet(chips, classes[:2], tmp_path / "s.png")


def test_a_title_stands_under_its_own_chip(tmp_path: Path) -> None:
    chips = np.random.default_rng(0).integers(1, 9, (4, 4, 32, 32)).astype(np.uint16)
    contact_sheet(chips, ["A", "B", "A", "B"], tmp_path / "s.png", ["", "", "", "WWW"])
    # Two rows of two 96-pixel chips right of the names: only the last has something written below it.
    under = load(tmp_path / "s.png").min(axis=-1)
    tops = [12 + 96, 12 + 96 + 16 + 4 + 14 + 96]
    ink = [(under[y + 1 : y + 15, x : x + 96] < 200).any() for y in tops for x in (120, 220)]
    assert ink == [False, False, False, True]


def test_contact_sheet_of_nothing(tmp_path: Path) -> None:
    contact_sheet(np.zeros((0, 4, 64, 64), dtype=np.uint8), [], tmp_path / "s.png")
    assert (load(tmp_path / "s.png") == 255).all()
