"""Exemplars of a class made into what it is searched with, and a score's meaning learned from them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.errors import InputError
from siamese_sat.model.backbone import STRIDES
from siamese_sat.search.background import SEEN
from siamese_sat.search.coarse import AROUND, find_peaks
from siamese_sat.search.consensus import find_consensus
from siamese_sat.search.dense import first_stage, later_stage
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.ladder import Rung
from siamese_sat.search.level import UNIT, blur_of
from siamese_sat.search.maps import Maps, Whitenings
from siamese_sat.search.matcher import Matcher, Rendition, Template
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.patch import lean_of, rotate, sides_of, upright, view_sides
from siamese_sat.search.score import fit_curve

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Builder:
    """What templates are made with.

    Attributes:
        engine: runs the network.
        radiometry_of: normalises a scene.
        matcher: compares exemplars with each other and with the background.
        whitening: of the stages.
        stage: of the backbone.
        deep: a later stage, or None.
        cells: of a template along a side; odd.
        deep_cells: in the deep stage; odd.
        contrast: part of a patch's mean cell taken off it, see `Consensus`.
        oblique_trust: weight of views between quarter turns in the vote on the box.
        most: peaks of the background per sample, at most.
        stored: makes of whitened cells ``[..., D, n, n]`` what is left of them where places are kept rather than seen;
            exemplars are then held against each other as such places. None where scenes are seen.
    """

    engine: Engine
    radiometry_of: RadiometryOf
    matcher: Matcher
    whitening: Whitenings
    stage: str
    deep: str | None
    cells: int
    deep_cells: int
    contrast: float
    oblique_trust: float
    most: int
    stored: Callable[[Tensor], Tensor] | None = None

    def template(
        self,
        name: str,
        exemplars: Sequence[Exemplar],
        rungs: Sequence[Rung],
        background: Sequence[tuple[Maps, int]],
        own: Sequence[Rung],
    ) -> Template:
        """What a class is searched with.

        Args:
            name: of the class.
            exemplars: of it.
            rungs: sizes to seek, each in its level.
            background: random places of the searched scenes, each with the step of its level.
            own: sizes and levels of ``rungs``, whatever their grain, that the exemplars ask for: the background is
                compared there; larger sizes count as the largest of them, but for a tenth.
        """
        largest = max([r.size for r in own] + [max(sides_of(e)) for e in exemplars])
        renditions, plain, left_out = [], [], []
        for appears in sorted({r.appears for r in rungs}):
            mine = [r for r in rungs if r.appears == appears]
            sharp = [self._patches(e, appears, 0.0) for e in exemplars]
            # What scores mean is learned from exemplars that are not blurred, whether or not such are sought.
            for grain in sorted({0.0, *(r.grain for r in mine)}):
                blurs = [blur_of(appears / max(sides_of(e)), grain) for e in exemplars]
                patches = [
                    self._patches(e, appears, blur) if blur else known
                    for e, blur, known in zip(exemplars, blurs, sharp, strict=True)
                ]
                steps = tuple(r.step for r in mine if r.grain == grain)
                rendition, cells, deep = self._rendition(exemplars, patches, appears, steps, largest, grain)
                if steps:
                    renditions.append(rendition)
                if not grain:
                    plain.append(rendition)
                    left_out.append(self._left_out(rendition, cells, deep))
        asked = {(r.step, r.appears) for r in own}
        peaks, turns = [], Counter[int]()
        for maps, step in background:
            some = [r for r in plain if (step, r.appears) in asked]
            if some:  # in turn: all of them would say little more
                peaks.append(self._background_peaks(some[turns[step] % len(some)], maps, step))
                turns[step] += 1
        around = np.concatenate(peaks) if peaks else np.empty(0)
        # A thing of any size is found by one of the renditions.
        alike = np.mean(left_out, axis=0)
        return Template(name, tuple(renditions), alike, around, fit_curve(alike, around))

    def _rendition(
        self,
        exemplars: Sequence[Exemplar],
        patches: Sequence[tuple[Tensor, Tensor | None]],
        appears: float,
        steps: tuple[int, ...],
        largest: float,
        grain: float,
    ) -> tuple[Rendition, Tensor, Tensor | None]:
        """Exemplars at one size, with their cells ``[exemplars, views, D, n, n]`` in both stages."""
        cells = torch.stack([first for first, _ in patches])
        later = [further for _, further in patches if further is not None]
        deep = torch.stack(later) if later else None
        consensus = find_consensus(cells, self.contrast)
        sides: list[FloatArray] = []
        trust: list[FloatArray] = []
        for own, exemplar, shift in zip(cells, exemplars, consensus.shift, strict=True):
            lean = lean_of(own[0], sides_of(exemplar), STRIDES[self.stage], appears)
            found = view_sides(sides_of(exemplar), lean, self.matcher.views, appears, self.oblique_trust)
            for kept, values in zip((sides, trust), found, strict=True):
                kept.append(np.roll(values, -int(shift), axis=0))
        rendition = Rendition(
            appears=appears,
            consensus=consensus,
            deep=None if deep is None else find_consensus(deep, self.contrast),
            sizes=np.array([max(sides_of(e)) for e in exemplars]),
            sides=np.stack(sides),
            trust=np.stack(trust),
            steps=steps,
            largest=largest,
            grain=grain,
        )
        return rendition, cells, deep

    def _left_out(self, rendition: Rendition, cells: Tensor, deep: Tensor | None) -> FloatArray:
        """Score of each exemplar by a rendition of the others."""
        count = len(cells)
        found = []
        for i in range(count if count > 1 else 0):
            others = [j for j in range(count) if j != i]
            rest = replace(
                rendition,
                consensus=find_consensus(cells[others], self.contrast),
                deep=None if deep is None else find_consensus(deep[others], self.contrast),
                sizes=rendition.sizes[others],
            )
            step = float(rendition.sizes[i]) * UNIT / rendition.appears
            own = None if deep is None else deep[i, :1]
            place = cells[i, :1] if self.stored is None else self.stored(cells[i, :1])
            found.append(self.matcher.closer(rest, place, own, step)[0].mean())
        return np.asarray(found, dtype=np.float64)

    def _background_peaks(self, rendition: Rendition, maps: Maps, step: int) -> FloatArray:
        """Scores of local maxima in one sample of the background."""
        margin = self.cells // 2 + AROUND
        height, width = (n - 2 * margin for n in maps.cells.shape[1:])
        inside = torch.ones(height, width, dtype=torch.bool)
        [peaks] = find_peaks(
            maps.cells, [rendition.consensus], [float("-inf")], inside, margin, self.most, self.matcher.dtype
        )
        places = maps.patches(peaks.y, peaks.x, self.cells, self.deep_cells, (peaks.dy, peaks.dx))
        return np.asarray(self.matcher.closer(rendition, *places, step)[0].mean(axis=1))

    def _patches(self, exemplar: Exemplar, appears: float, blur: float) -> tuple[Tensor, Tensor | None]:
        """Whitened cells ``[views, D, n, n]`` of an exemplar at that size, in every view, of both stages.

        ``blur`` is that of its pixels at that size.
        """
        stages = [(self.stage, self.cells, self.whitening.first)]
        if self.deep is not None and self.whitening.deep is not None:
            stages.append((self.deep, self.deep_cells, self.whitening.deep))
        coarsest = STRIDES[stages[-1][0]]
        reach = min(SEEN * STRIDES[self.stage], self.engine.embedder.backbone.reach(self.stage))
        half = math.ceil((max(cells // 2 * STRIDES[stage] for stage, cells, _ in stages) + reach) / coarsest) * coarsest
        scale = appears / max(sides_of(exemplar))
        image, valid = upright(exemplar, self.radiometry_of(exemplar.scene), scale, half, self.engine.device, blur)
        if not valid.any():
            raise InputError(
                f"{exemplar.scene.path}: the {exemplar.class_name} exemplar at {exemplar.box} holds no valid pixel."
            )
        angles = [2 * math.pi * view / self.matcher.views for view in range(self.matcher.views)]
        turned = torch.stack([rotate(image, angle, half) for angle in angles])
        features = first_stage(self.engine, turned[:, :-1], self.stage)
        found = []
        for stage, cells, whitening in stages:
            if stage != self.stage:
                features = later_stage(self.engine, features, self.stage, stage)
            stride = STRIDES[stage]
            first = half // stride - cells // 2
            inner = (..., slice(first, first + cells), slice(first, first + cells))
            white = torch.stack([whitening(one) for one in features[inner].float()])
            # Cells beyond the exemplar's own image say nothing.
            share = turned[:, -1:, half % stride :: stride, half % stride :: stride][inner]
            found.append(white * (share > 0.5))
        return found[0], found[1] if len(found) > 1 else None
