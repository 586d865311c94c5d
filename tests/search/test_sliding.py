from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search import sliding
from siamese_sat.search import window as grid
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.sliding import Sliding, choose, unlike
from siamese_sat.search.tile import Failure, Job
from tests.conftest import make_scene
from tests.model.conftest import RADIOMETRY, tiny_embedder
from tests.search.conftest import Pixels, correlation_model, engine_of
from tests.search.test_stream import damaged

CPU = torch.device("cpu")


def smooth(engine: Engine, around: float) -> Engine:
    """A network of which all kernels look at their middle, and at the rest with the factor ``around``.

    With 0 a cell sees its own pixel only: a window's border and a tile's are nothing to it.
    """
    backbone, head = engine.embedder.backbone, nn.ModuleList([engine.embedder.hidden, engine.embedder.head])  # type: ignore[list-item]
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size[0] > 1:
            weight, middle = module.weight.data, module.kernel_size[0] // 2
            kept = weight[:, :, middle, middle] * module.kernel_size[0]
            weight.mul_(around)
            weight[:, :, middle, middle] = kept
    if around == 0:
        backbone.stem[3] = nn.MaxPool2d(1, 2)  # type: ignore[index, operator]
    for module in head.modules():
        if isinstance(module, nn.Linear):
            module.bias.data.zero_()  # else it would be most of every vector
    return engine


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_engine(**options: Any) -> Engine:  # noqa: ANN401 - whatever an engine takes
    return Engine(DeployedEmbedder(tiny_embedder().eval(), CPU), CPU, **options)


def grains() -> Pixels:
    """400 x 333 pixels; fields of 23 of them are alike, so that windows differ."""
    fields = np.random.default_rng(0).integers(200, 5000, (4, 18, 15))
    return fields.repeat(23, 1).repeat(23, 2)[:, :400, :333].astype(np.uint16)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "noise.tif", grains())


def by_box(source: Engine | Sliding, job: Job, stride: int) -> dict[tuple[float, ...], Tensor]:
    found: dict[tuple[float, ...], Tensor] = {}
    for got in source.vectors([job], lambda _: RADIOMETRY, 64, stride):
        assert isinstance(got, Embedded)
        boxes = list(map(tuple, got.boxes.tolist()))
        assert not set(boxes) & set(found), "a window came twice"
        found.update(zip(boxes, got.vectors, strict=True))
    return found


@pytest.mark.parametrize("window", [(64, 64), (48, 96), (130, 40)])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_where_surroundings_say_nothing_dense_is_exact(scene: Scene, window: tuple[int, int], stride: int) -> None:
    engine = smooth(make_engine(), 0)
    exact = by_box(engine, Job(scene, window), stride)
    dense = by_box(Sliding.of(engine, 64, stride), Job(scene, window), stride)
    common = [b for b in exact if b in dense]
    # All but the last row and column, which exact windows clamp inward.
    assert len(common) >= (len({b[0] for b in exact}) - 1) * (len({b[1] for b in exact}) - 1) > 10
    one, other = (torch.stack([v[b] for b in common]) for v in (exact, dense))
    assert (one - one.mean(0)).norm(dim=1).median() > 0.05, "vectors that tell nothing apart"
    torch.testing.assert_close(other, one, rtol=0, atol=1e-3)


def test_a_smooth_network_gives_nearly_the_same(scene: Scene) -> None:
    """Trained networks lie between this and nothing in common: what is left is the padding of the cut."""
    engine = smooth(make_engine(), 0.1)
    exact = by_box(engine, Job(scene, (64, 64)), 32)
    dense = by_box(Sliding.of(engine, 64, 32), Job(scene, (64, 64)), 32)
    common = [b for b in exact if b in dense]
    cosine = torch.stack([exact[b] @ dense[b] for b in common])
    others = torch.stack([exact[b] @ dense[c] for b in common for c in common if b != c])
    assert cosine.quantile(0.01) > 0.95
    assert others.quantile(0.1) < 0.9, "vectors that tell nothing apart"


def test_the_whole_scene_is_seen(scene: Scene) -> None:
    boxes = np.array(list(by_box(Sliding.of(make_engine(), 64, 32), Job(scene, (64, 64)), 32)))
    assert sorted(set(boxes[:, 0])) == [32.0 * i for i in range(10)]  # 288 to 352: 19 pixels of it beyond the scene
    assert sorted(set(boxes[:, 1])) == [32.0 * i for i in range(12)]
    assert len(boxes) == 120


