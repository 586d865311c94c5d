"""Peaks are compared in a later stage too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.matcher import Matcher
from tests.search.template.planted import BOAT, Searched, draw, error, rows, save, texture


def test_without_weight_the_deep_stage_is_as_good_as_none(
    small: Searched, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]]
) -> None:
    exemplars = [*shown["boat"], *shown["pool"]]
    none, light = (Searched(model, engine, exemplars, small.scene, **s) for s in ({"deep": None}, {"deep_weight": 0.0}))
    for one, two in zip(none.method.templates, light.method.templates, strict=True):
        assert all(r.deep is None for t in (one, two) for r in t.renditions)
        assert one.curve == two.curve
        np.testing.assert_array_equal(one.left_out, two.left_out)
        np.testing.assert_array_equal(one.background, two.background)
    np.testing.assert_array_equal(rows(none.all()), rows(light.all()))
    for one, two in zip(none.method.templates, small.method.templates, strict=True):
        assert not np.allclose(one.left_out, two.left_out, atol=0.02), "by itself it says something"


def test_the_more_weight_the_deep_stage_has_the_more_it_says(small: Searched) -> None:
    template = small.method.templates[0].renditions[1]
    assert template.deep is not None
    generator = torch.Generator().manual_seed(0)
    places = torch.randn(7, *template.consensus.patches.shape[2:], generator=generator)
    deep = torch.randn(7, *template.deep.patches.shape[2:], generator=generator)
    step = 160  # exemplars of that size: nothing is taken off
    size = template.appears * step / 128
    template = replace(template, sizes=np.full(len(template.sizes), size), largest=size)

    def scores(weight: float, deep: torch.Tensor | None = deep) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        matcher = Matcher(small.method.views, weight, 1.2, torch.float32)
        return matcher.closer(template, places, deep, step)

    first = template.consensus.cosines(places).amax(2).double().numpy()
    further = template.deep.cosines(deep).amax(2).double().numpy()
    assert np.abs(first - further).max() > 0.01
    for weight in (0.25, 1.0, 4.0):
        score, vote, view = scores(weight)
        np.testing.assert_allclose(score, (first + weight * further) / (1 + weight), atol=1e-6)
        np.testing.assert_allclose(vote, first, atol=1e-6)
        np.testing.assert_array_equal(view, template.consensus.cosines(places).argmax(2).numpy())
    np.testing.assert_allclose(scores(4.0, None)[0], first, atol=1e-6)


@pytest.mark.parametrize("contrast", [0.0, 0.2, 1.0])
def test_an_exemplar_on_the_grid_of_the_deep_stage_finds_itself(
    contrast: float, model: TrainedModel, engine: Engine, tmp_path: Path
) -> None:
    """Every other cell of the first stage is one of the deep; between these an untrained net's say little."""
    raw = {}
    for cx, cy in ((96.5, 112.5), (96.5, 104.5), (104.5, 104.5)):
        pixels = texture(4, 200, 200)
        box = draw(pixels, BOAT, cx, cy)
        scene = save(tmp_path / f"{cx}_{cy}.tif", pixels)
        exemplars = [Exemplar("boat", scene, box)]
        searched = Searched(
            model, engine, exemplars, scene, object_size=40.0, sizes_per_level=1, contrast=contrast, deep_weight=9.0
        )
        assert 128 in searched.method.templates[0].steps
        ((_, found, score),) = searched.best(1)
        assert error(found, box)[0] < 1
        raw[cx, cy] = searched.method.templates[0].curve.raw(score)
    assert raw[96.5, 112.5] > 0.97
    assert raw[96.5, 112.5] > raw[96.5, 104.5] + 0.05
    assert raw[96.5, 104.5] > raw[104.5, 104.5]


@pytest.mark.parametrize("deep", ["layer3", "layer4"])
def test_the_best_places_are_still_the_things(
    deep: str, model: TrainedModel, engine: Engine, shown: dict[str, list[Exemplar]], tmp_path: Path
) -> None:
    pixels = texture(2, 320, 320)
    boxes = [draw(pixels, BOAT, *p) for p in ((80.4, 90.2), (200.7, 100.1), (100, 240, 1, 90))]
    searched = Searched(model, engine, shown["boat"], save(tmp_path / "a.tif", pixels), deep=deep)
    found = searched.best(3)
    for truth in boxes:
        assert min(error(b, truth)[0] for _, b, _ in found) < 2.5  # three eighths of a cell
