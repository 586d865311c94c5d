from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.pooled import WindowSearch
from tests.conftest import make_scene
from tests.search.conftest import Pixels, correlation_model, engine_of, ground, plant, thing

Found = list[tuple[str, tuple[float, ...], float]]

# A box of 40 pixels has a window of 52, whose places are 26 apart: a thing at 6 + 26 k lies in one of them exactly.
SIDE, MARGIN, STEP = 40, 6, 26


def exemplar(folder: Path, name: str, what: Pixels, around: int = 60) -> Exemplar:
    """The thing alone in a scene of its own."""
    height, width = what.shape[1:]
    pixels = ground(height + 2 * around, width + 2 * around)
    box = plant(pixels, what, around, around)
    return Exemplar(name, make_scene(folder / f"{name}_{width}x{height}.tif", pixels), box)


def prepared(model: TrainedModel | None = None, exemplars: tuple[Exemplar, ...] = (), **options: Any) -> WindowSearch:  # noqa: ANN401
    model = model or correlation_model()
    method = WindowSearch(**options)
    method.prepare(model, engine_of(model), exemplars, lambda scene: model.radiometry)
    return method


def find(method: WindowSearch, scene: Scene, least: float = 0.9) -> Found:
    every = Candidates.join(list(method.candidates(scene, dict.fromkeys(method.classes, least))))
    found = suppress(every, 0.1)
    rows = zip(found.classes, found.boxes.tolist(), found.scores.tolist(), strict=True)
    return [(method.classes[c], tuple(np.round(box, 6).tolist()), score) for c, box, score in rows]


def boxes(found: Found) -> list[tuple[str, tuple[float, ...]]]:
    return [(name, box) for name, box, _ in found]


@pytest.mark.parametrize(("column", "row"), [(0, 0), (3, 1), (6, 6), (1, 5)])
def test_a_thing_is_found_where_it_lies(tmp_path: Path, column: int, row: int) -> None:
    boat = thing(1, SIDE, SIDE)
    pixels = ground(208, 208)
    box = plant(pixels, boat, MARGIN + STEP * column, MARGIN + STEP * row)
    found = find(prepared(exemplars=(exemplar(tmp_path, "boat", boat),)), make_scene(tmp_path / "a.tif", pixels), 0.5)
    assert boxes(found) == [("boat", box)]
    assert found[0][2] > 0.999


def test_one_pixel_beside_the_grid_is_seen_in_the_score(tmp_path: Path) -> None:
    """So a grid that reads one pixel off what it reports would fail above."""
    boat = thing(1, SIDE, SIDE)
    pixels = ground(208, 208)
    plant(pixels, boat, MARGIN + STEP * 3 + 1, MARGIN + STEP)
    found = find(prepared(exemplars=(exemplar(tmp_path, "boat", boat),)), make_scene(tmp_path / "a.tif", pixels), 0.1)
    assert found[0][2] < 0.9


def test_the_last_column_and_row_are_searched(tmp_path: Path) -> None:
    boat = thing(1, SIDE, SIDE)
    method = prepared(exemplars=(exemplar(tmp_path, "boat", boat),))
    for width, height in ((208, 208), (221, 195), (300, 217)):
        pixels = ground(height, width)
        box = plant(pixels, boat, width - SIDE - MARGIN, height - SIDE - MARGIN)
        (found,) = find(method, make_scene(tmp_path / f"{width}.tif", pixels), 0.6)
        # The level has whole pixels, of 52 / 64 each: the last window may lie so much further out.
        assert np.abs(np.subtract(found[1], box)).max() < 1


@pytest.mark.parametrize("pad", [0, 2, 5])
def test_a_thing_in_a_scene_smaller_than_its_window(tmp_path: Path, pad: int) -> None:
    boat = thing(1, SIDE, SIDE)
    pixels = ground(SIDE + 2 * pad, SIDE + 2 * pad)
    box = plant(pixels, boat, pad, pad)
    found = find(prepared(exemplars=(exemplar(tmp_path, "boat", boat),)), make_scene(tmp_path / "a.tif", pixels))
    assert boxes(found) == [("boat", box)]
    assert found[0][2] > 0.999


def test_classes_of_two_sizes_each_have_their_own_window_and_box(tmp_path: Path) -> None:
    boat, hall = thing(1, 40, 40), thing(2, 160, 80)
    pixels = ground(416, 624)
    first = plant(pixels, boat, 6 + 26 * 2, 6 + 26 * 3)
    second = plant(pixels, hall, 24 + 104 * 3, 12 + 52 * 2)
    exemplars = (exemplar(tmp_path, "hall", hall), exemplar(tmp_path, "boat", boat))
    method = prepared(exemplars=exemplars)
    assert method.classes == ["boat", "hall"]
    scene = make_scene(tmp_path / "a.tif", pixels)
    assert sorted(boxes(find(method, scene))) == [("boat", first), ("hall", second)]
    # 104 x 208 pixels of the hall's windows: 24 x 16 places of the boat's, 5 x 7 of its own.
    assert method.windows(scene) == {"boat": 23 * 15, "hall": 5 * 7}