@pytest.mark.parametrize("window", [(64, 64), (50, 70)])
def test_tiles_hardly_change_a_vector(scene: Scene, window: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    source = Sliding.of(smooth(make_engine(), 0), 64, 16)
    whole = by_box(source, Job(scene, window), 16)
    monkeypatch.setattr(grid, "dense_tiles", partial(grid.dense_tiles, tile=130))
    tiled = by_box(source, Job(scene, window), 16)
    assert tiled.keys() == whole.keys()
    for box, vector in whole.items():
        torch.testing.assert_close(tiled[box], vector, rtol=0, atol=1e-3)


def test_only_what_is_valid_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(500, 5000, (4, 600, 600)).astype(np.uint16)
    pixels[:, :, 128:] = 0
    scene = make_scene(tmp_path / "strip.tif", pixels, nodata=0)
    seen: list[int] = []
    plain = Sliding._pooled

    def watched(self: Sliding, image: Tensor) -> Tensor:
        seen.append(image.shape[2] * image.shape[3])
        return plain(self, image)

    monkeypatch.setattr(Sliding, "_pooled", watched)
    boxes = by_box(Sliding.of(make_engine(), 64, 32), Job(scene, (64, 64)), 32)
    assert {b[0] for b in boxes} == {0, 32, 64, 96}
    assert sum(seen) <= (128 + 32 + 64) * 608


def test_an_exemplar_is_embedded_as_its_place_in_a_tile(scene: Scene) -> None:
    source = Sliding.of(make_engine(), 64, 32)
    # One window's side around it on each side, as it has in the tile.
    chip = RADIOMETRY.normalise(torch.from_numpy(grains()[:, 64:256, 32:224]))
    alone = by_box(source, Job(scene.within((32, 64, 224, 256)), (64, 64)), 32)
    torch.testing.assert_close(source.embed(chip[None])[0], alone[96, 128, 160, 192], rtol=0, atol=1e-4)


def test_nothing_beyond_the_scene_is_computed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    plain = Sliding._pooled

    def watched(self: Sliding, image: Tensor) -> Tensor:
        seen.append(image.shape[2:])
        return plain(self, image)

    monkeypatch.setattr(Sliding, "_pooled", watched)
    by_box(Sliding.of(make_engine(), 64, 32), Job(scene, (64, 64)), 32)
    # 400 x 333 pixels; the last windows reach that far.
    assert seen == [(416, 352)]


def test_errors_come_as_they_do_from_single_windows(tmp_path: Path, scene: Scene) -> None:
    jobs = [Job(damaged(tmp_path, "bad"), (64, 64)), Job(scene, (64, 64))]
    found = list(Sliding.of(make_engine(), 64, 32).vectors(jobs, lambda _: RADIOMETRY, 64, 32))
    (failure,) = (f for f in found if isinstance(f, Failure))
    assert failure.job == 0
    assert "bad.tif cannot be read at" in str(failure.error)
    assert sum(len(f.boxes) for f in found if isinstance(f, Embedded) and f.jobs[0] == 1) == 120


@pytest.mark.parametrize(
    ("window", "seen", "inner"),
    [
        ((64, 64), (0, 0, 333, 400), (0, 0, 333, 400)),
        ((16, 24), (86, 80, 246, 320), (102, 104, 230, 296)),
        ((16, 64), (86, 0, 246, 400), (102, 0, 230, 400)),
    ],
)
def test_what_auto_compares_has_its_surroundings(
    scene: Scene, window: tuple[int, int], seen: tuple[int, ...], inner: tuple[int, ...]
) -> None:
    found = sliding._sample(scene, window)
    assert (found[0].aoi, found[1]) == (seen, inner)


def test_auto_looks_at_no_window_near_the_border_of_its_sample(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = smooth(make_engine(), 0.1)
    source = Sliding.of(engine, 64, 32)
    plain = sliding._by_place

    def spoilt(*args: Any) -> dict[tuple[float, ...], Tensor]:  # noqa: ANN401
        """Windows at the sample's border, turned round in the dense way only."""
        found = plain(*args)
        left = min(place[1] for place in found)
        return {p: -v if args[0] is source and p[1] == left else v for p, v in found.items()}

    args = (source, [scene], lambda _: RADIOMETRY, (16, 16))
    before = unlike(*args)
    monkeypatch.setattr(sliding, "_by_place", spoilt)
    assert unlike(*args) == before


def test_auto_takes_it_where_it_hardly_differs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    args = (64, 32, [scene, scene], lambda _: RADIOMETRY, (64, 64))
    plain, rough = smooth(make_engine(), 0), smooth(make_engine(), 1)
    assert unlike(Sliding.of(plain, 64, 32), *args[2:]) < 1e-3  # type: ignore[arg-type, operator]
    assert isinstance(choose("auto", plain, *args), Sliding)  # type: ignore[arg-type]
    assert unlike(Sliding.of(rough, 64, 32), *args[2:]) > 0.02  # type: ignore[arg-type, operator]
    assert choose("auto", rough, *args) is None  # type: ignore[arg-type]
    assert isinstance(choose(True, rough, *args), Sliding)  # type: ignore[arg-type]
    assert choose(False, plain, *args) is None  # type: ignore[arg-type]
    monkeypatch.setattr(sliding, "ENOUGH", 10**6)
    assert choose("auto", plain, *args) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "stride"), [(64, 24), (64, 4), (48, 16)])
def test_geometries_that_cannot_be_had(scene: Scene, size: int, stride: int) -> None:
    args = (size, stride, [scene], lambda _: RADIOMETRY, (64, 64))
    assert choose("auto", make_engine(), *args) is None  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dense=true needs"):
        choose(True, make_engine(), *args)  # type: ignore[arg-type]


def test_strange_settings_and_networks() -> None:
    engine = engine_of(correlation_model())
    with pytest.raises(InputError, match="none of auto, true, false"):
        choose("always", engine, 64, 32, [], lambda _: RADIOMETRY, (64, 64))
    assert choose("auto", engine, 64, 32, [], lambda _: RADIOMETRY, (64, 64)) is None
