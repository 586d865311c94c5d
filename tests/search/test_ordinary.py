from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from shapely import box
from torch import Tensor

from siamese_sat.data.radiometry import Radiometry, RadiometryOf
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.calibration import Calibration
from siamese_sat.search.detect import Candidates, suppress
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.ordinary import PLACES, CosineCurve, fit_cosines, random_windows
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.score import ScoreCurve
from siamese_sat.search.sliding import Sliding, undisturbed, unlike
from siamese_sat.search.tile import Failure, Job
from siamese_sat.search.unlike import Unlike
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY
from tests.search.conftest import correlation_model, engine_of, ground, plant, thing
from tests.search.test_pooled import exemplar
from tests.search.test_sliding import by_box, grains, make_engine
from tests.search.test_stream import damaged

Drawn = tuple[Tensor | None, "Watched"]
Found = Iterator[Embedded | Failure]


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


@pytest.mark.parametrize("spread", [0.002, 0.5])
def test_a_single_exemplar_is_held_against_the_ordinary_alone(spread: float) -> None:
    """However much some of it resembles the exemplar, no more than can be is asked."""
    background = torch.cat([around(DIRECTION, 0.5, 390, 2), around(DIRECTION, 0.5 + spread - 0.01, 10, 3)])
    one = fit_cosines(DIRECTION, DIRECTION[None, None], background)
    top = float(np.quantile((background @ DIRECTION).numpy(), 0.99))
    assert one.ordinary < one.cosine(0.3) < 1
    assert one.cosine(0.3) == pytest.approx(min(top, one.ordinary + 0.6 * (1 - one.ordinary)))
    same = fit_cosines(DIRECTION, DIRECTION[None, None], DIRECTION.expand(40, -1))
    assert same.cosine(0.3) < 1, "even where all is alike"


def test_an_exemplar_in_several_views_is_held_against_the_others_views() -> None:
    """Only the first view of each is the exemplar itself: turned, it would look like nothing."""
    turned = around(DIRECTION, 0.1, 35, 5).reshape(5, 7, -1)
    views = torch.cat([around(DIRECTION, 0.97, 5, 1)[:, None], turned], dim=1)
    prototype = F.normalize(views.mean((0, 1)), dim=0)
    background = around(DIRECTION, 0.0, 400, 2)
    others = F.normalize(torch.stack([torch.cat([views[:i], views[i + 1 :]]).mean((0, 1)) for i in range(5)]), dim=1)
    expected = float((views[:, 0] * others).sum(1).median())
    curve = fit_cosines(prototype, views, background)
    assert curve.cosine(0.3) == pytest.approx(curve.ordinary + 0.6 * (expected - curve.ordinary), abs=0.01)


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
    assert curve(np.array([curve.cosine(probability)])) == pytest.approx(probability)
    assert curve.cosine(0.3) == pytest.approx(0.8 + 0.2 * 0.4)
    assert curve.cosine(0) < -1, "all reach it"
    assert curve.cosine(1) > 1, "nothing does"


