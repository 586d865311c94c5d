"""Search by spatial templates: an exemplar is a patch of feature cells, matched densely over scenes.

Pooling a window to one vector throws away where things are in it, so that an aircraft's corner scores like its centre.
A template keeps it. Exemplars brought to one size become 9 x 9 cells of a middle stage, in several rotations. What they
have in common is matched everywhere; at the peaks, each exemplar is compared in its own best rotation, and the score is
the mean of these cosines.
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

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STRIDES
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.statistics import measure
from siamese_sat.search.background import Sample, sample_background
from siamese_sat.search.consensus import Consensus, find_consensus
from siamese_sat.search.dense import UNIT, FeatureTile, feature_tiles, features
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar, by_class
from siamese_sat.search.ladder import ladder
from siamese_sat.search.maps import Maps, Whitenings
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.patch import lean_of, rotate, sides_of, upright, view_sides
from siamese_sat.search.peak import local_maxima, vertex
from siamese_sat.search.score import ScoreCurve, fit_curve
from siamese_sat.search.whiten import Whitening, whiten

FloatArray = npt.NDArray[np.float64]

# Places that match what the exemplars have in common less than this part of the threshold are not looked at closer.
CLOSER = 0.5
# Background cells from which the searched scenes speak for themselves; in smaller ones the training's background helps.
ENOUGH = 20_000


@dataclass(frozen=True)
class Template:
    """What one class is searched with.

    Attributes:
        name: of the class.
        consensus: its exemplars, turned alike.
        deep: the same in the deep stage, or None.
        sizes: ``[exemplars]`` longer sides in scene pixels.
        sides: ``[exemplars, views, 2]`` width and height of the thing in that view, in level pixels.
        trust: ``[exemplars, views]`` how much the view says of width and height.
        steps: levels to search, scene pixels per 128 level pixels.
        left_out: ``[exemplars]`` score of each exemplar by the others; empty for a single one.
        background: scores of local maxima at random places of the searched scenes.
        curve: raw score to probability.
    """

    name: str
    consensus: Consensus
    deep: Consensus | None
    sizes: FloatArray
    sides: FloatArray
    trust: FloatArray
    steps: tuple[int, ...]
    left_out: FloatArray
    background: FloatArray
    curve: ScoreCurve


@dataclass
class TemplateSearch:
    """Spatial templates on a dense feature map.

    Attributes:
        stage: of the backbone.
        deep: a later stage in which peaks are compared too, or None.
        deep_weight: of the deep stage's cosine, that of the first being 1.
        deep_cells: of a template in the deep stage; odd.
        object_size: level pixels to which an exemplar's longer side is brought.
        cells: of a template along a side; odd.
        views: rotations of an exemplar, evenly over the circle.
        scale_step: ratio of neighbouring levels.
        min_levels: levels on either side of the median exemplar, at least.
        max_levels: at most.
        size_spread: natural logarithm of the ratio of sizes at which a resemblance counts for 0.6 of itself.
        contrast: part of a patch's mean cell taken off it, see `Consensus`.
        dimensions: of a whitened cell.
        shrinkage: of the whitening.
        oblique_trust: weight of views between quarter turns in the vote on the box.
        box_scale: reported boxes are the exemplars' extent times this.
        samples: places, at most, from which the background's statistics are taken.
        least: raw scores below are no candidates.
        most: candidates per class, scene and tile at most.
        tile: level pixels of a tile.
        seed: of the sampled places.
    """

    stage: str = "layer2"
    deep: str | None = "layer3"
    deep_weight: float = 0.6
    deep_cells: int = 5
    object_size: float = 49.0
    cells: int = 9
    views: int = 8
    scale_step: float = 1.25
    min_levels: int = 2
    max_levels: int = 4
    size_spread: float = 1.2
    contrast: float = 0.2
    dimensions: int = 128
    shrinkage: float = 0.1
    oblique_trust: float = 0.1
    box_scale: float = 1.1
    samples: int = 192
    least: float = 0.02
    most: int = 2000
    tile: int = 1536
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
        """Learns the background of ``scenes`` and turns exemplars into templates.

        Small scenes lean on the background of the model's training, where there was one.
        """
        if not exemplars:
            raise InputError("Template search needs exemplars; give some, or search with search/method=window.")
        if self.cells % 2 == 0 or self.cells < 1 or self.views < 1 or self.scale_step <= 1 or self.size_spread <= 0:
            raise InputError(
                "search.method: cells must be odd, views 1 or more, scale_step above 1 and size_spread above 0."
            )
        if not 0 <= self.contrast <= 1:
            raise InputError("search.method: contrast must lie between 0 and 1.")
        self.model, self.engine, self.radiometry_of = model, engine, radiometry_of
        groups = by_class(exemplars)
        sizes = {name: [max(sides_of(e)) for e in group] for name, group in groups.items()}
        steps = ladder(sizes, self.object_size, self.scale_step, self.min_levels, self.max_levels)
        every = sorted({s for found in steps.values() for s in found})
        samples = list(
            sample_background(
                engine, scenes, radiometry_of, every, self.stage, self.samples, self.seed, self._deep_stage
            )
        )
        self.whitening = Whitenings(
            self._whitening(self.stage, (s.features[:, s.good][:, :, None] for s in samples)),
            None
            if self._deep_stage is None
            else self._whitening(self._deep_stage, (_good_deep(s, self._phase) for s in samples)),
            self._phase,
        )
        least = self.cells + 2
        background = [
            (self.whitening(s.features, s.deep), s.step)
            for s in samples
            if bool(s.good.all()) and min(s.features.shape[1:]) >= least
        ]
        self.templates = [self._template(name, group, steps[name], background) for name, group in groups.items()]

    @property
    def _deep_stage(self) -> str | None:
        """The deep stage, where it counts."""
        return self.deep if self.deep_weight > 0 else None

    @property
    def _phase(self) -> int:
        """Strides of the first stage in one of the deep one."""
        return STRIDES[self._deep_stage] // STRIDES[self.stage] if self._deep_stage else 1

    def _whitening(self, stage: str, samples: Iterator[Tensor]) -> Whitening:
        """Of the scenes' background, or, where they are small, of that of the training too."""
        found, trained = measure(samples), self.model.background.get(stage)
        if found is not None and trained is not None:
            found = found.leaning_on(trained, ENOUGH)
        found = found or trained
        if found is None:
            raise InputError("No valid pixel in the searched scenes to learn their background from.")
        return whiten(found, self.dimensions, self.shrinkage)

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
                deep=self._deep_stage,
                margin=self._margin,
                tile=self.tile,
                min_valid=self.engine.min_valid,
            ):
                maps = self.whitening(tile.features, tile.deep, tile.origin)
                for (number, template), score in zip(
                    wanted, self._match(maps.cells, [t for _, t in wanted]), strict=True
                ):
                    yield self._peaks(scene, tile, maps, score, step, number, template, thresholds[template.name])

    def _peaks(
        self,
        scene: Scene,
        tile: FeatureTile,
        maps: Maps,
        score: Tensor,
        step: int,
        number: int,
        template: Template,
        threshold: float,
    ) -> Candidates:
        """Local maxima of one class in one tile; scores are known one cell beyond the tile's border."""
        raw = template.curve.raw(threshold)
        # The margin may be wider than a template needs.
        spare = self._margin - self.cells // 2 - 1
        score = score[spare : score.shape[0] - spare, spare : score.shape[1] - spare]
        y, x = local_maxima(score, max(self.least, CLOSER * raw), torch.from_numpy(tile.valid), self.most)
        dy, dx = vertex(score, y + 1, x + 1)
        values, votes, views = self._closer(
            template, *maps.patches(y + 1 + spare, x + 1 + spare, self.cells, self.deep_cells, (dy, dx)), step
        )
        # A cell is centred on a pixel's middle, hence the half.
        stride = STRIDES[self.stage]
        column = (x + dx).double().cpu().numpy() + tile.x_first
        row = (y + dy).double().cpu().numpy() + tile.y_first
        centre = np.stack([column, row], axis=1) * stride + 0.5
        centre = centre * step / UNIT + np.asarray(scene.aoi[:2], dtype=float)
        sides = self._vote(template, votes, views) * self.box_scale * step / UNIT
        found = values.mean(axis=1)
        keep = found >= max(self.least, raw)
        boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)[keep]
        return Candidates(boxes, boxes, np.full(len(boxes), number), template.curve(found[keep]))

    @property
    def _margin(self) -> int:
        """Cells that a tile needs on each side."""
        least = self.cells // 2 + 1
        if self._deep_stage is None:
            return least
        # A deep patch is cut between cells: one more on each side.
        least = max(least, (self.deep_cells // 2 + 1) * self._phase)
        return math.ceil(least / self._phase) * self._phase

    def _match(self, cells: Tensor, templates: Sequence[Template]) -> list[Tensor]:
        """Cosine ``[h, w]`` of every place with what each template's exemplars share, in its best view."""
        dtype = self.engine.dtype
        kernels = torch.cat([t.consensus.kernels for t in templates]).to(dtype)
        weights = torch.cat([t.consensus.weights for t in templates])[:, None]
        found = F.conv2d(cells[None].to(dtype), kernels)[0].float()
        energy = F.conv2d(cells.square().sum(0)[None, None], weights)[0]
        cosine = found / energy.clamp(min=1e-12).sqrt()
        return [one.amax(dim=0) for one in cosine.split(self.views)]

    def _closer(
        self, template: Template, places: Tensor, deep: Tensor | None, step: float
    ) -> tuple[FloatArray, FloatArray, npt.NDArray[np.int64]]:
        """Every exemplar's own score ``[n, exemplars]`` of places, that of the first stage alone, and its best view.

        The score is the weighted mean of the stages' cosines, each in its best view, less where the place's size is far
        from the exemplar's: a Gaussian of the logarithm of their ratio.

        Args:
            template: of the class.
            places: ``[n, D, cells, cells]``.
            deep: ``[n, D, deep_cells, deep_cells]``, or None.
            step: of their level.
        """
        cosine, view = template.consensus.cosines(places).max(dim=2)
        off = np.log(self.object_size * step / UNIT / template.sizes) / self.size_spread
        likely = np.exp(-(off**2) / 2)
        first = cosine.double().cpu().numpy() * likely
        if template.deep is None or deep is None:
            return first, first, view.cpu().numpy()
        further = template.deep.cosines(deep).amax(dim=2).double().cpu().numpy() * likely
        return (first + self.deep_weight * further) / (1 + self.deep_weight), first, view.cpu().numpy()

    def _vote(self, template: Template, scores: FloatArray, views: npt.NDArray[np.int64]) -> FloatArray:
        """Width and height ``[n, 2]`` in level pixels: the mean of logs over exemplars, the better heard more."""
        exemplar = np.arange(scores.shape[1])[None]
        logs = np.log(template.sides)[exemplar, views]
        weight = np.exp(10 * (scores - scores.max(axis=1, keepdims=True))) * template.trust[exemplar, views]
        mean: FloatArray = np.exp((logs * weight[..., None]).sum(1) / weight.sum(1)[:, None])
        return mean

    def _template(
        self, name: str, exemplars: Sequence[Exemplar], steps: tuple[int, ...], background: Sequence[tuple[Maps, int]]
    ) -> Template:
        cells = torch.stack([self._patches(e, self.stage, self.whitening.first, self.cells) for e in exemplars])
        deep = None
        if self._deep_stage is not None and self.whitening.deep is not None:
            deep = torch.stack(
                [self._patches(e, self._deep_stage, self.whitening.deep, self.deep_cells) for e in exemplars]
            )
        consensus = find_consensus(cells, self.contrast)
        sides: list[FloatArray] = []
        trust: list[FloatArray] = []
        for own, exemplar, shift in zip(cells, exemplars, consensus.shift, strict=True):
            lean = lean_of(own[0], sides_of(exemplar), STRIDES[self.stage], self.object_size)
            found = view_sides(sides_of(exemplar), lean, self.views, self.object_size, self.oblique_trust)
            for kept, values in zip((sides, trust), found, strict=True):
                kept.append(np.roll(values, -int(shift), axis=0))
        template = Template(
            name=name,
            consensus=consensus,
            deep=None if deep is None else find_consensus(deep, self.contrast),
            sizes=np.array([max(sides_of(e)) for e in exemplars]),
            sides=np.stack(sides),
            trust=np.stack(trust),
            steps=steps,
            left_out=np.empty(0),
            background=np.empty(0),
            curve=ScoreCurve(),
        )
        left_out = self._left_out(template, cells, deep)
        peaks = [self._background_peaks(template, maps, step) for maps, step in background if step in steps]
        around = np.concatenate(peaks) if peaks else np.empty(0)
        return replace(template, left_out=left_out, background=around, curve=fit_curve(left_out, around))

    def _left_out(self, template: Template, cells: Tensor, deep: Tensor | None) -> FloatArray:
        """Score of each exemplar by a template of the others."""
        count = len(cells)
        found = []
        for i in range(count if count > 1 else 0):
            others = [j for j in range(count) if j != i]
            rest = replace(
                template,
                consensus=find_consensus(cells[others], self.contrast),
                deep=None if deep is None else find_consensus(deep[others], self.contrast),
                sizes=template.sizes[others],
            )
            step = float(template.sizes[i]) * UNIT / self.object_size
            own = None if deep is None else deep[i, :1]
            found.append(self._closer(rest, cells[i, :1], own, step)[0].mean())
        return np.asarray(found, dtype=np.float64)

    def _background_peaks(self, template: Template, maps: Maps, step: int) -> FloatArray:
        """Scores of local maxima in one sample of the background."""
        [score] = self._match(maps.cells, [template])
        inside = torch.ones(score.shape[0] - 2, score.shape[1] - 2, dtype=torch.bool)
        y, x = local_maxima(score, -1.0, inside, self.most)
        places = maps.patches(y + 1, x + 1, self.cells, self.deep_cells, vertex(score, y + 1, x + 1))
        return np.asarray(self._closer(template, *places, step)[0].mean(axis=1))

    def _patches(self, exemplar: Exemplar, stage: str, whitening: Whitening, cells: int) -> Tensor:
        """Whitened cells ``[views, D, cells, cells]`` of an exemplar at the common size, in every view."""
        stride = STRIDES[stage]
        half = cells // 2 * stride + math.ceil(self.engine.embedder.backbone.reach(stage) / stride) * stride
        radiometry = self.radiometry_of(exemplar.scene)
        scale = self.object_size / max(sides_of(exemplar))
        image, valid = upright(exemplar, radiometry, scale, half, self.engine.device)
        if not valid.any():
            raise InputError(
                f"{exemplar.scene.path}: the {exemplar.class_name} exemplar at {exemplar.box} holds no valid pixel."
            )
        middle = half // stride
        inner = slice(middle - cells // 2, middle + cells // 2 + 1)
        found = []
        for view in range(self.views):
            turned = rotate(image, 2 * math.pi * view / self.views, half)
            white = whitening(features(self.engine, turned[:-1], stage)[:, inner, inner])
            # Cells beyond the exemplar's own image say nothing.
            share = turned[-1][half % stride :: stride, half % stride :: stride][inner, inner]
            found.append(white * (share > 0.5))
        return torch.stack(found)


def _good_deep(sample: Sample, phase: int) -> Tensor:
    """Deep features ``[C, n, 1]`` of a sample where a cell is valid."""
    assert sample.deep is not None
    good = F.max_pool2d(sample.good[None, None].float(), phase, ceil_mode=True)[0, 0] > 0
    return sample.deep[:, good][:, :, None]
