"""Windows of many scenes in one stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search.dense import feature_tiles
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.run import search_scenes
from siamese_sat.search.tile import Failure, Job
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY, tiny_embedder
from tests.search.conftest import correlation_model, engine_of, ground, plant, thing
from tests.search.test_pooled import exemplar, prepared


def noise(folder: Path, name: str, height: int, width: int, seed: int = 0) -> Scene:
    pixels = np.random.default_rng(seed).integers(500, 5000, (4, height, width)).astype(np.uint16)
    return make_scene(folder / f"{name}.tif", pixels)


def damaged(folder: Path, name: str) -> Scene:
    """It opens, its first rows can be read, its last ones cannot."""
    pixels = np.random.default_rng(1).integers(500, 5000, (4, 256, 256)).astype(np.uint16)
    scene = make_scene(folder / f"{name}.tif", pixels, compress="deflate", blockysize=16)
    content = Path(scene.path).read_bytes()
    spoilt = len(content) // 2
    Path(scene.path).write_bytes(content[:spoilt] + b"\xff" * 4000 + content[spoilt + 4000 :])
    return scene


def embedded(engine: Engine, jobs: list[Job]) -> tuple[list[Embedded], list[Failure]]:
    found = list(engine.vectors(jobs, lambda _: RADIOMETRY, 64, 32))
    return [f for f in found if isinstance(f, Embedded)], [f for f in found if isinstance(f, Failure)]


@pytest.fixture(scope="module")
def deployed() -> Engine:
    device = torch.device("cpu")
    return Engine(DeployedEmbedder(tiny_embedder().eval(), device), device, batch_size=7)


def test_batches_are_full_across_scenes_and_sizes(tmp_path: Path, deployed: Engine) -> None:
    scenes = [noise(tmp_path, f"{i}", 70 + 32 * i, 64, i) for i in range(4)]
    jobs = [Job(s, (w, w)) for s in scenes for w in (64, 32)]
    batches, _ = embedded(deployed, jobs)
    counts = [len(b.jobs) for b in batches]
    assert set(counts[:-1]) == {7}
    assert sum(counts) == sum(2 + i for i in range(4)) + sum(3 * (4 + 2 * i) for i in range(4))
    order = np.concatenate([b.jobs for b in batches])
    assert (np.diff(order) >= 0).all()
    assert set(order.tolist()) == set(range(8))


def test_in_a_stream_as_each_alone(tmp_path: Path, deployed: Engine) -> None:
    """By the other way too: normalised windows, one scene at a time, through the whole embedder."""
    jobs = [Job(noise(tmp_path, f"{i}", 100 + 40 * i, 130, i), w) for i, w in enumerate([(64, 64), (48, 90), (96, 96)])]
    batches, _ = embedded(deployed, jobs)
    for number, job in enumerate(jobs):
        alone = list(deployed.windows(job.scene, RADIOMETRY, job.window, 64, 32))
        mine = [b.jobs == number for b in batches]
        boxes = np.concatenate([b.boxes[m] for b, m in zip(batches, mine, strict=True)])
        np.testing.assert_array_equal(boxes, np.concatenate([a.boxes for a in alone]))
        vectors = torch.cat([b.vectors[torch.from_numpy(m)] for b, m in zip(batches, mine, strict=True)])
        torch.testing.assert_close(vectors, torch.cat([deployed.embed(a.chips) for a in alone]), rtol=0, atol=1e-4)


def test_a_scene_that_cannot_be_read_says_so_where_it_is_asked(tmp_path: Path, deployed: Engine) -> None:
    scene = damaged(tmp_path, "bad")
    with pytest.raises(InputError, match=r"bad\.tif cannot be read at"):
        list(deployed.windows(scene, RADIOMETRY, (64, 64), 64, 32))
    method = prepared(exemplars=(exemplar(tmp_path, "boat", thing(1, 40, 40)),))
    with pytest.raises(InputError, match=r"bad\.tif cannot be read at"):
        list(method.candidates(scene, {"boat": 0.5}))
    with pytest.raises(InputError, match=r"bad\.tif cannot be read at"):
        list(feature_tiles(deployed, scene, RADIOMETRY, 128, tile=64))


def test_a_scene_that_cannot_be_read_leaves_the_others(tmp_path: Path, deployed: Engine) -> None:
    good = [noise(tmp_path, "first", 100, 100), noise(tmp_path, "last", 100, 100)]
    bad = damaged(tmp_path, "bad")
    jobs = [Job(s, (w, w)) for s in (good[0], bad, good[1]) for w in (64, 50)]
    batches, failures = embedded(deployed, jobs)
    # Its second size is not tried again.
    assert [f.job for f in failures] == [2]
    found = np.concatenate([b.jobs for b in batches])
    assert {0, 1, 4, 5} <= set(found.tolist())
    assert (found == 0).sum() == (found == 4).sum() == 9


def test_each_scene_gets_its_own_detections(tmp_path: Path) -> None:
    boat = thing(1, 40, 40)
    scenes, truth = {}, {}
    for i in range(5):
        pixels = ground(104, 104)
        if i % 2 == 0:
            truth[f"{i}"] = plant(pixels, boat, 6 + 26 * (i // 2), 6)
        scenes[f"{i}"] = make_scene(tmp_path / f"{i}.tif", pixels)
    scenes["broken"] = damaged(tmp_path, "broken")
    scenes["after"] = scenes["0"]
    truth["after"] = truth["0"]
    method = prepared(exemplars=(exemplar(tmp_path, "boat", boat),), scales=[1.0, 2.0])
    found = search_scenes(scenes, method, {"boat": 0.9}, 0.1)
    rows = zip(found.detections.filename, found.detections.iloc[:, :4].to_numpy().round(6).tolist(), strict=True)
    assert {name: tuple(box) for name, box in rows} == truth
    assert list(found.failed) == [scenes["broken"].path]
    assert "broken.tif cannot be read at" in found.failed[scenes["broken"].path]


def test_a_rule_of_radiometry_that_fails_fails_its_scene(tmp_path: Path, deployed: Engine) -> None:
    scenes = [noise(tmp_path, "a", 64, 64), noise(tmp_path, "b", 64, 64)]

    def rule(scene: Scene) -> object:
        if scene.name == "a.tif":
            raise InputError("a.tif: no valid pixel.")
        return RADIOMETRY

    found = list(deployed.vectors([Job(s, (64, 64)) for s in scenes], rule, 64, 32))  # type: ignore[arg-type]
    assert isinstance(found[0], Failure)
    assert isinstance(found[1], Embedded)
    assert found[1].jobs.tolist() == [1]


def test_the_embedder_of_tests_has_no_mix_of_bands_and_is_used_whole() -> None:
    model = correlation_model()
    assert not DeployedEmbedder(model.embedder).projects
    assert engine_of(model).embedder is model.embedder


@pytest.mark.parametrize("way", ["windows", "tiles"])
def test_files_are_read_in_one_thread_that_is_not_the_networks(
    tmp_path: Path, deployed: Engine, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    threads: list[int] = []
    plain = {name: getattr(SceneReader, name) for name in ("__enter__", "read", "__exit__")}

    def noted(name: str) -> Callable[..., object]:
        def call(*args: object) -> object:
            threads.append(threading.get_ident())
            return plain[name](*args)

        return call

    for name in plain:
        monkeypatch.setattr(SceneReader, name, noted(name))
    scene = noise(tmp_path, "a", 300, 300)
    if way == "windows":
        assert len(list(deployed.vectors([Job(scene, (64, 64))], lambda _: RADIOMETRY, 64, 32))) == 12
    else:
        assert len(list(feature_tiles(deployed, scene, RADIOMETRY, 128, tile=128))) == 9
    assert len(threads) >= 3
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads
