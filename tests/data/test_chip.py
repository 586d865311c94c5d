from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from siamese_sat.data import chip
from siamese_sat.data.chip import BACKGROUND, ChipSpec, cut_chip, cut_chips, resize, sample_background
from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from tests.conftest import make_scene, ramp

COLUMNS = ["x_min", "y_min", "x_max", "y_max", "class_name", "scene"]
TWO = Radiometry(("B", "G"), 1000.0, (0.5, 0.25), (0.1, 0.1))  # means 500 and 250


def frame(*rows: tuple[object, ...]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=COLUMNS)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """2 bands, 90 rows of 100 columns."""
    return make_scene(tmp_path / "a.tif", ramp(2, 90, 100))


@pytest.mark.parametrize(
    ("box", "shape", "expected"),
    [
        ((10, 20, 30, 40), "stretched", (7, 17, 33, 43)),
        ((10, 20, 50, 40), "stretched", (4, 17, 56, 43)),
        ((10, 20, 50, 40), "square", (4, 4, 56, 56)),
        ((10, 20, 30, 60), "square", (-6, 14, 46, 66)),
    ],
)
def test_fifteen_percent_on_each_side(box: chip.PixelBox, shape: chip.Shape, expected: chip.PixelBox) -> None:
    assert ChipSpec(64, 0.15, shape).pad(box) == pytest.approx(expected)
    assert ChipSpec(64, 0, "stretched").pad(box) == box


@pytest.mark.parametrize(
    ("box", "shape", "shown"),
    [
        ((10, 20, 30, 40), "stretched", np.s_[17:43, 7:33]),
        ((21, 31, 41, 51), "square", np.s_[28:54, 18:44]),
        ((30, 30, 50, 40), "square", np.s_[22:48, 27:53]),
    ],
)
def test_a_chip_shows_exactly_the_padded_box(
    scene: Scene, box: chip.PixelBox, shape: chip.Shape, shown: tuple[slice, slice]
) -> None:
    with SceneReader(scene) as reader:
        got, valid = cut_chip(reader, box, ChipSpec(26, 0.15, shape), TWO)
    expected = ramp(2, 90, 100)[(slice(None), *shown)].astype("float32")
    assert valid == 1
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), expected)


def test_a_stretched_chip_loses_its_proportions_and_a_square_one_keeps_them(scene: Scene) -> None:
    with SceneReader(scene) as reader:
        flat, _ = cut_chip(reader, (10, 20, 50, 40), ChipSpec(26), TWO)
        square, _ = cut_chip(reader, (10, 20, 50, 40), ChipSpec(26, shape="square"), TWO)
    # 52 x 26 columns and rows become 26: a step is 2 columns, 1 row; then 2 and 2.
    for got, down in ((flat, 100), (square, 200)):
        inner = got[0, 2:-2, 2:-2]
        torch.testing.assert_close(inner.diff(dim=1), torch.full((22, 21), 2.0), atol=0.01, rtol=0)
        torch.testing.assert_close(inner.diff(dim=0), torch.full((21, 22), float(down)), atol=0.01, rtol=0)


def test_beyond_the_scene_a_chip_is_the_band_mean(scene: Scene) -> None:
    with SceneReader(scene.within((5, 0, 100, 90))) as reader:
        got, valid = cut_chip(reader, (0, 20, 20, 40), ChipSpec(26), TWO)  # shows columns -3 to 22
    assert valid == pytest.approx(18 / 26)
    assert got[:, :, :8].unique(dim=2).tolist() == [[[500.0]] * 26, [[250.0]] * 26]
    np.testing.assert_array_equal(got[:, :, 8:].numpy(), ramp(2, 90, 100)[:, 17:43, 5:23])


def test_resize_looks_at_every_pixel() -> None:
    comb = torch.zeros(1, 1, 128, 128)
    comb[..., ::8, ::8] = 64.0  # one in 64: without antialiasing all are missed
    torch.testing.assert_close(resize(comb, 16, 16)[..., 2:-2, 2:-2], torch.ones(1, 1, 12, 12))
    assert resize(comb, 128, 128) is comb