class Watched:
    """An engine, and the jobs that it was given."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.jobs: list[Job] = []
        self.strides: list[int] = []

    def vectors(self, jobs: Sequence[Job], radiometry_of: RadiometryOf, size: int, stride: int) -> Found:
        self.jobs += jobs
        self.strides.append(stride)
        return self.engine.vectors(jobs, radiometry_of, size, stride)


def drawn(scenes: Sequence[Scene], window: tuple[int, int] = (20, 20), stride: int = 32, seed: int = 0) -> Drawn:
    watched = Watched(make_engine())
    found = random_windows(watched, scenes, lambda _: RADIOMETRY, window, 64, stride, seed)  # type: ignore[arg-type]
    return found, watched


def test_random_windows_are_windows_of_the_scenes(tmp_path: Path) -> None:
    scenes = [make_scene(tmp_path / f"{i}.tif", grains()[:, :, i:]) for i in range(2)]
    (found, watched), (again, _), (other, _) = drawn(scenes), drawn(scenes), drawn(scenes, seed=1)
    assert found is not None
    assert again is not None
    assert other is not None
    assert torch.equal(found, again)
    assert not torch.equal(found, other)
    assert len(watched.jobs) == PLACES
    assert len(found) == len(other) == PLACES * 7 * 7
    assert len({job.scene.path for job in watched.jobs}) == 2
    for axis in (0, 1):
        assert len({job.scene.aoi[axis] for job in watched.jobs}) > PLACES // 2, "here and there"


def test_places_are_spread_by_area(tmp_path: Path) -> None:
    large = make_scene(tmp_path / "large.tif", grains().repeat(2, 1).repeat(2, 2))
    small = make_scene(tmp_path / "small.tif", grains()[:, :90, :90])
    paths = [job.scene.path for seed in range(4) for job in drawn([small, large], seed=seed)[1].jobs]
    assert paths.count(large.path) > 0.9 * len(paths)


def test_it_costs_no_more_than_the_scenes_are_worth(tmp_path: Path) -> None:
    """However fine the stride, and however many places there could be."""
    scene = make_scene(tmp_path / "a.tif", grains()[:, :100, :100])
    found, watched = drawn([scene], stride=4)
    assert found is not None
    assert len(watched.jobs) <= math.ceil(100 * 100 / 80**2)
    assert watched.strides == [32]


@pytest.mark.parametrize("window", [(20, 20), (20, 36)])
def test_dense_random_windows_have_around_them_what_they_have_in_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: tuple[int, int]
) -> None:
    scene = make_scene(tmp_path / "a.tif", grains())
    sliding, vectors = Sliding.of(make_engine(), 64, 32), Sliding.vectors
    given: list[Job] = []

    def watched(self: Sliding, jobs: Sequence[Job], radiometry_of: RadiometryOf, size: int, stride: int) -> Found:
        given.extend(jobs)
        return vectors(self, jobs, radiometry_of, size, stride)

    with monkeypatch.context() as patch:
        patch.setattr(Sliding, "vectors", watched)
        found = random_windows(sliding, [scene], lambda _: RADIOMETRY, window, 64, 32)
    assert found is not None
    expected = []
    for part in (job.scene for job in given):
        x0, y0, x1, y1 = part.aoi
        # From the same grid, but larger: begun whole windows before it.
        left, top = (min(2, first // side) * side for first, side in zip((x0, y0), window, strict=True))
        wide = scene.within((x0 - left, y0 - top, x1 + 2 * window[0], y1 + 2 * window[1]))
        middle = box(*undisturbed(part, scene, window))
        expected += [v for b, v in by_box(sliding, Job(wide, window), 32).items() if middle.covers(box(*b))]
    assert len(found) == len(expected) > 32
    assert float((found - torch.stack(expected)).abs().max()) < 0.005


def test_a_small_scene_is_seen_once_and_says_nothing_if_it_is_too_small(tmp_path: Path) -> None:
    small = make_scene(tmp_path / "a.tif", grains()[:, :80, :80])
    found, watched = drawn([small])
    assert found is not None
    assert len(found) == len(by_box(watched.engine, Job(small, (20, 20)), 32)) == 49
    assert drawn([small], (60, 60))[0] is None
    assert drawn([])[0] is None


def test_what_is_no_data_is_not_ordinary(tmp_path: Path) -> None:
    pixels = grains()[:, :80, :80]
    pixels[:, :, 60:] = 0
    scene = make_scene(tmp_path / "a.tif", pixels, nodata=0)
    found, watched = drawn([scene])
    assert found is not None
    assert 32 <= len(found) == len(by_box(watched.engine, Job(scene, (20, 20)), 32)) < 49


def test_where_places_are_empty_others_are_drawn(tmp_path: Path) -> None:
    """A footprint that fills a tenth of its file."""
    pixels = grains()
    pixels[:, :, 40:] = 0
    scene = make_scene(tmp_path / "a.tif", pixels, nodata=0)
    found = [drawn([scene], seed=seed)[0] for seed in range(12)]
    assert all(vectors is not None for vectors in found)
    broken = damaged(tmp_path, "b")
    assert all(drawn([scene, broken], seed=seed)[0] is not None for seed in range(6))


def test_scenes_are_seen_by_their_own_statistics_not_by_those_of_a_part(tmp_path: Path) -> None:
    engine = make_engine()
    scene = make_scene(tmp_path / "a.tif", grains())
    asked = []

    def radiometry_of(of: Scene) -> Radiometry:
        asked.append(of.aoi)
        return RADIOMETRY

    random_windows(engine, [scene], radiometry_of, (20, 20), 64, 32)
    random_windows(Sliding.of(engine, 64, 32), [scene], radiometry_of, (20, 20), 64, 32)
    unlike(Sliding.of(engine, 64, 32), [scene], radiometry_of, (20, 20))
    assert len(asked) >= 4
    assert set(asked) == {scene.aoi}


def searched(scene: Scene, method: WindowSearch | Unlike, least: float) -> Candidates:
    found = Candidates.join(list(method.candidates(scene, dict.fromkeys(method.classes, least))))
    return suppress(found, 0.1)


def ready(folder: Path, calibration: Calibration, scenes: list[Scene], which: str = "auto") -> WindowSearch:
    model = correlation_model(calibration=calibration)
    method = WindowSearch(calibration=which)
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


@pytest.mark.parametrize(("calibration", "of_scenes"), [("training", False), ("scenes", True), ("auto", True)])
def test_a_trainings_calibration_or_the_scenes(tmp_path: Path, calibration: str, of_scenes: bool) -> None:
    scene, _ = land(tmp_path)
    fitted = Calibration(4.0, -2.0, "logistic")
    assert fitted.fitted
    assert not Calibration().fitted
    method = ready(tmp_path, fitted, [scene], calibration)
    assert all((target.curve is not None) == of_scenes for target in method.targets)
    found = Candidates.join(list(method.candidates(scene, {"boat": 0.0})))
    lowest = float(fitted(torch.tensor(-1.0)))
    assert (found.scores >= lowest).all() != of_scenes


@pytest.mark.parametrize(("calibration", "of_scenes"), [("training", False), ("scenes", True), ("auto", False)])
def test_of_its_own_classes_a_training_knows_more(tmp_path: Path, calibration: str, of_scenes: bool) -> None:
    scene, _ = land(tmp_path)
    shown = ready(tmp_path, Calibration(), [scene]).targets[0]
    model = correlation_model(
        calibration=Calibration(4.0, -2.0, "logistic"),
        prototypes={"boat": shown.prototype},
        extents={"boat": shown.extent},
    )
    method = WindowSearch(calibration=calibration)
    method.prepare(model, engine_of(model), [], lambda scene: model.radiometry, [scene])
    assert (method.targets[0].curve is not None) == of_scenes


def test_another_calibration_is_told() -> None:
    model = correlation_model()
    with pytest.raises(InputError, match="none of auto, training, scenes"):
        WindowSearch(calibration="platt").prepare(model, engine_of(model), [], lambda scene: model.radiometry)


def test_the_exemplar_itself_is_found_though_there_is_one_alone(tmp_path: Path) -> None:
    scene, where = land(tmp_path)
    model = correlation_model(calibration=Calibration())
    method = WindowSearch()
    method.prepare(model, engine_of(model), [Exemplar("boat", scene, where)], lambda scene: model.radiometry, [scene])
    found = searched(scene, method, 0.3)
    best = int(found.scores.argmax())
    assert tuple(found.boxes[best]) == pytest.approx(where)
    assert found.scores[best] > 0.9


def test_with_a_threshold_of_0_all_is_scored(tmp_path: Path) -> None:
    scene, _ = land(tmp_path)
    found = Candidates.join(list(ready(tmp_path, Calibration(), [scene]).candidates(scene, {"boat": 0.0})))
    assert len(found.scores) == 19 * 19
    assert (found.scores >= 0).all()


def test_each_class_has_a_scale_and_a_threshold_of_its_own(tmp_path: Path) -> None:
    scene, _ = land(tmp_path)
    model = correlation_model(calibration=Calibration())
    shown = [
        *boats(tmp_path),
        exemplar(tmp_path, "raft", thing(2, 40, 40)),
        exemplar(tmp_path, "tug", thing(5, 60, 60)),
    ]
    method = WindowSearch(scales=(1.0, 1.5))
    method.prepare(model, engine_of(model), shown, lambda scene: model.radiometry, [scene])
    curves = [target.curve for target in method.targets]
    assert len(set(curves)) == 3
    least = {"boat": 0.0, "raft": 1e-4, "tug": 1e-3}
    every = Candidates.join(list(method.candidates(scene, dict.fromkeys(method.classes, 0.0))))
    found = Candidates.join(list(method.candidates(scene, least)))
    for number, (name, curve) in enumerate(zip(method.classes, curves, strict=True)):
        assert curve is not None
        mine = np.sort(every.scores[every.classes == number])
        assert np.array_equal(np.sort(found.scores[found.classes == number]), mine[mine >= least[name]])
        assert (mine >= least[name]).sum() > 0
        # By its own curve: the cosines that it makes of the scores are those of the windows.
        job = [Job(scene, one.window) for one in method.passes if number in one.classes]
        seen = method.engine.vectors(job, lambda _: model.radiometry, 64, 32)
        vectors = torch.cat([got.vectors for got in seen if isinstance(got, Embedded)])
        cosines = (vectors.double() @ method.targets[number].prototype.double()).float().double().numpy()
        assert mine == pytest.approx(np.sort(curve(cosines)), abs=1e-9)


def test_all_sizes_that_are_sought_say_what_is_ordinary(tmp_path: Path) -> None:
    scene, _ = land(tmp_path)
    seen = []
    model = correlation_model(calibration=Calibration())
    for scales in ((1.0,), (2.0,), (1.0, 2.0)):
        method = WindowSearch(scales=scales)
        method.prepare(model, engine_of(model), boats(tmp_path), lambda scene: model.radiometry, [scene])
        assert method.targets[0].curve is not None
        seen.append(method.targets[0].curve.ordinary)
    assert len(set(seen)) == 3
    assert min(seen[:2]) <= seen[2] <= max(seen[:2])


def test_the_checkpoints_own_classes_too(tmp_path: Path) -> None:
    scene, where = land(tmp_path)
    shown = ready(tmp_path, Calibration(), [scene]).targets[0]
    model = correlation_model(
        calibration=Calibration(), prototypes={"boat": shown.prototype}, extents={"boat": shown.extent}
    )
    method = WindowSearch()
    method.prepare(model, engine_of(model), [], lambda scene: model.radiometry, [scene])
    found = searched(scene, method, 0.3)
    assert len(found.scores) < 10
    assert tuple(found.boxes[int(found.scores.argmax())]) == pytest.approx(where)


def test_too_little_to_say_it_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny = make_scene(tmp_path / "tiny.tif", ground(60, 60))
    ready(tmp_path, Calibration(), [tiny])
    assert "too small" in caplog.text
    caplog.clear()
    fitted = Calibration(4.0, -2.0, "logistic")
    ready(tmp_path, fitted, [tiny])
    assert "by the training's calibration" in caplog.text
    caplog.clear()
    ready(tmp_path, fitted, [tiny], "training")
    assert not caplog.records


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
    above = (other.cosine(0.7) - other.ordinary) / (1 - other.ordinary)
    assert on == pytest.approx(float(mine(np.array([mine.ordinary + above * (1 - mine.ordinary)]))[0]))
    assert on != 0.7
    found = searched(scene, method, 0.3)
    assert tuple(found.boxes[int(found.scores.argmax())]) == pytest.approx(where), "unlike that, it stays"
