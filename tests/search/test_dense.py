from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.model.backbone import STRIDES, Backbone
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.search.dense import FeatureTile, feature_tiles, features, spans
from siamese_sat.search.engine import Engine
from siamese_sat.search.level import Span, blurred
from tests.conftest import make_scene, skip_without_openvino
from tests.model.conftest import RADIOMETRY, tiny_embedder

NETS = [("resnet18", "v1.5"), ("resnet50", "v1.5"), ("resnet50", "v1"), ("resnet_tiny", "v1.5")]
ALL = 10_000  # a tile larger than any scene here


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Nets this small mostly wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["plain", "openvino"])
def engine(request: pytest.FixtureRequest) -> Engine:
    embedder = tiny_embedder().eval()
    gen = torch.Generator().manual_seed(3)
    for norm in (m for m in embedder.backbone.modules() if isinstance(m, nn.BatchNorm2d)):
        # A network that says something of nothing: its padding then differs from pixels at the band mean.
        norm.bias.data.uniform_(-0.5, 0.5, generator=gen)
        norm.running_mean.uniform_(-0.2, 0.2, generator=gen)  # type: ignore[union-attr, operator]
    if request.param == "plain":
        return Engine(embedder.requires_grad_(False), torch.device("cpu"))
    skip_without_openvino()
    return Engine(DeployedEmbedder(embedder, runtime=request.param), torch.device("cpu"))