@pytest.mark.parametrize("wrong", [{"size": 4}, {"padding": -0.1}, {"padding": 9}, {"shape": "round"}])
def test_impossible_chips(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        ChipSpec(**wrong)  # type: ignore[arg-type]


def test_a_chip_knows_its_scene_box_and_class(tmp_path: Path, scene: Scene) -> None:
    other = make_scene(tmp_path / "b.tif", ramp(2, 90, 100) + np.uint16(5000))
    labels = frame(
        (40, 50, 60, 70, "ship", other.path),
        (10, 60, 30, 80, "tank", scene.path),
        (10, 20, 30, 40, "ship", scene.path),
    )
    chips = cut_chips([other, scene], labels, ["ship", "tank", BACKGROUND], ChipSpec(26), TWO)
    known = {(s, *b): i for i, (s, b) in enumerate(zip(chips.scenes, chips.boxes.tolist(), strict=True))}
    for x0, y0, x1, y1, name, path in labels.itertuples(index=False):
        i = known[(path, x0, y0, x1, y1)]
        corner = 10_000 + 100 * (y0 - 3) + (x0 - 3) + (5000 if path == other.path else 0)
        assert chips[i][0][0, 0, 0] == corner
        assert chips.classes[chips[i][1]] == name
    part = chips.subset(np.array([2, 0]))
    assert part.scenes == [chips.scenes[2], chips.scenes[0]]
    np.testing.assert_array_equal(part.boxes, chips.boxes[[2, 0]])
    torch.testing.assert_close(part.pixels, chips.pixels[[2, 0]])
    assert chips.background == 2
    assert [v.shape[0] for v in chips[[0, 2]]] == [2, 2]


def test_the_cache_serves_what_has_not_changed(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts, original = [], chip._cut_all
    monkeypatch.setattr(chip, "_cut_all", lambda *a: cuts.append(1) or original(*a))
    labels = frame((40, 50, 60, 70, "ship", scene.path), (10, 20, 30, 40, "tank", scene.path))
    cache = tmp_path / "deep" / "cache"

    def cut(table: pd.DataFrame = labels, spec: ChipSpec = ChipSpec(8), fill: Radiometry = TWO) -> torch.Tensor:  # noqa: B008
        return cut_chips([scene], table, ["ship", "tank"], spec, fill, cache).pixels

    first = cut()
    torch.testing.assert_close(cut(), first, rtol=0, atol=0)
    assert len(cuts) == 1
    changed = [{"spec": ChipSpec(9)}, {"spec": ChipSpec(8, 0.2)}, {"spec": ChipSpec(8, shape="square")}]
    moved = labels.assign(x_min=labels.x_min + 1)
    changed += [{"table": moved}, {"fill": Radiometry(TWO.names, 1000.0, (0.4, 0.25), TWO.std)}]
    for n, change in enumerate(changed, start=2):
        cut(**change)  # type: ignore[arg-type]
        assert len(cuts) == n, change
    make_scene(Path(scene.path), ramp(2, 90, 100) + np.uint16(1))
    os.utime(scene.path, ns=(1, 1))
    torch.testing.assert_close(cut(), first + 1)
    assert len(cuts) == 7
    assert not list(cache.glob("*.part"))


def grown(boxes: pd.DataFrame, part: float) -> np.ndarray:
    """``[N, 4]``: the boxes with this part of their width and height added on each side."""
    corners = boxes[COLUMNS[:4]].to_numpy(float)
    more = part * (corners[:, 2:] - corners[:, :2])
    return np.concatenate([corners[:, :2] - more, corners[:, 2:] + more], axis=1)


def touch(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether any of the boxes ``[N, 4]`` and ``[M, 4]`` share a place."""
    a, b = some[:, None], others[None]
    return bool(((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:])).all(axis=2).any())


@pytest.fixture
def pair(tmp_path: Path, scene: Scene) -> tuple[list[Scene], pd.DataFrame]:
    """A labelled scene with large and small boxes, and an unlabelled one of the same size."""
    bare = make_scene(tmp_path / "bare.tif", ramp(2, 90, 100))
    rows = [(x, y, x + 6, y + 6, "car", scene.path) for x in (12, 52, 80) for y in (10, 60)]
    return [scene, bare], frame(*rows, (30, 30, 50, 50, "house", scene.path))


def test_background_chips_touch_no_dilated_box(pair: tuple[list[Scene], pd.DataFrame]) -> None:
    (scene, bare), labels = pair
    got = sample_background([scene, bare], labels, 200, seed=3)
    assert len(got) == 200
    assert set(got.class_name) == {BACKGROUND}
    assert set(got.scene) == {scene.path, bare.path}
    here = got[got.scene == scene.path]
    assert not touch(grown(here, 0.15), grown(labels, 0.2))  # a chip shows 15 % more than its box
    assert touch(grown(here, 0.15), grown(labels, 0.5))  # but comes as near as that
    untrained = labels.assign(x_min=labels.x_min + 8, x_max=labels.x_max + 8)
    got = sample_background([scene], labels, 50, spec=ChipSpec(shape="square", padding=0), avoid=untrained)
    assert not touch(grown(got, 0), grown(untrained, 0.2))
    assert touch(grown(got, 0), grown(labels, 0.2))
    sizes = got[["x_max", "y_max"]].to_numpy() - got[["x_min", "y_min"]].to_numpy()
    assert set(map(tuple, sizes.tolist())) == {(6.0, 6.0), (20.0, 20.0)}
    assert (got[["x_min", "y_min"]] >= 0).all(axis=None)
    assert (got.x_max <= 100).all()
    assert (got.y_max <= 90).all()


def test_background_follows_its_seed_and_the_area_of_interest(pair: tuple[list[Scene], pd.DataFrame]) -> None:
    scenes, labels = pair
    first, again, other = (sample_background(scenes, labels, 20, seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)
    small = sample_background([s.within((0, 0, 40, 90)) for s in scenes], labels, 30, seed=1)
    assert (len(small), small.x_max.max() <= 40) == (30, True)


def test_background_is_mostly_valid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = ramp(1, 60, 80)
    pixels[:, :, :40] = 0
    scene = make_scene(tmp_path / "a.tif", pixels, nodata=0)
    size = frame((60, 20, 70, 30, "ship", scene.path))
    got = sample_background([scene], size, 12, seed=0)
    assert len(got) == 12
    assert (got.x_min >= 35).all()  # at least half of ten columns
    none = sample_background([scene], frame((40, 0, 80, 60, "ship", scene.path)), 5, seed=0)
    assert none.empty
    assert "Room for 0 background chips only, 5 were asked for." in caplog.text
