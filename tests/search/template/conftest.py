"""A net of a few thousand weights, exemplars of three classes, and a scene that is searched for two."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from siamese_sat.data.chip import ChipSpec
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from tests.model.conftest import RADIOMETRY, tiny_embedder
from tests.search.template.planted import BOAT, POOL, TRAIN, Searched, draw, save, texture


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small mostly wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(DeployedEmbedder(tiny_embedder().eval()), torch.device("cpu"))


@pytest.fixture(scope="module")
def model() -> TrainedModel:
    return TrainedModel(tiny_embedder().eval(), RADIOMETRY, ChipSpec(), (1, 2, 3, 4), (), None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Exemplar]]:
    """Three boats, two pools, two trains, none of them turned."""
    pixels, boxes = texture(1, 320, 320), []
    for name, shape, cx, cy in [
        ("boat", BOAT, 60.3, 60.7),
        ("boat", BOAT, 150, 200.5),
        ("boat", BOAT, 230.2, 90),
        ("pool", POOL, 240, 240),
        ("pool", POOL, 80.4, 260),
        ("train", TRAIN, 150, 40),
        ("train", TRAIN, 120, 130.5),
    ]:
        boxes.append((name, draw(pixels, shape, cx, cy)))
    scene = save(tmp_path_factory.mktemp("shown") / "shown.tif", pixels)
    return {c: [Exemplar(c, scene, b) for n, b in boxes if n == c] for c in ("boat", "pool", "train")}


@pytest.fixture(scope="module")
def small(
    model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path_factory: pytest.TempPathFactory
) -> Searched:
    """A boat and a pool, 200 x 230 pixels."""
    pixels = texture(7, 200, 230)
    draw(pixels, BOAT, 70, 60)
    draw(pixels, POOL, 150, 130)
    scene = save(tmp_path_factory.mktemp("small") / "a.tif", pixels)
    return Searched(model, engine, [*shown["boat"], *shown["pool"]], scene)
