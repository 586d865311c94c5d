"""What a search by templates tells of the places round what it finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from siamese_sat.data.scene import open_scene
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search import template
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.run import Search
from siamese_sat.search.scenery import STEPS
from siamese_sat.search.unlike import Unlike
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY
from tests.search.template.planted import BOAT, Searched, draw, save, texture

WIDTH, MIDDLE = 620, 310


def halves(seed: int, height: int = 300, width: int = WIDTH) -> np.ndarray:
    """Noise, as coarse as five pixels on the left, and stripes on the right."""
    pixels = texture(seed, height, width)
    stripes = np.where(np.arange(width) // 6 % 2, 2500.0, 200.0)
    pixels[:, :, width // 2 :] = stripes[None, None, width // 2 :]
    return pixels


@pytest.fixture(scope="module")
def boats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = halves(3)
    for x in (90, 220, 400, 530):
        draw(pixels, BOAT, x, 90)
        draw(pixels, BOAT, x, 220)
    return Path(save(tmp_path_factory.mktemp("halves") / "a.tif", pixels).path)


def side(found: Candidates) -> np.ndarray:
    """-1 well on the left, 1 well on the right, 0 near the middle."""
    x = (found.boxes[:, 0] + found.boxes[:, 2]) / 2
    return np.where(x < MIDDLE - 60, -1, np.where(x > MIDDLE + 60, 1, 0))


def searched(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], path: Path, **settings: object
) -> Searched:
    return Searched(model, engine, shown["boat"], open_scene(str(path), [1, 2, 3, 4]), **settings)


@pytest.mark.parametrize("deep", ["layer3", None])
def test_places_are_told_apart_by_what_lies_round_them(
    deep: str | None, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], boats: Path
) -> None:
    found = searched(model, engine, shown, boats, deep=deep).all().told
    assert found.surroundings is not None
    assert len(found.surroundings) == len(found.scores)
    assert found.surroundings.any(axis=1).all()
    unit = found.surroundings / STEPS
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=0.05)
    left, right = (unit[side(found) == s] for s in (-1, 1))
    assert min(len(left), len(right)) > 20
    means = [part.mean(axis=0) for part in (left, right)]
    nearer = [(part @ means[0] > part @ means[1]).mean() for part in (left, right)]
    assert nearer[0] > 0.95
    assert nearer[1] < 0.05


def test_tiles_and_parts_change_nothing(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], boats: Path
) -> None:
    whole = searched(model, engine, shown, boats)
    least = dict.fromkeys(whole.method.classes, 0.0)
    expected = Search(whole.method, least, 0.1).settle(whole.all())
    small = searched(model, engine, shown, boats, tile=160)
    search = Search(small.method, least, 0.1)
    parts = [Candidates.join(list(small.method.some(small.scene, least, (n, 3)))) for n in range(3)]
    assert all(part.scenery is not None for part in parts)
    found = search.gather(parts)
    assert found.scenery is None
    assert found.surroundings is not None
    assert expected.surroundings is not None
    overlap = box_iou(torch.from_numpy(expected.boxes[:20]), torch.from_numpy(found.boxes)).numpy()
    assert (overlap.max(axis=1) > 0.98).all()
    same = found.surroundings[overlap.argmax(axis=1)]
    assert np.abs(same.astype(int) - expected.surroundings[:20]).max() <= 2


def test_where_nothing_is_known_it_is_said(
    model: TrainedModel,
    engine: Engine,
    shown: dict[str, list[Exemplar]],
    boats: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scene of which no surroundings are known must not take those of the other scenes away."""
    monkeypatch.setattr(template, "sample", lambda *args: None)
    found = searched(model, engine, shown, boats).all().told
    assert found.surroundings is not None
    assert len(found.surroundings) == len(found.scores) > 0
    assert not found.surroundings.any()


def test_of_what_is_not_reranked_nobody_asks(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], boats: Path
) -> None:
    found = searched(model, engine, shown, boats, rerank=0.0).all()
    assert found.scenery is None
    assert found.told.surroundings is None


def test_beside_marked_mistakes_it_is_told_too(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], boats: Path
) -> None:
    one = searched(model, engine, shown, boats)
    method = Unlike(one.method, shown["pool"])
    method.prepare(model, engine, shown["boat"], lambda scene: RADIOMETRY, [one.scene])
    least = dict.fromkeys(method.classes, 0.0)
    search = Search(method, least, 0.1)
    here = search.settle(Candidates.join(list(method.candidates(one.scene, least))))
    there = search.gather([Candidates.join(list(method.some(one.scene, least, (n, 2)))) for n in range(2)])
    assert here.surroundings is not None
    assert here.surroundings.any()
    np.testing.assert_array_equal(here.surroundings, there.surroundings)
    np.testing.assert_array_equal(here.boxes, there.boxes)


def test_what_is_not_valid_is_no_surroundings(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    """Of a scene that ends in nothing the surroundings are those of one that ends there."""
    pixels = texture(5, 260, 400)
    for x in (60, 175):
        draw(pixels, BOAT, x, 130)
    cut = pixels.clip(1).astype("uint16")
    cut[:, :, 200:] = 0
    scenes = [make_scene(tmp_path / f"{n}.tif", cut[:, :, :n], nodata=0) for n in (400, 200)]
    method = Searched(model, engine, shown["boat"], scenes[0]).method
    told = []
    for scene in scenes:
        found = Candidates.join(list(method.candidates(scene, {"boat": 0.0}))).told
        assert found.surroundings is not None
        inside = found.surroundings[(found.boxes[:, 0] + found.boxes[:, 2]) / 2 < 160]
        assert inside.any(axis=1).all()
        told.append(inside.mean(axis=0) / STEPS)
        assert found.scenery is None
        whole = Candidates.join(list(method.candidates(scene, {"boat": 1.0}))).scenery
        assert whole is not None
        (samples,) = whole.samples.values()
        x = samples.first[0] + samples.places[:, 1] * samples.apart
        # Where no valid cell is near there is no sample.
        assert len(x) > 10
        assert x.max() < 200 + 100
    cosine = told[0] @ told[1] / np.prod([np.linalg.norm(one) for one in told])
    assert cosine > 0.9
