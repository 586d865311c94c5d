from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shapely import box
from torch import Tensor

from siamese_sat.data.scene import Scene
from siamese_sat.model.calibration import Calibration
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.ordinary import PLACES, CosineCurve, _places, fit_cosines, random_windows
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.score import ScoreCurve
from siamese_sat.search.sliding import Sliding, undisturbed
from siamese_sat.search.tile import Job
from siamese_sat.search.unlike import Unlike
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY
from tests.search.conftest import correlation_model, engine_of, ground, plant, thing
from tests.search.test_pooled import exemplar
from tests.search.test_sliding import by_box, grains, make_engine


def around(direction: Tensor, cosine: float, count: int, seed: int) -> Tensor:
    """Unit vectors ``[count, D]`` at that cosine, but for a little, from a direction."""
    rng = np.random.default_rng(seed)
    other = torch.from_numpy(rng.normal(size=(count, len(direction))))
    other -= (other @ direction)[:, None] * direction
    angle = torch.arccos(torch.from_numpy(cosine + rng.normal(0, 0.002, count)).clamp(-1, 1))[:, None]
    return torch.cos(angle) * direction + torch.sin(angle) * F.normalize(other, dim=1)


DIRECTION = F.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=64)), dim=0)


def test_a_cosine_counts_by_how_far_it_is_above_the_ordinary() -> None:
    """The network finds all much alike: 0.9 is nothing, 0.98 is much."""
    views = around(DIRECTION, 0.985, 5, 1)[:, None]
    curve = fit_cosines(F.normalize(views.mean((0, 1)), dim=0), views, around(DIRECTION, 0.9, 400, 2))
    assert curve.ordinary == pytest.approx(0.9, abs=0.03)
    low, high = curve(np.array([curve.ordinary, 0.995]))
    assert low == 0
    assert high > 0.6
    assert (np.diff(curve(np.linspace(0.9, 1, 50))) >= 0).all()


def test_what_the_class_itself_scores_is_asked_and_what_is_ordinary_too() -> None:
    background = around(DIRECTION, 0.5, 400, 2)

    def threshold(views: Tensor) -> float:
        return float(fit_cosines(F.normalize(views.mean((0, 1)), dim=0), views, background).cosine(0.3))

    alike, unlike = (threshold(around(DIRECTION, cosine, 5, 1)[:, None]) for cosine in (0.99, 0.8))
    assert alike > unlike > 0.5
    # One of them would not be ordinary enough.
    views = around(DIRECTION, 0.55, 5, 1)[:, None]
    prototype = F.normalize(views.mean((0, 1)), dim=0)
    reached = (background @ prototype >= threshold(views)).double().mean()
    assert 0 < reached <= 0.0101


def test_a_single_exemplar_is_held_against_the_ordinary_alone() -> None:
    background = around(DIRECTION, 0.5, 400, 2)
    one = fit_cosines(DIRECTION, DIRECTION[None, None], background)
    top = float(np.quantile((background @ DIRECTION).numpy(), 0.99))
    assert one.ordinary < top < float(one.cosine(0.3)) < 1


def test_only_the_other_exemplars_say_what_one_of_them_scores() -> None:
    """With itself among them, exemplars of nothing in common would seem alike."""
    views = F.normalize(torch.from_numpy(np.random.default_rng(3).normal(size=(5, 1, 512))), dim=2)
    background = F.normalize(torch.from_numpy(np.random.default_rng(4).normal(size=(400, 512))), dim=1)
    prototype = F.normalize(views.mean((0, 1)), dim=0)
    assert float((views[:, 0] @ prototype).mean()) > 0.4, "so it would be"
    assert float(fit_cosines(prototype, views, background).cosine(0.3)) < 0.2


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9])
def test_a_probability_has_its_cosine(probability: float) -> None:
    curve = CosineCurve(0.8, ScoreCurve(0.4, 6.0))
    assert curve(curve.cosine(np.array([probability]))) == pytest.approx(probability)
    assert curve.cosine(0.3) == pytest.approx(0.8 + 0.2 * 0.4)
    assert np.isfinite(curve.cosine(1.0))


