"""A method with random weights, prepared, and small scenes to search by it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from siamese_sat.data.chip import ChipSpec
from siamese_sat.data.scene import Scene
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder, EmbedderSpec
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.method import SearchMethod
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.template import TemplateSearch
from siamese_sat.searching import OneForAll
from siamese_sat.synthetic import make_scene as draw
from tests.conftest import make_scene, skip_without_openvino
from tests.search.conftest import RADIOMETRY

CPU = torch.device("cpu")


@dataclass
class World:
    """Scenes by name, and everything that a method is prepared with."""

    scenes: dict[str, Scene]
    model: TrainedModel
    engine: Engine
    exemplars: list[Exemplar]

    def prepared(self, method: SearchMethod) -> SearchMethod:
        method.prepare(
            self.model, self.engine, self.exemplars, OneForAll(self.model.radiometry), list(self.scenes.values())
        )
        return method

    def template(self) -> SearchMethod:
        """Of several tiles a scene."""
        return self.prepared(TemplateSearch(views=2, min_levels=0, max_levels=0, samples=16, tile=128, least=0.1))

    def window(self) -> SearchMethod:
        return self.prepared(WindowSearch(dense=False))


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("small")
    scenes = {}
    for number in range(8):
        land, _ = draw(np.random.default_rng(number), 200 + 24 * number, 220, ("storage tank",), 2, 30)
        scenes[f"{number}.tif"] = make_scene(folder / f"{number}.tif", land)
    torch.manual_seed(0)
    embedder = Embedder(EmbedderSpec(RADIOMETRY.names, "resnet18"))
    model = TrainedModel(
        embedder.eval().requires_grad_(False), RADIOMETRY, ChipSpec(), (1, 2, 3, 4), (), Calibration()
    )  # fmt: skip
    engine = Engine(DeployedEmbedder(model.embedder), CPU, batch_size=16)
    exemplars = [Exemplar("thing", scenes["0.tif"], (60.0, 60.0, 100.0, 96.0))]
    return World(scenes, model, engine, exemplars)


@pytest.fixture(scope="package")
def by_openvino(small: World) -> World:
    """The same, computed by OpenVINO in bf16."""
    skip_without_openvino()
    deployed = DeployedEmbedder(small.model.embedder, CPU, torch.bfloat16, "openvino")
    return replace(small, engine=replace(small.engine, embedder=deployed, dtype=torch.bfloat16))
