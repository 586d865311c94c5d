"""Search by spatial templates: an exemplar is a patch of feature cells, matched densely over scenes.

Pooling a window to one vector throws away where things are in it, so that an aircraft's corner scores like its centre.
A template keeps it. Exemplars brought to one size become 9 x 9 cells of a middle stage, in several rotations; the score
of a place is the cosine with the best rotation of an exemplar, averaged over exemplars.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STRIDES
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search.dense import UNIT, FeatureTile, Span, feature_tiles, features, read_level, valid_share
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar, by_class
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.patch import lean_of, rotate, sides_of, upright, view_sides
from siamese_sat.search.score import ScoreCurve, fit_curve
from siamese_sat.search.whiten import fit_whitening


@dataclass(frozen=True)
class Template:
    """What one class is searched with.

    Attributes:
        name: of the class.
        patches: ``[exemplars, views, D, cells, cells]``, each of unit length.
        sides: ``[exemplars, views, 2]`` width and height of the thing in that view, in level pixels.
        trust: ``[exemplars, views]`` how much the view says of width and height.
        steps: levels to search, scene pixels per 128 level pixels.
        left_out: ``[exemplars]`` score of each exemplar by the others; empty for a single one.
        background: scores of local maxima at random places of the searched scenes.
        curve: raw score to probability.
    """

    name: str
    patches: Tensor
    sides: npt.NDArray[np.float64]
    trust: npt.NDArray[np.float64]
    steps: tuple[int, ...]
    left_out: npt.NDArray[np.float64]
    background: npt.NDArray[np.float64]
    curve: ScoreCurve


@dataclass
class TemplateSearch:
    """Spatial templates on a dense feature map.

    Attributes:
        stage: of the backbone.
        object_size: level pixels to which an exemplar's longer side is brought.
        cells: of a template along a side; odd.
        views: rotations of an exemplar, evenly over the circle.
        scale_step: ratio of neighbouring levels.
        min_levels: levels on either side of the median exemplar, at least.
        max_levels: at most.
        dimensions: of a whitened cell.
        shrinkage: of the whitening.
        oblique_trust: weight of views between quarter turns in the vote on the box.
        box_scale: reported boxes are the exemplars' extent times this.
        samples: places from which the background's statistics are taken.
        least: raw scores below are no candidates.
        most: candidates per class, scene and tile at most.
        tile: level pixels of a tile.
        seed: of the sampled places.
    """

    stage: str = "layer2"
    object_size: float = 49.0
    cells: int = 9
    views: int = 8
    scale_step: float = 1.25
    min_levels: int = 2
    max_levels: int = 4
    dimensions: int = 128
    shrinkage: float = 0.1
    oblique_trust: float = 0.1
    box_scale: float = 1.1
    samples: int = 48
    least: float = 0.02
    most: int = 2000
    tile: int = 1024
    seed: int = 0
    templates: list[Template] = field(default_factory=list)

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene],
    ) -> None:
        """Learns the background of ``scenes`` and turns exemplars into templates."""
        if not exemplars:
            raise InputError("Template search needs exemplars; give some, or search with search/method=window.")
        if self.cells % 2 == 0 or self.cells < 1 or self.views < 1 or self.scale_step <= 1:
            raise InputError("search.method: cells must be odd, views 1 or more, and scale_step above 1.")
        self.model, self.engine, self.radiometry_of = model, engine, radiometry_of
        groups = by_class(exemplars)
        steps = self._ladder(groups)
        samples = list(self._background(scenes, sorted({s for found in steps.values() for s in found})))
        self.whitening = fit_whitening((f[:, good][:, :, None] for f, good in samples), self.dimensions, self.shrinkage)
        whole = [self.whitening(f) for f, good in samples if bool(good.all()) and min(f.shape[1:]) > self.cells + 1]
        self.templates = [self._template(name, group, steps[name], whole) for name, group in groups.items()]

    @property
    def classes(self) -> list[str]:
        """Names of what is searched for, in the order of their numbers."""
        return [t.name for t in self.templates]

    def windows(self, scene: Scene) -> dict[str, int]:
        """How many places each class is compared at."""
        stride = STRIDES[self.stage]
        x0, y0, x1, y1 = scene.aoi
        return {
            t.name: sum(
                math.ceil((x1 - x0) * UNIT / s / stride) * math.ceil((y1 - y0) * UNIT / s / stride) for s in t.steps
            )
            for t in self.templates
        }

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """Local maxima of the score that reach their class's threshold, tile by tile."""
        radiometry = self.radiometry_of(scene)
        for step in sorted({s for t in self.templates for s in t.steps}):
            wanted = [(i, t) for i, t in enumerate(self.templates) if step in t.steps]
            for tile in feature_tiles(
                self.engine,
                scene,
                radiometry,
                step,
                stage=self.stage,
                margin=self.cells // 2 + 1,
                tile=self.tile,
                min_valid=self.engine.min_valid,
            ):
                cells = self.whitening(tile.features)
                energy = self._energy(cells)
                for number, template in wanted:
                    yield self._peaks(scene, tile, cells, energy, step, number, template, thresholds[template.name])

    def _peaks(
        self,
        scene: Scene,
        tile: FeatureTile,
        cells: Tensor,
        energy: Tensor,
        step: int,
        number: int,
        template: Template,
        threshold: float,
    ) -> Candidates:
        """Local maxima of one class in one tile; scores are known one cell beyond the tile's border."""
        by_exemplar, view = self._match(cells, energy, template)
        score = by_exemplar.mean(0)
        around = F.max_pool2d(score[None, None], 3, stride=1)[0, 0]
        inner = score[1:-1, 1:-1]
        peak = (inner >= around) & (inner >= max(self.least, template.curve.raw(threshold)))
        peak &= torch.from_numpy(tile.valid).to(peak.device)
        y, x = torch.nonzero(peak, as_tuple=True)
        if len(y) > self.most:
            best = inner[y, x].topk(self.most).indices
            y, x = y[best], x[best]
        dy, dx = _vertex(score, y + 1, x + 1)
        values = by_exemplar[:, y + 1, x + 1].double().cpu().numpy()
        views = view[:, y + 1, x + 1].cpu().numpy()
        sides = self._vote(template, values, views) * self.box_scale * step / UNIT
        # A cell is centred on a pixel's middle, hence the half.
        stride = STRIDES[self.stage]
        column = (x + dx).double().cpu().numpy() + tile.x_first
        row = (y + dy).double().cpu().numpy() + tile.y_first
        centre = np.stack([column, row], axis=1) * stride + 0.5
        centre = centre * step / UNIT + np.asarray(scene.aoi[:2], dtype=float)
        boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
        raw = values.mean(axis=0)
        return Candidates(boxes, boxes, np.full(len(boxes), number), template.curve(raw))

    def _match(self, cells: Tensor, energy: Tensor, template: Template) -> tuple[Tensor, Tensor]:
        """Cosine of every place with each exemplar's best view ``[exemplars, h, w]``, and which view that is."""
        exemplars, views = template.patches.shape[:2]
        kernels = template.patches.flatten(0, 1)
        found = F.conv2d(cells[None].to(self.engine.dtype), kernels.to(self.engine.dtype))[0].float()
        cosine = found / energy.clamp(min=1e-12).sqrt()
        best, view = cosine.unflatten(0, (exemplars, views)).max(dim=1)
        return best, view

    def _vote(
        self, template: Template, scores: npt.NDArray[np.float64], views: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Width and height ``[n, 2]`` in level pixels: the mean of logs over exemplars, the better heard more."""
        exemplar = np.arange(len(scores))[:, None]
        logs = np.log(template.sides)[exemplar, views]
        weight = np.exp(10 * (scores - scores.max(axis=0, initial=-1.0))) * template.trust[exemplar, views]
        mean: npt.NDArray[np.float64] = np.exp((logs * weight[..., None]).sum(0) / weight.sum(0)[:, None])
        return mean

    def _ladder(self, groups: Mapping[str, Sequence[Exemplar]]) -> dict[str, tuple[int, ...]]:
        """Levels per class, on one ladder for all of them so that classes share feature maps."""
        sizes = {n: np.array([max(sides_of(e)) for e in group]) for n, group in groups.items()}
        anchor = float(np.median(next(iter(sizes.values()))))
        found = {}
        for name, longer in sizes.items():
            ratio = math.log(self.scale_step)
            middle = round(math.log(float(np.median(longer)) / anchor) / ratio)
            low = math.floor(math.log(longer.min() / anchor) / ratio + 0.5) - 1
            high = math.floor(math.log(longer.max() / anchor) / ratio + 0.5) + 1
            low = max(min(low, middle - self.min_levels), middle - self.max_levels)
            high = min(max(high, middle + self.min_levels), middle + self.max_levels)
            wanted = (anchor * self.scale_step**k / self.object_size * UNIT for k in range(low, high + 1))
            found[name] = tuple(sorted({max(1, round(s)) for s in wanted}))
        return found

    def _background(self, scenes: Sequence[Scene], steps: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Features ``[C, h, w]`` of random places of the scenes at random levels, and which cells are valid."""
        rng = np.random.default_rng(self.seed)
        stride = STRIDES[self.stage]
        around = math.ceil(self.engine.embedder.backbone.reach(self.stage) / stride)
        size = 24 * stride
        areas = np.array([s.megapixels for s in scenes])
        drawn = np.sort(rng.choice(len(scenes), self.samples, p=areas / areas.sum()))
        for number in np.unique(drawn):
            scene = scenes[number]
            radiometry = self.radiometry_of(scene)
            x0, y0, x1, y1 = scene.aoi
            with SceneReader(scene) as reader:
                for _ in range(int((drawn == number).sum())):
                    step = int(rng.choice(steps))
                    spans = []
                    for length in (x1 - x0, y1 - y0):
                        level = math.ceil(length * UNIT / step)
                        start = int(rng.integers(0, max(1, level - size))) // stride * stride
                        stop = max(start + stride, min(start + size, level // stride * stride))
                        spans.append(Span(0, 0, 0, start - around * stride, stop + around * stride))
                    pixels, valid = read_level(reader, radiometry, step, spans[0], spans[1], self.engine.device)
                    inner = features(self.engine, pixels, self.stage)[:, around:-around, around:-around]
                    share = valid_share(valid, stride)[around:-around, around:-around]
                    good = (share[: inner.shape[1], : inner.shape[2]] >= self.engine.min_valid).to(inner.device)
                    if good.any():
                        yield inner, good

    def _template(
        self, name: str, exemplars: Sequence[Exemplar], steps: tuple[int, ...], background: Sequence[Tensor]
    ) -> Template:
        patches = torch.stack([self._patches(e) for e in exemplars])
        lean = [
            lean_of(patches[i, 0], sides_of(e), STRIDES[self.stage], self.object_size) for i, e in enumerate(exemplars)
        ]
        unit = F.normalize(patches.flatten(2), dim=2).reshape(patches.shape)
        sides, trust = zip(
            *(
                view_sides(sides_of(e), rho, self.views, self.object_size, self.oblique_trust)
                for e, rho in zip(exemplars, lean, strict=True)
            ),
            strict=True,
        )
        cosine = torch.einsum("ad,bvd->abv", unit[:, 0].flatten(1), unit.flatten(2)).amax(2).cpu().numpy()
        count = len(exemplars)
        alone = cosine.sum(1) - cosine.diagonal()
        left_out = alone.astype(np.float64) / (count - 1) if count > 1 else np.empty(0)
        found = Template(name, unit, np.stack(sides), np.stack(trust), steps, left_out, np.empty(0), ScoreCurve())
        peaks = [self._background_peaks(cells, found) for cells in background]
        around = np.concatenate(peaks) if peaks else np.empty(0)
        return replace(found, background=around, curve=fit_curve(left_out, around))

    def _background_peaks(self, cells: Tensor, template: Template) -> npt.NDArray[np.float64]:
        """Scores of local maxima in one sample of the background."""
        score = self._match(cells, self._energy(cells), template)[0].mean(0)
        inner = score[1:-1, 1:-1]
        peak = inner >= F.max_pool2d(score[None, None], 3, stride=1)[0, 0]
        return inner[peak].double().cpu().numpy()

    def _energy(self, cells: Tensor) -> Tensor:
        """Squared length of the patch round every place."""
        return F.avg_pool2d(cells.square().sum(0)[None, None], self.cells, stride=1)[0, 0] * self.cells**2

    def _patches(self, exemplar: Exemplar) -> Tensor:
        """Whitened cells ``[views, D, cells, cells]`` of an exemplar at the common size, in every view."""
        stride = STRIDES[self.stage]
        half = self.cells // 2 * stride + math.ceil(self.engine.embedder.backbone.reach(self.stage) / stride) * stride
        radiometry = self.radiometry_of(exemplar.scene)
        scale = self.object_size / max(sides_of(exemplar))
        image, valid = upright(exemplar, radiometry, scale, half, self.engine.device)
        if not valid.any():
            raise InputError(
                f"{exemplar.scene.path}: the {exemplar.class_name} exemplar at {exemplar.box} holds no valid pixel."
            )
        middle = half // stride
        inner = slice(middle - self.cells // 2, middle + self.cells // 2 + 1)
        found = []
        for view in range(self.views):
            turned = rotate(image, 2 * math.pi * view / self.views, half)
            cells = self.whitening(features(self.engine, turned[:-1], self.stage)[:, inner, inner])
            # Cells beyond the exemplar's own image say nothing.
            share = turned[-1][half % stride :: stride, half % stride :: stride][inner, inner]
            found.append(cells * (share > 0.5))
        return torch.stack(found)


def _vertex(score: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Offset in cells, within half a cell, of the parabola's top through each peak and its neighbours, per axis."""
    found = []
    for before, after in ((score[y - 1, x], score[y + 1, x]), (score[y, x - 1], score[y, x + 1])):
        bend = 2 * score[y, x] - before - after
        found.append(((after - before) / (2 * bend.clamp(min=1e-9))).clamp(-0.5, 0.5))
    return found[0], found[1]