def test_random_windows_are_windows_of_the_scenes(tmp_path: Path) -> None:
    engine = make_engine()
    scenes = [make_scene(tmp_path / f"{i}.tif", grains()[:, :, i:]) for i in range(2)]
    found = random_windows(engine, scenes, lambda _: RADIOMETRY, (20, 20), 64, 32)
    again = random_windows(engine, scenes, lambda _: RADIOMETRY, (20, 20), 64, 32)
    other = random_windows(engine, scenes, lambda _: RADIOMETRY, (20, 20), 64, 32, seed=1)
    assert found is not None
    assert again is not None
    assert other is not None
    assert torch.equal(found, again)
    assert len(found) == len(other) == PLACES * 7 * 7
    assert not torch.equal(found, other)
    assert len(torch.unique(found.round(decimals=4), dim=0)) > 10, "of many places"


@pytest.mark.parametrize("window", [(20, 20), (20, 36)])
def test_dense_random_windows_have_around_them_what_they_have_in_the_scene(
    tmp_path: Path, window: tuple[int, int]
) -> None:
    scene = make_scene(tmp_path / "a.tif", grains())
    engine = make_engine()
    sliding = Sliding.of(engine, 64, 32)
    found = random_windows(sliding, [scene], lambda _: RADIOMETRY, window, 64, 32)
    assert found is not None
    expected = []
    for part, _ in _places([scene], [6 * side for side in window], np.random.default_rng(0)):
        x0, y0, x1, y1 = part.aoi
        # From the same grid, but larger: begun whole windows before it.
        left, top = (min(2, first // side) * side for first, side in zip((x0, y0), window, strict=True))
        wide = scene.within((x0 - left, y0 - top, x1 + 2 * window[0], y1 + 2 * window[1]))
        middle = box(*undisturbed(part, scene, window))
        expected += [v for b, v in by_box(sliding, Job(wide, window), 32).items() if middle.covers(box(*b))]
    assert len(found) == len(expected) > 32
    assert float((found - torch.stack(expected)).abs().max()) < 0.005


def test_a_small_scene_is_seen_once_and_says_nothing_if_it_is_too_small(tmp_path: Path) -> None:
    engine = make_engine()
    small = make_scene(tmp_path / "a.tif", grains()[:, :80, :80])
    found = random_windows(engine, [small], lambda _: RADIOMETRY, (20, 20), 64, 32)
    assert found is not None
    assert len(found) == len(by_box(engine, Job(small, (20, 20)), 32)) == 49
    assert random_windows(engine, [small], lambda _: RADIOMETRY, (60, 60), 64, 32) is None
    assert random_windows(engine, [], lambda _: RADIOMETRY, (20, 20), 64, 32) is None


def test_what_is_no_data_is_not_ordinary(tmp_path: Path) -> None:
    pixels = grains()[:, :80, :80]
    pixels[:, :, 40:] = 0
    scene = make_scene(tmp_path / "a.tif", pixels, nodata=0)
    engine = make_engine()
    found = random_windows(engine, [scene], lambda _: RADIOMETRY, (20, 20), 64, 32)
    all_of_it = by_box(engine, Job(scene, (20, 20)), 32)
    assert found is None or len(found) == len(all_of_it) < 49


def searched(scene: Scene, method: WindowSearch | Unlike, least: float) -> Candidates:
    found = Candidates.join(list(method.candidates(scene, dict.fromkeys(method.classes, least))))
    return suppress(found, 0.1)


def ready(folder: Path, calibration: Calibration, scenes: list[Scene]) -> WindowSearch:
    model = correlation_model(calibration=calibration)
    method = WindowSearch()
    method.prepare(model, engine_of(model), boats(folder), lambda scene: model.radiometry, scenes)
    return method


def boats(folder: Path) -> list[Exemplar]:
    return [exemplar(folder / str(number), "boat", boat(number)) for number in range(3)]


def boat(number: int) -> np.ndarray:
    return (thing(1, 40, 40) * 0.8 + thing(10 + number, 40, 40) * 0.2).astype(np.uint16)


def land(folder: Path) -> tuple[Scene, tuple[int, int, int, int]]:
    pixels = (ground(520, 520) * 0.8 + thing(99, 520, 520, grain=9) * 0.2).astype(np.uint16)
    where = plant(pixels, boat(7), 6 + 26 * 3, 6 + 26 * 5)
    return make_scene(folder / "land.tif", pixels), where


def test_without_a_calibration_the_scenes_say_what_a_score_means(tmp_path: Path) -> None:
    scene, where = land(tmp_path)
    plain = ready(tmp_path, Calibration(), [])
    flood = searched(scene, plain, 0.3)
    assert len(flood.scores) > 20, "as (cosine + 1) / 2"
    found = searched(scene, ready(tmp_path, Calibration(), [scene]), 0.3)
    assert 1 <= len(found.scores) < 5
    best = int(found.scores.argmax())
    assert tuple(found.boxes[best]) == pytest.approx(where)
    assert found.scores[best] > 0.7


def test_it_changes_no_order(tmp_path: Path) -> None:
    scene, _ = land(tmp_path)
    plain, learned = (searched(scene, ready(tmp_path, Calibration(), some), 0.0) for some in ([], [scene]))
    order, again = (np.argsort(-found.scores, kind="stable")[:20] for found in (plain, learned))
    assert np.array_equal(plain.boxes[order], learned.boxes[again])
    assert (np.diff(learned.scores[again]) <= 0).all()


def test_a_fitted_calibration_stands(tmp_path: Path) -> None:
    scene, _ = land(tmp_path)
    fitted = Calibration(4.0, -2.0, "logistic")
    method = ready(tmp_path, fitted, [scene])
    assert all(target.curve is None for target in method.targets)
    assert fitted.fitted
    assert not Calibration().fitted


def test_windows_as_large_as_the_scenes_are_judged_by_those_of_other_classes(tmp_path: Path) -> None:
    scene, _ = land(tmp_path)
    model = correlation_model(calibration=Calibration())
    large = exemplar(tmp_path, "field", thing(5, 400, 400))
    method = WindowSearch()
    shown = [*boats(tmp_path), large]
    method.prepare(model, engine_of(model), shown, lambda scene: model.radiometry, [scene])
    assert all(target.curve is not None for target in method.targets)
    method.prepare(model, engine_of(model), [large], lambda scene: model.radiometry, [scene])
    assert method.targets[0].curve is None


def test_a_negative_is_measured_on_the_scale_of_what_it_is_held_against(tmp_path: Path) -> None:
    scene, where = land(tmp_path)
    model = correlation_model(calibration=Calibration())
    inner = WindowSearch()
    method = Unlike(inner, [exemplar(tmp_path, "other", thing(5, 40, 40))])
    method.prepare(model, engine_of(model), boats(tmp_path), lambda scene: model.radiometry, [scene])
    number = inner.classes.index("boat")
    mine, other = inner.targets[number].curve, inner.targets[1 - number].curve
    assert mine is not None
    assert other is not None
    assert mine.ordinary != other.ordinary
    classes = np.array([number, 1 - number])
    own, on = inner.on_scale(number, Candidates(np.zeros((2, 4)), np.zeros((2, 4)), classes, np.array([0.7, 0.7])))
    assert own == 0.7
    assert on == pytest.approx(float(mine(other.cosine(np.array([0.7])))[0]))
    assert on != 0.7
    found = searched(scene, method, 0.3)
    assert tuple(found.boxes[int(found.scores.argmax())]) == pytest.approx(where), "unlike that, it stays"