def test_two_classes_of_one_size_share_a_pass_and_are_told_apart(tmp_path: Path) -> None:
    boat, raft = thing(1, SIDE, SIDE), thing(2, SIDE, SIDE)
    pixels = ground(208, 208)
    first, second = plant(pixels, boat, 6, 6 + 26 * 3), plant(pixels, raft, 6 + 26 * 4, 6 + 26 * 2)
    method = prepared(exemplars=(exemplar(tmp_path, "raft", raft), exemplar(tmp_path, "boat", boat)))
    found = find(method, make_scene(tmp_path / "a.tif", pixels))
    assert sorted(boxes(found)) == [("boat", first), ("raft", second)]


def test_nearly_equal_sizes_share_a_pass_but_keep_their_boxes(tmp_path: Path) -> None:
    boat, raft = thing(1, 40, 40, grain=10), thing(2, 42, 42, grain=10)
    pixels = ground(260, 260)
    plant(pixels, boat, 6, 6)
    plant(pixels, raft, 112, 112)
    method = prepared(exemplars=(exemplar(tmp_path, "raft", raft), exemplar(tmp_path, "boat", boat)), tolerance=0.1)
    assert len(method.passes) == 1
    found = find(method, make_scene(tmp_path / "a.tif", pixels), 0.5)
    sides = {name: (box[2] - box[0], box[3] - box[1]) for name, box, _ in found}
    assert sides["boat"] == pytest.approx((40, 40))
    assert sides["raft"] == pytest.approx((42, 42))
    assert (
        len(prepared(exemplars=(exemplar(tmp_path, "r", raft), exemplar(tmp_path, "b", boat)), tolerance=0).passes) == 2
    )


def test_a_scene_is_read_once_for_all_classes_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[int, ...]] = []
    plain = SceneReader.read

    def counted(self: SceneReader, *window: int) -> Any:  # noqa: ANN401
        reads.append(window)
        return plain(self, *window)

    scene = make_scene(tmp_path / "a.tif", ground(300, 300))
    exemplars = [exemplar(tmp_path, f"class {i}", thing(i, SIDE, SIDE)) for i in range(5)]
    counts, embedded = [], []
    for number in (1, 5):
        model = correlation_model()
        method = prepared(model, tuple(exemplars[:number]))
        model.embedder.batches.clear()  # type: ignore[operator, union-attr]
        monkeypatch.setattr(SceneReader, "read", counted)
        find(method, scene)
        monkeypatch.undo()
        counts.append(len(reads))
        embedded.append(sum(model.embedder.batches))  # type: ignore[arg-type]
        reads.clear()
    assert counts[0] == counts[1] > 0
    assert embedded[0] == embedded[1] == 11 * 11


def test_scales_find_larger_and_smaller_ones(tmp_path: Path) -> None:
    boat = thing(1, SIDE, SIDE, grain=10)
    pixels = ground(416, 416)
    small = plant(pixels, boat, 6, 6 + 26)
    large = plant(pixels, boat.repeat(2, 1).repeat(2, 2), 12 + 52 * 3, 12 + 52 * 4)
    scene = make_scene(tmp_path / "a.tif", pixels)
    source = (exemplar(tmp_path, "boat", boat),)
    assert boxes(find(prepared(exemplars=source), scene)) == [("boat", small)]
    assert boxes(find(prepared(exemplars=source, scales=[2]), scene)) == [("boat", large)]
    both = prepared(exemplars=source, scales=[1, 2.0])
    assert sorted(boxes(find(both, scene))) == sorted([("boat", small), ("boat", large)])
    assert both.windows(scene) == {"boat": 15 * 15 + 7 * 7}


def test_the_originals_fixed_window(tmp_path: Path) -> None:
    """64 pixels at native resolution, 32 apart; the box is what lies inside the padding."""
    boat = thing(1, 50, 50)
    pixels = ground(192, 256)
    plant(pixels, boat, 64 + 7, 32 + 7)
    method = prepared(exemplars=(exemplar(tmp_path, "boat", boat),), window=64)
    scene = make_scene(tmp_path / "a.tif", pixels)
    assert method.windows(scene) == {"boat": 7 * 5}
    every = Candidates.join(list(method.candidates(scene, {"boat": 0})))
    assert sorted({b for b in every.regions[:, 0].tolist()}) == [0, 32, 64, 96, 128, 160, 192]
    assert set((every.regions[:, 2:] - every.regions[:, :2]).ravel().tolist()) == {64}
    best = int(every.scores.argmax())
    assert every.regions[best].tolist() == [64, 32, 128, 96]
    inner = 64 / 1.3 / 2
    assert np.allclose(every.boxes[best], [96 - inner, 64 - inner, 96 + inner, 64 + inner])


