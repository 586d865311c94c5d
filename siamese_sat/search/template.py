"""Search by spatial templates: an exemplar is a patch of feature cells, matched densely over scenes.

Pooling a window to one vector throws away where things are in it, so that an aircraft's corner scores like its centre.
A template keeps it. Exemplars brought to one size become 9 x 9 cells of a middle stage, in several rotations. What they
have in common is matched everywhere; at the peaks, each exemplar is compared in its own best rotation, and the score is
the mean of these cosines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STRIDES
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.model.statistics import measure
from siamese_sat.progress import track
from siamese_sat.search.background import good_deep, sample_background
from siamese_sat.search.builder import Builder
from siamese_sat.search.coarse import AROUND, Peaks, find_peaks
from siamese_sat.search.dense import FeatureTile, feature_tiles
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import NEGATIVE, Exemplar, by_class
from siamese_sat.search.ladder import Rung
from siamese_sat.search.level import UNIT
from siamese_sat.search.maps import Maps, Whitenings
from siamese_sat.search.matcher import Matcher, Rendition, Template
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.part import Part
from siamese_sat.search.rerank import looks
from siamese_sat.search.scenery import DIMENSIONS, Level, Scenery, sample
from siamese_sat.search.score import CERTAIN
from siamese_sat.search.sought import sought
from siamese_sat.search.template_settings import check_template_settings, check_width
from siamese_sat.search.whiten import Whitening, whiten

# Places that match what the exemplars have in common less than this part of the threshold are not looked at closer.
CLOSER = 0.5
# Where boxes vote, what is asked for lies below the threshold already: of that a larger part.
CLOSER_VOTING = 0.7
# Background cells from which the searched scenes speak for themselves; in smaller ones the training's background helps.
ENOUGH = 20_000


@dataclass
class TemplateSearch:
    """Spatial templates on a dense feature map.

    Attributes:
        stage: of the backbone.
        deep: a later stage in which peaks are compared too, or None.
        deep_weight: of the deep stage's cosine, that of the first being 1.
        deep_cells: of a template in the deep stage; odd.
        object_size: level pixels to which an exemplar's longer side is brought; with several sizes to a level, the
            middle one; up to half a ``scale_step`` from it beside a class of smaller things.
        cells: of a template along a side; odd.
        views: rotations of an exemplar, evenly over the circle.
        scale_step: ratio of neighbouring sizes of things.
        sizes_per_level: neighbouring sizes of a class that are sought in one level, each by exemplars of its size.
        min_levels: sizes on either side of the median exemplar, at least, see `ladder`.
        max_levels: smaller than it, at most; twice as many that are larger, which take little time.
        larger_levels: larger than it, at least, as far as ``max_levels`` allows: few exemplars seldom show the largest.
        match_detail: whether levels above that of the median exemplar are blurred until they show no more detail than
            it, see `grained`; of exemplars below some 45 px only, larger ones show all there is. Classes whose levels
            are not the same share fewer passes then.
        max_zoom: ``object_size`` per scene pixel of the smallest things sought, at most, unless the median exemplar
            itself is smaller; None: no limit.
        size_spread: natural logarithm of the ratio of sizes at which a resemblance counts for 0.6 of itself.
        contrast: part of a patch's mean cell taken off it, see `Consensus`.
        dimensions: of a whitened cell.
        shrinkage: of the whitening.
        oblique_trust: weight of views between quarter turns in the vote on the box.
        box_scale: reported boxes are the exemplars' extent times this.
        vote_iou: overlap from which places put each other's boxes right; 0: they do not.
        rerank: weight of what all that was found says of each, see `siamese_sat.search.rerank`; 0: nothing.
        samples: places, at most, from which the background's statistics are taken.
        least: raw scores below this part of a class's threshold are no candidates, whatever is asked: their probability
            is below 0.0002.
        most: places, two cells by two, that are compared in full per class and tile, at most; the most promising.
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
    sizes_per_level: int = 3
    min_levels: int = 2
    max_levels: int = 4
    larger_levels: int = 8
    match_detail: bool = True
    max_zoom: float | None = 6.0
    size_spread: float = 1.2
    contrast: float = 0.2
    dimensions: int = 128
    shrinkage: float = 0.1
    oblique_trust: float = 0.1
    box_scale: float = 1.1
    vote_iou: float = 0.2
    rerank: float = 2.0
    samples: int = 192
    least: float = 0.25
    most: int = 2000
    tile: int = 2048
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

        Raises:
            InputError: a setting or an exemplar cannot be used.
        """
        if not exemplars:
            raise InputError(
                "Template search needs exemplars; give exemplars.boxes, .chips or .scenes, or search for a training's "
                "own classes with search/method=window and its ckpt_path."
            )
        check_template_settings(self)
        self.model, self.engine, self.radiometry_of = model, engine, radiometry_of
        groups = by_class(exemplars)
        found = sought(self, groups)
        # Beside other classes things may appear larger than alone.
        check_width(self, found.appears)
        sampled = partial(
            sample_background, engine, scenes, radiometry_of,
            stage=self.stage, count=self.samples, seed=self.seed, deep=self.deep_stage,
        )  # fmt: skip
        # Scenes hardly larger than a cell have none that lies within them: they speak enlarged.
        samples = list(sampled(found.steps)) or list(sampled([max(1, found.steps[0] // 4)]))
        ordinary = [s for s in samples if s.step in found.leading] or samples
        self.whitening = Whitenings(
            self._whitening(self.stage, (s.features[:, s.good][:, :, None] for s in ordinary)),
            None
            if self.deep_stage is None
            else self._whitening(self.deep_stage, (good_deep(s, self._phase) for s in ordinary)),
            self._phase,
        )
        least = self.cells + 2 * AROUND
        background = [
            (self.whitening(s.features, s.later), s.step)
            for s in samples
            if bool(s.good.all()) and min(s.features.shape[1:]) >= least
        ]
        self.make(groups, found.rungs, background, own=found.own)

    def make(
        self,
        groups: Mapping[str, Sequence[Exemplar]],
        rungs: Mapping[str, Sequence[Rung]],
        background: Sequence[tuple[Maps, int]],
        stored: Callable[[Tensor], Tensor] | None = None,
        own: Mapping[str, Sequence[Rung]] | None = None,
    ) -> None:
        """Turns exemplars into templates; model, engine, radiometry and whitening are known.

        Args:
            groups: exemplars by class.
            rungs: sizes to seek, each in its level, by class.
            background: see `Builder.template`.
            stored: see `Builder`.
            own: sizes and levels of these that the exemplars ask for, see `Builder.template`; None: all.
        """
        builder = Builder(
            engine=self.engine,
            radiometry_of=self.radiometry_of,
            matcher=self._matcher,
            whitening=self.whitening,
            stage=self.stage,
            deep=self.deep_stage,
            cells=self.cells,
            deep_cells=self.deep_cells,
            contrast=self.contrast,
            oblique_trust=self.oblique_trust,
            most=self.most,
            stored=stored,
        )
        self.templates = [
            builder.template(name, group, rungs[name], background, (own or rungs)[name])
            for name, group in track(groups.items(), "Making templates", unit="classes", total=len(groups))
        ]

    @property
    def _matcher(self) -> Matcher:
        return Matcher(self.views, self.deep_weight, self.size_spread, self.engine.dtype)

    @property
    def deep_stage(self) -> str | None:
        """The deep stage, where it counts."""
        return self.deep if self.deep_weight > 0 else None

    @property
    def _phase(self) -> int:
        """Strides of the first stage in one of the deep one."""
        return STRIDES[self.deep_stage] // STRIDES[self.stage] if self.deep_stage else 1

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

    @property
    def sizes(self) -> list[float]:
        """See `sizes_of`."""
        return [float(np.median(t.renditions[0].sizes)) for t in self.templates]

    def on_scale(self, number: int, found: Candidates) -> npt.NDArray[np.float64]:
        """See `OwnScales`: by the raw scores, cosines of whatever class."""
        raw = np.zeros(len(found.scores))
        for other in np.unique(found.classes):
            mine = found.classes == other
            raw[mine] = self.templates[other].curve.raws(found.scores[mine].clip(0, CERTAIN))
        return self.templates[number].curve(raw)

    def windows(self, scene: Scene) -> dict[str, int]:
        """How many places each class is compared at."""
        stride = STRIDES[self.stage]
        x0, y0, x1, y1 = scene.aoi
        return {
            t.name: sum(
                math.ceil((x1 - x0) * UNIT / s / stride) * math.ceil((y1 - y0) * UNIT / s / stride)
                for r in t.renditions
                for s in r.steps
                if _fits(r, s, scene)
            )
            for t in self.templates
        }

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """Local maxima of the score that reach their class's threshold, tile by tile."""
        yield from self.some(scene, thresholds, (0, 1))

    def whole(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        """See `Divisible`."""
        return found

    def some(self, scene: Scene, thresholds: Mapping[str, float], part: Part) -> Iterator[Candidates]:
        """See `Divisible`; of every level the same part of its tiles."""
        radiometry = self.radiometry_of(scene)
        levels = [
            sorted({(s, b) for r in t.renditions for s, b in r.levels if _fits(r, s, scene)}) for t in self.templates
        ]
        # Of marked mistakes nobody asks where they stand.
        asked = [number for number, t in enumerate(self.templates) if not t.name.startswith(NEGATIVE) and self.rerank]
        coarsest = {number: levels[number][-1] for number in asked if levels[number]}
        if coarsest:
            yield replace(Candidates.join([]), scenery=Scenery(coarsest, self._told_by))
        for step, blur in sorted(set(itertools.chain(*levels))):
            for tile in feature_tiles(
                self.engine,
                scene,
                radiometry,
                step,
                stage=self.stage,
                deep=self.deep_stage,
                margin=self.margin,
                tile=self.tile,
                min_valid=self.engine.min_valid,
                part=part,
                align=2,  # the coarse grid
                blur=blur,
            ):
                maps = self.whitening(tile.features, tile.deep, tile.origin)
                if (step, blur) in coarsest.values():
                    yield self._seen_at_large(scene, (step, blur), tile, maps, coarsest)
                yield from self.match(scene, step, tile, maps, thresholds, blur)

    def _seen_at_large(
        self, scene: Scene, level: Level, tile: FeatureTile, maps: Maps, coarsest: Mapping[int, Level]
    ) -> Candidates:
        """No candidate, but what those of the classes whose coarsest level this is lie in."""
        phase = self._phase
        cells, valid = maps.cells, tile.around
        if maps.deep is not None:
            valid = valid[::phase, ::phase]
            y, x = (round(start) for start in maps.origin)
            cells = maps.deep[:, y : y + valid.shape[0], x : x + valid.shape[1]]
        found = sample(
            cells,
            valid,
            self.margin // phase,
            (tile.y_first // phase, tile.x_first // phase),
            STRIDES[self.stage] * phase,
            level[0] / UNIT,
            (scene.aoi[0], scene.aoi[1]),
        )
        samples = {level: found} if found is not None else {}
        return replace(Candidates.join([]), scenery=Scenery(coarsest, self._told_by, samples))

    @property
    def _told_by(self) -> int:
        """Numbers by which the surroundings of a place are told."""
        return min(DIMENSIONS, (self.whitening.deep or self.whitening.first).axes.shape[1])

    def match(
        self,
        scene: Scene,
        step: int,
        tile: FeatureTile,
        maps: Maps,
        thresholds: Mapping[str, float],
        blur: float = 0.0,
    ) -> Iterator[Candidates]:
        """Places of one tile that reach their class's threshold, class by class and size by size.

        Args:
            scene: that it is a part of.
            step: of its level.
            tile: where it lies, with a `margin` of cells on all sides, and where places count.
            maps: its whitened cells.
            thresholds: least score by class.
            blur: of its level, see `feature_tiles`.
        """
        closer = CLOSER_VOTING if self.vote_iou > 0 else CLOSER
        wanted = [
            (i, t, r)
            for i, t in enumerate(self.templates)
            for r in t.renditions
            if (step, blur) in r.levels and _fits(r, step, scene)
        ]
        raw = [max(self.least * t.curve.threshold, t.curve.raw(thresholds[t.name])) for _, t, _ in wanted]
        peaks = find_peaks(
            maps.cells,
            [r.consensus for _, _, r in wanted],
            [closer * r for r in raw],
            torch.from_numpy(tile.valid),
            self.margin,
            self.most,
            self.engine.dtype,
        )
        for (number, template, rendition), found, least in zip(wanted, peaks, raw, strict=True):
            places = self._closer(scene, tile, maps, found, step, rendition, least)
            classes = np.full(len(places.scores), number)
            yield replace(places, classes=classes, scores=template.curve(places.scores))

    def _closer(
        self,
        scene: Scene,
        tile: FeatureTile,
        maps: Maps,
        peaks: Peaks,
        step: int,
        rendition: Rendition,
        least: float,
    ) -> Candidates:
        """The peaks of one class in one tile, compared closely, that reach ``least``; their scores are raw."""
        if not len(peaks):
            return Candidates.join([])
        patches = maps.patches(peaks.y, peaks.x, self.cells, self.deep_cells, (peaks.dy, peaks.dx))
        values, votes, views = self._matcher.closer(rendition, *patches, step)
        # A cell is centred on a pixel's middle, hence the half.
        stride = STRIDES[self.stage]
        first = self.margin - self.cells // 2
        column = (peaks.x + peaks.dx).double().cpu().numpy() - first + tile.x_first
        row = (peaks.y + peaks.dy).double().cpu().numpy() - first + tile.y_first
        centre = np.stack([column, row], axis=1) * stride + 0.5
        centre = centre * step / UNIT + np.asarray(scene.aoi[:2], dtype=float)
        sides = self._matcher.vote(rendition, votes, views) * self.box_scale * step / UNIT
        found = values.mean(axis=1)
        boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
        kept = found >= least
        seen = (
            looks(patches[0][torch.from_numpy(kept).to(patches[0].device)], self.contrast) if self.rerank > 0 else None
        )
        return Candidates(boxes[kept], boxes[kept], np.zeros(int(kept.sum()), np.int64), found[kept], seen)

    @property
    def margin(self) -> int:
        """Cells that a tile needs on each side."""
        least = self.cells // 2 + AROUND
        if self.deep_stage is None:
            return least
        # A deep patch is cut between cells: one more on each side.
        least = max(least, (self.deep_cells // 2 + 1) * self._phase)
        return math.ceil(least / self._phase) * self._phase


def _fits(rendition: Rendition, step: int, scene: Scene) -> bool:
    """Whether things of that size are sought there: larger ones than it only where the exemplars ask for them."""
    x0, y0, x1, y1 = scene.aoi
    return rendition.appears * step / UNIT <= max(x1 - x0, y1 - y0, rendition.largest)