def averaging(name: str, variant: str) -> Backbone:
    """Every convolution a plain mean: whatever pixel a cell can see, it does see, and more of it is more."""
    backbone = Backbone(name, variant).double().eval()  # type: ignore[arg-type]
    for layer in backbone.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 1 / layer.weight[0].numel())
    return backbone


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("stage", ["stem", "layer1", "layer2"])
@pytest.mark.parametrize(("name", "variant"), NETS)
def test_a_cell_sees_as_far_as_its_reach_round_its_first_pixel(
    name: str, variant: str, stage: str, upright: bool
) -> None:
    backbone, stride = averaging(name, variant), STRIDES[stage]
    reach = backbone.reach(stage)
    cell = -(-reach // stride) + 1
    centre = cell * stride  # of the cell: the first of its pixels, not their middle
    at = [centre + d for d in (-reach - 1, -reach, 1 - reach, 0, reach - 1, reach, reach + 1)]
    x = torch.ones(1 + len(at), 3, 16, centre + reach + stride + 1, dtype=torch.float64)
    for row, column in enumerate(at, start=1):
        x[row, :, :, column] += 1e4
    with torch.inference_mode():
        found = backbone(x.transpose(2, 3) if upright else x, until=stage)
    line = (found.transpose(2, 3) if upright else found)[:, :, :, cell]
    change = (line[1:] - line[0]).abs().amax((1, 2))
    assert change[[0, 1, 5, 6]].max() < 1e-9
    assert change[[2, 3, 4]].min() > 1e-6


@pytest.mark.parametrize(("name", "variant"), NETS)
def test_what_lies_beyond_the_reach_changes_nothing_in_fp32(name: str, variant: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, variant).eval()  # type: ignore[arg-type]
    reach = backbone.reach("layer2")
    x = torch.randn(1, 3, 136, 136, requires_grad=True)
    cell = 8
    (slope,) = torch.autograd.grad(backbone(x, until="layer2")[0, :, cell, cell].square().sum(), x)
    y, column = torch.nonzero(slope[0].abs().amax(0), as_tuple=True)
    away = torch.maximum((y - cell * 8).abs(), (column - cell * 8).abs())
    assert 0.5 * reach < away.max() <= reach
    far = x.detach().clone()
    d = (torch.arange(136) - cell * 8).abs()
    far[:, :, torch.maximum(d[:, None], d[None]) > reach] += 5
    with torch.inference_mode():
        one, two = (backbone(v, until="layer2")[0, :, cell, cell] for v in (x, far))
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 100, 513, 1000])
@pytest.mark.parametrize("tile", [4, 64, 256, 4096])
@pytest.mark.parametrize(("stride", "reach", "margin"), [(8, 50, 5), (16, 130, 0), (8, 0, 1)])
def test_spans_know_every_cell_once_and_all_that_it_sees(
    length: int, tile: int, stride: int, reach: int, margin: int
) -> None:
    found = list(spans(length, stride, reach, margin, tile))
    cells = -(-length // stride)
    assert [c for s in found for c in range(s.first, s.last)] == list(range(cells))
    assert max(s.last - s.first for s in found) <= max(1, tile // stride)
    border = -margin * stride, (cells + margin) * stride
    for s in found:
        assert s.margin == margin
        assert s.start % stride == s.stop % stride == 0
        # All that its outermost cells see; less only where the margin of nothing ends, the same for every tile.
        assert s.start == max(border[0], (s.first - margin) * stride - -(-reach // stride) * stride)
        assert s.stop == border[1] or s.stop > (s.last + margin - 1) * stride + reach
        assert border[0] <= s.start < s.stop <= border[1]


@pytest.mark.parametrize("length", [1, 9, 17, 56, 100, 513, 1001])
@pytest.mark.parametrize("tile", [8, 24, 64, 250, 4096])
@pytest.mark.parametrize("phase", [2, 4])
def test_spans_begin_on_the_grid_of_a_deeper_stage(length: int, tile: int, phase: int) -> None:
    stride, reach, margin = 8, 100, 8
    found = list(spans(length, stride, reach, margin, tile, phase))
    cells = -(-length // stride)
    assert [c for s in found for c in range(s.first, s.last)] == list(range(cells))
    for s in found:
        assert s.first < s.last
        assert s.first % phase == 0
        assert s.start % (stride * phase) == 0
        border = (-margin * stride, (cells + margin) * stride)
        assert s.start == border[0] or s.start <= (s.first - margin) * stride - reach
        assert s.stop == border[1] or s.stop >= (s.last + margin - 1) * stride + reach
        assert border[0] <= s.start < s.stop <= border[1]


def test_spans_of_a_scene_smaller_than_a_tile() -> None:
    assert list(spans(100, 8, 50, 5, 1024)) == [Span(0, 13, 5, -40, 144)]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Noise with a hole, 150 x 170."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(1000, 400, (4, 170, 150)).clip(1, None).round().astype("uint16")
    pixels[:, 40:70, 90:115] = 0
    return make_scene(tmp_path_factory.mktemp("dense") / "noise.tif", pixels, nodata=0)


def tiles(engine: Engine, scene: Scene, step: int, tile: int, blur: float = 0.0) -> list[FeatureTile]:
    return list(feature_tiles(engine, scene, RADIOMETRY, step, tile=tile, blur=blur))


@pytest.mark.parametrize(
    ("step", "size", "aoi", "blur"),
    [
        (97, 64, None, 0.0),
        (150, 64, None, 0.0),
        (53, 64, (13, 22, 90, 101), 0.0),
        (128, 64, (1, 3, 150, 170), 0.0),
        (8, 64, (70, 30, 100, 55), 0.0),
        (3, 56, (70, 30, 82, 44), 0.0),  # a scene pixel becomes 43: resampling reaches further than elsewhere
        (97, 64, None, 0.8),
        (53, 64, (13, 22, 90, 101), 1.5),
        (150, 24, None, 9.0),  # seen further than a tile is wide
    ],
)
def test_a_tile_border_changes_no_feature(
    engine: Engine, scene: Scene, step: int, size: int, aoi: tuple[int, int, int, int] | None, blur: float
) -> None:
    scene = scene.within(aoi)
    (whole,) = tiles(engine, scene, step, ALL, blur)
    x0, y0, x1, y1 = scene.aoi
    rows, columns = (-(-n * 128 // step) for n in (y1 - y0, x1 - x0))
    assert whole.valid.shape == (-(-rows // 8), -(-columns // 8))
    assert (whole.x_first, whole.y_first) == (0, 0)
    parts = tiles(engine, scene, step, size, blur)
    assert len(parts) >= 3
    seen = np.zeros_like(whole.valid)
    for part in parts:
        height, width = part.valid.shape
        assert part.features.shape[1:] == (height + 10, width + 10)
        here = np.s_[part.y_first : part.y_first + height, part.x_first : part.x_first + width]
        assert not seen[here].any()
        seen[here] = True
        np.testing.assert_array_equal(part.valid, whole.valid[here])
        np.testing.assert_array_equal(part.around[5:-5, 5:-5], part.valid)
        around = whole.around[part.y_first :, part.x_first :][: height + 10, : width + 10]
        np.testing.assert_array_equal(part.around, around)
        with_margin = whole.features[:, part.y_first :, part.x_first :][:, : height + 10, : width + 10]
        torch.testing.assert_close(part.features, with_margin, rtol=0, atol=1e-4)
    assert seen[whole.valid].all()
    assert whole.features.std() > 0.1


def test_a_blurred_level_is_seen_as_its_pixels_blurred(engine: Engine, scene: Scene) -> None:
    """Valid where the level is: a blur moves no border of what counts."""
    (found,), (plain,) = (tiles(engine, scene, 128, ALL, blur) for blur in (1.2, 0.0))
    np.testing.assert_array_equal(found.valid, plain.valid)
    with SceneReader(scene) as reader:
        raw, valid = reader.read(-60, -60, 270, 290)
    level = RADIOMETRY.normalise(torch.from_numpy(RADIOMETRY.fill(raw, valid).astype("float32")))
    level = blurred(level, 1.2)[:, 20:-20, 20:-20]  # beyond the margin of nothing
    expected = features(engine, level, "layer2")
    torch.testing.assert_close(found.features[:, 5:-5, 5:-5], expected[:, 5:-5, 5:-5], rtol=0, atol=1e-4)
    assert (found.features - plain.features).abs().max() > 0.1


@pytest.mark.parametrize(("deep", "phase"), [("layer3", 2), ("layer4", 4)])
@pytest.mark.parametrize(("step", "size"), [(97, 72), (150, 40)])
def test_a_tile_border_changes_no_deep_feature(
    engine: Engine, scene: Scene, step: int, size: int, deep: str, phase: int
) -> None:
    (whole,), parts = (
        list(feature_tiles(engine, scene, RADIOMETRY, step, deep=deep, margin=8, tile=tile)) for tile in (ALL, size)
    )
    assert whole.deep is not None
    assert max(whole.valid.shape) % phase, "the last tile ends within a deep cell"
    assert len(parts) >= 3
    for part in parts:
        assert part.deep is not None
        # Deep cells round those that the tile answers for, in the whole and in the part.
        count = [-(-(n + 8) // phase) for n in part.valid.shape]
        cut = []
        for tile in (whole, part):
            first = (part.y_first - tile.y_first + 4, part.x_first - tile.x_first + 4)
            y, x = (f / phase + o for f, o in zip(first, tile.origin, strict=True))
            assert y == int(y)
            assert x == int(x)
            cut.append(tile.deep()[:, int(y) : int(y) + count[0], int(x) : int(x) + count[1]])  # type: ignore[misc]
        torch.testing.assert_close(cut[1], cut[0], rtol=0, atol=1e-4)
        assert cut[0].shape[1:] == tuple(count)
    assert whole.deep().std() > 0.1


@pytest.mark.parametrize("end", [72, 80, 104, 150])
def test_rows_that_were_read_for_a_tile_above_are_searched_though_nothing_follows(
    engine: Engine, tmp_path: Path, end: int
) -> None:
    """Tiles are so short that those two above have read a tile's own rows; below ``end`` is nothing."""
    pixels = np.random.default_rng(1).integers(500, 1500, (4, 400, 40)).astype("uint16")
    pixels[:, end:] = 0
    land = make_scene(tmp_path / "land.tif", pixels, nodata=0)
    (whole,), parts = (
        list(feature_tiles(engine, land, RADIOMETRY, 128, deep="layer4", margin=8, tile=tile)) for tile in (ALL, 32)
    )
    seen = np.zeros_like(whole.valid)
    for part in parts:
        height, width = part.valid.shape
        seen[part.y_first : part.y_first + height, part.x_first : part.x_first + width] = part.valid
    np.testing.assert_array_equal(seen, whole.valid)


def test_a_margin_must_suit_the_deep_stage(engine: Engine, scene: Scene) -> None:
    with pytest.raises(ValueError, match="margin 5"):
        next(iter(feature_tiles(engine, scene, RADIOMETRY, 128, deep="layer3", margin=5)))


def test_features_are_those_of_the_scene_resized_as_a_whole(engine: Engine, scene: Scene) -> None:
    area = scene.within((10, 20, 74, 148))
    with SceneReader(area) as reader:
        raw, valid = reader.read(10, 20, 64, 128)
    assert valid.all()
    level = F.interpolate(RADIOMETRY.normalise(torch.from_numpy(raw))[None], scale_factor=2, mode="bilinear")[0]
    alone = features(engine, level, "layer2")
    (tile,) = tiles(engine, area, 64, ALL)
    inner = -(-engine.embedder.backbone.reach("layer2") // 8) + 1
    middle = np.s_[:, inner:-inner, inner:-inner]
    assert alone[middle].shape[1:] == (32 - 2 * inner, 16 - 2 * inner)
    torch.testing.assert_close(tile.features[:, 5:-5, 5:-5][middle], alone[middle], rtol=0, atol=1e-4)


def test_beyond_the_scene_is_nothing(engine: Engine, tmp_path: Path) -> None:
    """At the band mean throughout, a scene's border cannot be told from its middle."""
    flat = np.empty((4, 100, 100), "uint16")
    flat[:] = (np.array(RADIOMETRY.mean) * RADIOMETRY.scale)[:, None, None]
    (tile,) = tiles(engine, make_scene(tmp_path / "flat.tif", flat), 100, ALL)
    reach = -(-engine.embedder.backbone.reach("layer2") // 8)
    own = tile.features[:, 5:-5, 5:-5]
    assert own.shape[1:] == (16, 16)
    middle = own[:, 8:9, 8:9]
    torch.testing.assert_close(own, middle.expand_as(own), rtol=0, atol=1e-5)
    assert reach <= 5, "else the network's own padding would show"


@pytest.mark.parametrize("tile", [64, ALL])
def test_cells_without_enough_valid_pixels_are_known(engine: Engine, tmp_path: Path, tile: int) -> None:
    pixels = np.full((4, 160, 240), 900, "uint16")
    pixels[:, :, 102:] = 0  # cell 12 is the mean of columns 92 to 99, cell 13 of 100 to 107: a quarter of it
    pixels[:, 61:, :44] = 0  # of cell 5's columns, 36 to 43, none; of cell 8's rows, 60 to 67, an eighth
    scene = make_scene(tmp_path / "holes.tif", pixels, nodata=0)
    valid = np.zeros((20, 30), dtype=bool)
    found = tiles(engine, scene, 128, tile)
    for part in found:
        height, width = part.valid.shape
        valid[part.y_first : part.y_first + height, part.x_first : part.x_first + width] = part.valid
    expected = np.zeros((20, 30), dtype=bool)
    expected[:, :13] = True
    expected[8:, :6] = False
    np.testing.assert_array_equal(valid[1:-1, 1:-1], expected[1:-1, 1:-1])
    assert len(found) == (1 if tile == ALL else 6), "tiles without a valid cell are left out"
    least = list(feature_tiles(engine, scene, RADIOMETRY, 128, tile=ALL, min_valid=0.2))
    assert least[0].valid[1:-1, 13].all()
    assert not least[0].valid[:, 14:].any()


def test_a_scene_without_a_valid_pixel_has_no_tile(engine: Engine, tmp_path: Path) -> None:
    empty = make_scene(tmp_path / "empty.tif", np.zeros((4, 60, 60), "uint16"), nodata=0)
    assert tiles(engine, empty, 100, 64) == []


@pytest.mark.parametrize("stage", ["layer1", "layer2", "layer3"])
def test_features_of_one_image_are_the_embedders(engine: Engine, stage: str) -> None:
    image = torch.randn(4, 64, 96, generator=torch.Generator().manual_seed(0))
    expected: Tensor = engine.embedder.features(image[None], stage)[0]
    torch.testing.assert_close(features(engine, image, stage), expected)