def test_the_stride_is_an_option(tmp_path: Path) -> None:
    boat = thing(1, SIDE, SIDE)
    pixels = ground(156, 156)
    box = plant(pixels, boat, MARGIN + 13 * 3, MARGIN + 13)
    method = prepared(exemplars=(exemplar(tmp_path, "boat", boat),), stride=16)
    assert boxes(find(method, make_scene(tmp_path / "a.tif", pixels))) == [("boat", box)]


def test_a_prototype_is_the_mean_of_its_exemplars_and_a_box_their_median(tmp_path: Path) -> None:
    ones = [
        exemplar(tmp_path / str(i), "boat", thing(i, w, h)) for i, (w, h) in enumerate([(40, 20), (50, 22), (90, 80)])
    ]
    (target,) = prepared(exemplars=tuple(ones)).targets
    assert target.extent == (50, 22)
    alone = torch.stack([prepared(exemplars=(one,)).targets[0].prototype for one in ones])
    assert torch.allclose(target.prototype, torch.nn.functional.normalize(alone.mean(0), dim=0), atol=1e-6)


def test_dihedral_prototypes_find_a_turned_thing(tmp_path: Path) -> None:
    boat = thing(1, SIDE, SIDE)
    pixels = ground(208, 208)
    box = plant(pixels, np.rot90(boat, axes=(1, 2)), MARGIN + STEP * 2, MARGIN + STEP)
    scene, source = make_scene(tmp_path / "a.tif", pixels), (exemplar(tmp_path, "boat", boat),)
    assert find(prepared(exemplars=source), scene, 0.3) == []
    assert boxes(find(prepared(exemplars=source, dihedral=True), scene, 0.3)) == [("boat", box)]


def test_the_checkpoints_classes_are_sought_without_exemplars(tmp_path: Path) -> None:
    boat = thing(1, SIDE, SIDE)
    made = prepared(exemplars=(exemplar(tmp_path, "boat", boat),)).targets[0]
    model = correlation_model(classes=("boat",), prototypes={"boat": made.prototype}, extents={"boat": (40.0, 40.0)})
    pixels = ground(208, 208)
    box = plant(pixels, boat, MARGIN + STEP, MARGIN + STEP)
    scene = make_scene(tmp_path / "a.tif", pixels)
    assert boxes(find(prepared(model), scene)) == [("boat", box)]
    # Given exemplars are what is sought, known class or new.
    novel = prepared(model, (exemplar(tmp_path, "kite", thing(5, SIDE, SIDE)),))
    assert novel.classes == ["kite"]
    assert find(novel, scene, 0.5) == []


def test_bands_swapped_between_exemplar_and_scene_match_no_more(tmp_path: Path) -> None:
    boat = thing(1, SIDE, SIDE)
    pixels = ground(208, 208)
    plant(pixels, boat, MARGIN, MARGIN)
    method = prepared(exemplars=(exemplar(tmp_path, "boat", boat),))
    assert find(method, make_scene(tmp_path / "b.tif", pixels[[2, 1, 0, 3]].copy()), 0.8) == []


def test_an_exemplar_without_valid_pixels(tmp_path: Path) -> None:
    scene = make_scene(tmp_path / "a.tif", np.zeros((4, 80, 80), np.uint16), nodata=0)
    with pytest.raises(InputError, match="valid pixel"):
        prepared(exemplars=(Exemplar("boat", scene, (10, 10, 50, 50)),))


@pytest.mark.parametrize(
    "options",
    [{"scales": []}, {"scales": [0]}, {"scales": [1, -1]}, {"window": 3}, {"stride": 0}, {"stride": 65}],
)
def test_impossible_settings_are_told_before_any_scene_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        prepared(exemplars=(exemplar(tmp_path, "boat", thing(1, SIDE, SIDE)),), **options)


def test_nothing_to_search_for() -> None:
    with pytest.raises(InputError, match="nothing to search for"):
        prepared()


def test_a_window_larger_than_every_scene_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, boat = correlation_model(), exemplar(tmp_path, "boat", thing(1, SIDE, SIDE))
    scenes = [make_scene(tmp_path / "a.tif", ground(60, 90)), make_scene(tmp_path / "b.tif", ground(50, 50))]

    def told(window: int, scales: tuple[float, ...] = (1.0,)) -> bool:
        caplog.clear()
        method = WindowSearch(window=window, scales=scales, calibration="training")
        method.prepare(model, engine_of(model), (boat,), lambda scene: model.radiometry, scenes)
        return "larger than every scene" in caplog.text

    assert not told(90)
    assert told(91)
    assert not told(91, (1.0, 0.5))
