from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import build_embedder
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.index import features as module
from siamese_sat.search.index.encoder import EmbeddingEncoder, Encoded
from siamese_sat.search.index.features import BITS, GRID, FeatureEncoder, Whitenings
from siamese_sat.search.whiten import Whitening
from siamese_sat.search.window import axis_tiles as tiles_along
from tests.conftest import make_scene

RADIOMETRY = Radiometry(("PAN",), 255.0, (0.5,), (0.2,))


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    embedder = build_embedder(("PAN",), "resnet18", weights=None).eval()
    return Engine(DeployedEmbedder(embedder), torch.device("cpu"))


def noise(path: Path, height: int, width: int, seed: int = 0, **options: object) -> Scene:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 235, (1, -(-height // 8), -(-width // 8))).repeat(8, 1).repeat(8, 2)[:, :height, :width]
    return make_scene(path, (coarse + rng.integers(0, 20, coarse.shape)).astype("uint8"), **options)


def encoder_of(
    engine: Engine, windows: tuple[int, ...] = (64,), stage: str = "layer2", seed: int = 0
) -> FeatureEncoder:
    """An encoder whose whitenings are rotations: what two cells have in common is kept."""
    channels = {"layer1": 64, "layer2": 128}[stage]
    turn = torch.Generator().manual_seed(0)
    cells = Whitening(torch.zeros(channels), torch.randn(channels, BITS, generator=turn) / 8)
    wide = GRID * GRID * BITS
    return FeatureEncoder(
        engine, windows, 64, 32, stage, Whitenings(cells, Whitening(torch.zeros(wide), torch.eye(wide)))
    )


def joined(parts: list[Encoded]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    boxes, vectors = np.concatenate([p.boxes for p in parts]), np.concatenate([p.vectors for p in parts])
    order = np.lexsort((boxes[:, 0], boxes[:, 1], boxes[:, 2] - boxes[:, 0]))
    return boxes[order], vectors[order], np.concatenate([p.valid for p in parts])[order]


def test_windows_cover_the_scene_at_every_size(tmp_path: Path, engine: Engine) -> None:
    scene = noise(tmp_path / "a.tif", 150, 230)
    boxes, vectors, valid = joined(list(encoder_of(engine, (64, 128)).scene(scene, RADIOMETRY)))
    sides = boxes[:, 2] - boxes[:, 0]
    assert set(sides) == {64, 128}
    for side in (64, 128):
        mine = boxes[sides == side]
        assert mine[:, :2].min() == 0
        assert mine[:, 2].max() >= 230 and mine[:, 3].max() >= 150
        assert (np.diff(np.unique(mine[:, 0])) <= side / 2).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    assert valid.min() > 0.8  # the last ones show a little of what lies beyond


def test_tiles_do_not_show(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = noise(tmp_path / "a.tif", 300, 420)
    encoder = encoder_of(engine)
    whole = joined(list(encoder.scene(scene, RADIOMETRY)))
    monkeypatch.setattr(module, "TILE", 96)
    tiled = list(encoder.scene(scene, RADIOMETRY))
    assert len(tiled) > 4
    boxes, vectors, _ = joined(tiled)
    assert (boxes == whole[0]).all()
    assert vectors == pytest.approx(whole[1], abs=1e-4)


def test_an_exemplar_is_seen_as_its_window(tmp_path: Path, engine: Engine) -> None:
    scene = noise(tmp_path / "a.tif", 400, 400)
    encoder = encoder_of(engine, (64, 128))
    boxes, vectors, _ = joined(list(encoder.scene(scene, RADIOMETRY)))
    for side, place in ((64, (160, 128)), (128, (128, 192))):
        x, y = place
        box = (x + side / 2 - 20, y + side / 2 - 10, x + side / 2 + 20, y + side / 2 + 10)
        first = encoder.exemplar(Exemplar("a", scene, box), RADIOMETRY, side)[0]
        mine = np.flatnonzero((boxes == (x, y, x + side, y + side)).all(axis=1))
        assert len(mine) == 1
        assert float(first @ vectors[mine[0]]) == pytest.approx(1, abs=5e-3)
        # And a little off the middle, and turned.
        seen = encoder.exemplar(Exemplar("a", scene, box), RADIOMETRY, side) @ vectors[mine[0]]
        assert len(seen) == 40
        assert (seen[1:] < 0.999).all()


def test_what_is_mostly_nothing_is_left_out(tmp_path: Path, engine: Engine) -> None:
    mask = np.ones((256, 256), bool)
    mask[:, :160] = False
    scene = noise(tmp_path / "a.tif", 256, 256, mask=mask)
    boxes, _, valid = joined(list(encoder_of(engine).scene(scene, RADIOMETRY)))
    assert boxes[:, 0].min() == 128  # half of it valid
    assert valid[boxes[:, 0] == 128] == pytest.approx(0.5, abs=0.08)
    assert valid[boxes[:, 0] == 192] == pytest.approx(1)
    nothing = noise(tmp_path / "b.tif", 64, 64, mask=np.zeros((64, 64), bool))
    assert list(encoder_of(engine).scene(nothing, RADIOMETRY)) == []


def test_a_scene_smaller_than_a_window_has_one(tmp_path: Path, engine: Engine) -> None:
    scene = noise(tmp_path / "a.tif", 50, 60)
    parts = list(encoder_of(engine).scene(scene, RADIOMETRY))
    assert joined(parts)[0].tolist() == [[0, 0, 64, 64]]


def test_whitening_is_learned_from_the_archive(tmp_path: Path, engine: Engine) -> None:
    scenes = [noise(tmp_path / f"{i}.tif", 300, 300, seed=i) for i in range(2)]
    bare = FeatureEncoder(engine, (64, 128), 64, 32, "layer2")
    whitening = bare.fit(scenes, lambda s: RADIOMETRY, 16, 0.3, samples=6)
    assert whitening.cells.axes.shape == (128, BITS)
    assert whitening.windows.axes.shape == (GRID * GRID * BITS, 16)
    encoder = FeatureEncoder(engine, (64, 128), 64, 32, "layer2", whitening)
    _, vectors, _ = joined(list(encoder.scene(scenes[0], RADIOMETRY)))
    _, raw, _ = joined(list(encoder_of(engine, (64, 128)).scene(scenes[0], RADIOMETRY)))
    assert vectors.shape[1] == 16
    # Others all look alike; whitened ones are told apart.
    assert np.median(raw @ raw.T) > 0.9
    assert abs(np.median(vectors @ vectors.T)) < 0.3
    again = bare.fit(scenes, lambda s: RADIOMETRY, 16, 0.3, samples=6)
    assert torch.equal(again.windows.axes, whitening.windows.axes)


def test_impossible_geometry_is_told(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"indexing.stride=30 must be a multiple of 8"):
        FeatureEncoder(engine, (64,), 64, 30, "layer2")


def test_an_exemplar_where_nothing_is_is_told(tmp_path: Path, engine: Engine) -> None:
    scene = noise(tmp_path / "a.tif", 64, 64, mask=np.zeros((64, 64), bool))
    with pytest.raises(InputError, match="no valid pixel"):
        encoder_of(engine).exemplar(Exemplar("a", scene, (10, 10, 30, 30)), RADIOMETRY, 64)


@pytest.mark.parametrize("kind", ["features", "embedding"])
@pytest.mark.parametrize("parts", [2, 5, 40])
def test_parts_are_the_scene(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str, parts: int
) -> None:
    monkeypatch.setattr(module, "TILE", 96)
    monkeypatch.setattr(tiles_along, "__defaults__", (96,))
    scene = noise(tmp_path / "a.tif", 200, 260)
    sides = (64, 128)
    encoder = encoder_of(engine, sides, "layer1") if kind == "features" else EmbeddingEncoder(engine, sides, 64, 32)
    found = [list(encoder.scene(scene, RADIOMETRY, (number, parts))) for number in range(parts)]
    assert sum(map(bool, found)) > 1
    whole = list(encoder.scene(scene, RADIOMETRY))
    for side in sides:
        mine = [e for part in found for e in part if e.scale == side]
        alone = [e for e in whole if e.scale == side]
        for name in ("boxes", "valid", "vectors", *(["cells"] if kind == "features" else [])):
            together = np.concatenate([getattr(e, name) for e in mine])
            assert np.array_equal(together, np.concatenate([getattr(e, name) for e in alone])), name
