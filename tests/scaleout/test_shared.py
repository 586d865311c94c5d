"""Sharing out, without another process."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from siamese_sat.errors import InputError
from siamese_sat.scaleout.pool import in_order, threads_of
from siamese_sat.scaleout.ship import pack, unpack
from siamese_sat.search.part import share
from siamese_sat.search.run import Workers, search_scenes
from siamese_sat.search.unlike import Unlike
from tests.scaleout.conftest import World
from tests.scaleout.helpers import Backwards


def test_parts_are_the_whole() -> None:
    things = list(range(11))
    for parts in (1, 2, 3, 11, 20):
        assert [t for n in range(parts) for t in share(things, (n, parts))] == things


def test_results_come_in_order() -> None:
    assert list(in_order([(2, "c"), (0, "a"), (1, "b"), (3, "d")])) == [(0, "a"), (1, "b"), (2, "c"), (3, "d")]


def test_what_is_packed_knows_its_new_device() -> None:
    there = {"device": torch.device("cpu"), "weights": torch.arange(3.0), "nested": [torch.device("cpu")]}
    found: dict[str, Any] = unpack(pack(there), torch.device("meta"))
    assert found["device"] == torch.device("meta")
    assert found["nested"] == [torch.device("meta")]
    assert found["weights"].device.type == "meta"
    assert torch.equal(unpack(pack(there), torch.device("cpu"))["weights"], there["weights"])


def test_a_worker_of_one_core_computes_as_many_threads_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for here, cores, expected in ((1, 1, 1), (1, 4, 1), (2, 1, 2), (8, 1, 2), (8, 4, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda here=here: here)
        assert threads_of(cores) == expected


@pytest.mark.parametrize("way", ["template", "window", "unlike"])
@pytest.mark.parametrize("split", [1e9, 0.02])
def test_shared_out_the_rows_are_the_same(small: World, way: str, split: float) -> None:
    if way == "unlike":
        other = replace(small.exemplars[0], box=(120.0, 90.0, 150.0, 130.0))
        from siamese_sat.search.template import TemplateSearch

        inner = TemplateSearch(views=2, min_levels=0, max_levels=0, samples=16, tile=128, least=0.1)
        method = small.prepared(Unlike(inner, [other]))
    else:
        method = small.template() if way == "template" else small.window()
    scenes = dict(list(small.scenes.items())[:3])
    least = dict.fromkeys(method.classes, 0.0)
    here = search_scenes(scenes, method, least, 0.1)
    pool = Backwards()
    there = search_scenes(scenes, method, least, 0.1, Workers(pool, split))
    assert len(here.detections) > 3
    pd.testing.assert_frame_equal(here.detections, there.detections, check_exact=True)
    assert here.compared == there.compared
    assert len(pool.asked) == (3 if split > 1 else sum(-(-s.width * s.height // 20_000) for s in scenes.values()))


@pytest.mark.parametrize("way", ["template", "window"])
def test_shared_out_openvino_gives_the_same_rows(by_openvino: World, way: str) -> None:
    method = by_openvino.template() if way == "template" else by_openvino.window()
    scenes = dict(list(by_openvino.scenes.items())[:2])
    here = search_scenes(scenes, method, {"thing": 0.0}, 0.1)
    there = search_scenes(scenes, method, {"thing": 0.0}, 0.1, Workers(Backwards(), 0.03))
    assert len(here.detections) > 3
    pd.testing.assert_frame_equal(here.detections, there.detections, check_exact=True)


def test_a_scene_that_fails_in_a_part_is_reported_once(small: World) -> None:
    method = small.template()
    scenes = dict(list(small.scenes.items())[:2])
    scenes["gone.tif"] = replace(scenes["0.tif"], path="/nowhere/gone.tif")
    there = search_scenes(scenes, method, {"thing": 0.0}, 0.1, Workers(Backwards(), 0.02))
    assert list(there.failed) == ["/nowhere/gone.tif"]
    assert set(there.detections.filename) == {"0.tif", "1.tif"}


def test_a_bad_overlap_is_told_from_a_worker_too(small: World) -> None:
    with pytest.raises(InputError, match="nms_iou"):
        search_scenes(dict(list(small.scenes.items())[:1]), small.template(), {"thing": 0.0}, 7)
