"""The original's search: every window becomes one vector, compared with each class's mean exemplar."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from siamese_sat.data.augment import VIEWS, dihedral
from siamese_sat.data.chip import ChipSpec, cut_chip
from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.model.checkpoint import TrainedModel
from siamese_sat.search import window as grid
from siamese_sat.search.detect import Candidates
from siamese_sat.search.engine import Embedded, Engine
from siamese_sat.search.exemplar import Exemplar, by_class
from siamese_sat.search.fetch import Fetched, one_behind
from siamese_sat.search.method import RadiometryOf
from siamese_sat.search.ordinary import CosineCurve, fit_cosines, random_windows
from siamese_sat.search.part import Part
from siamese_sat.search.sliding import AROUND, choose
from siamese_sat.search.tile import Failure, Job

log = logging.getLogger(__name__)

CALIBRATIONS = ("auto", "training", "scenes")


@dataclass(frozen=True)
class Target:
    """A class to search for.

    Attributes:
        name: of the class.
        prototype: ``[D]`` of unit length.
        extent: median width and height of its exemplars in scene pixels, without padding.
        curve: what its cosines mean, where no training has fitted it; None where one has, or the scenes say too little.
    """

    name: str
    prototype: Tensor
    extent: tuple[float, float]
    curve: CosineCurve | None = None


@dataclass(frozen=True)
class Pass:
    """One run over a scene: all classes that are compared in windows of this size.

    Attributes:
        window: width and height in scene pixels.
        scale: of the exemplars' own size.
        classes: numbers of the classes.
    """

    window: tuple[int, int]
    scale: float
    classes: tuple[int, ...]


@dataclass
class WindowSearch:
    """Pooled windows.

    Attributes:
        stride: between windows, in pixels of the 64 px chip; half of it by default.
        window: side in scene pixels; None follows the exemplars: their median padded width and height.
        scales: multiples of that size to search at.
        tolerance: classes whose windows differ by less than this part share one pass.
        dihedral: a prototype is the mean over the eight views of each exemplar, not the exemplars alone.
        calibration: what says how probable a cosine is: ``training``, the logistic regression of a training's
            validation pairs; ``scenes``, what exemplars score by each other and windows of the searched scenes by them,
            see `siamese_sat.search.ordinary`; ``auto``: the latter with exemplars, the former without. Where a training
            has fitted none, it is always the latter.
        dense: whether windows come from one pass of the backbone over a tile, see `Sliding`: True, False (each window
            is cut out and embedded), or ``auto``: where a sample of the scenes shows hardly a difference.
    """

    stride: int = 32
    window: int | None = None
    scales: Sequence[float] = (1.0,)
    tolerance: float = 0.1
    dihedral: bool = False
    calibration: str = "auto"
    dense: bool | str = False
    targets: list[Target] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)

    def prepare(
        self,
        model: TrainedModel,
        engine: Engine,
        exemplars: Sequence[Exemplar],
        radiometry_of: RadiometryOf,
        scenes: Sequence[Scene] = (),
    ) -> None:
        """Builds prototypes and plans the passes; without exemplars the checkpoint's own classes are sought."""
        if not self.scales or min(self.scales) <= 0 or (self.window is not None and self.window < 4):
            raise InputError("search.scales must be above 0, and search.window null or at least 4 pixels.")
        if self.calibration not in CALIBRATIONS:
            raise InputError(f"search.method.calibration={self.calibration!r} is none of {', '.join(CALIBRATIONS)}.")
        # Said here, once: later it would look like the fault of every scene.
        grid.places(model.chip.size, model.chip.size, self.stride)
        least = (self.window or 0) * min(self.scales)
        if scenes and least > max(max(_extent(scene)) for scene in scenes):
            log.warning("A window of search.window=%d is larger than every scene (or its aoi).", self.window)
        self.model, self.engine, self.radiometry_of = model, engine, radiometry_of
        shown = [self.model.chip.pad(e.box) for e in exemplars]
        side = float(np.median([max(b[2] - b[0], b[3] - b[1]) for b in shown])) if shown else model.chip.size
        about = (self.window or _rounded(side),) * 2
        self.sliding = choose(self.dense, engine, model.chip.size, self.stride, scenes, radiometry_of, about)
        if exemplars:
            self.targets, views = self._targets(exemplars)
        else:
            self.targets = [Target(n, p, model.extents[n]) for n, p in model.prototypes.items()]
            views = [t.prototype[None, None] for t in self.targets]
        if not self.targets:
            raise InputError(
                "There is nothing to search for; give exemplars (exemplars.boxes, .chips, .scenes), or the ckpt_path "
                "of a finished training, whose classes are then sought."
            )
        self.passes = [p for scale in self.scales for p in self._plan(float(scale))]
        asked = self.calibration == "scenes" or (self.calibration == "auto" and bool(exemplars))
        if asked or not model.calibration.fitted:
            self.targets = self._with_curves(views, scenes)

    @property
    def classes(self) -> list[str]:
        """Names of what is searched for, in the order of their numbers."""
        return [t.name for t in self.targets]

    def windows(self, scene: Scene) -> dict[str, int]:
        """How many windows each class is compared in, invalid ones counted too."""
        size = self.model.chip.size
        found: dict[str, int] = {}
        for one in self.passes:
            count = 1
            for side, length in zip(one.window, _extent(scene), strict=True):
                count *= len(grid.places(grid.level_length(length, side, size), size, self.stride))
            for c in one.classes:
                found[self.classes[c]] = found.get(self.classes[c], 0) + count
        return found

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        """Places that reach their class's threshold, batch by batch."""
        yield from self.some(scene, thresholds, (0, 1))

    def some(self, scene: Scene, thresholds: Mapping[str, float], part: Part) -> Iterator[Candidates]:
        """See `Divisible`."""
        for got in self._scored([scene], thresholds, part):
            if isinstance(got, Failure):
                raise got.error
            yield from (found for _, found in got)

    def whole(self, found: Candidates, thresholds: Mapping[str, float]) -> Candidates:
        """See `Divisible`."""
        return found

    def candidates_of(
        self, scenes: Mapping[str, Scene], thresholds: Mapping[str, float]
    ) -> Iterator[tuple[str, Candidates | InputError]]:
        """See `ManyScenes`: batches are full across scenes, and the next is read while one is computed."""
        names = list(scenes)
        parts: list[list[Candidates]] = [[] for _ in names]
        failed: dict[int, InputError] = {}
        done = 0

        def until(number: int) -> Iterator[tuple[str, Candidates | InputError]]:
            for i in range(done, number):
                yield names[i], failed.get(i) or Candidates.join(parts[i])
                parts[i].clear()

        for got in self._scored(list(scenes.values()), thresholds):
            if isinstance(got, Failure):
                failed.setdefault(got.job // len(self.passes), got.error)
                continue
            for number, part in got:
                parts[number].append(part)
            # Windows come in the order of the scenes: those before the last one's are complete.
            yield from until(got[-1][0])
            done = max(done, got[-1][0])
        yield from until(len(names))

    def _scored(
        self, scenes: Sequence[Scene], thresholds: Mapping[str, float], part: Part = (0, 1)
    ) -> Iterator[list[tuple[int, Candidates]] | Failure]:
        """For each batch, the numbers of its scenes, ascending, and the candidates in them."""
        jobs = [Job(scene, one.window, part) for scene in scenes for one in self.passes]
        sides = [np.array([self._box_size(one, self.targets[c]) for c in one.classes]) for one in self.passes]
        numbers = [np.asarray(one.classes) for one in self.passes]
        # In fp64 and back: else the last bit of a score may change with what else is in its batch.
        prototypes = torch.stack([t.prototype for t in self.targets]).to(self.engine.device, torch.float64)
        curves = [t.curve for t in self.targets if t.curve is not None]
        wanted = np.array([thresholds[t.name] for t in self.targets])
        if curves:  # cosines are compared, and only what is kept is made a probability
            wanted = np.array([curve.cosine(p) for curve, p in zip(curves, wanted, strict=True)])
        least = torch.from_numpy(wanted).float()
        source = self.sliding or self.engine

        def compared() -> Iterator[tuple[Embedded, Fetched] | Failure]:
            for got in source.vectors(jobs, self.radiometry_of, self.model.chip.size, self.stride):
                if isinstance(got, Failure):
                    yield got
                else:
                    # All classes at once: what one pass does not seek is thrown away sooner than it is looked up.
                    likeness = (got.vectors.double() @ prototypes.T).float()
                    yield got, Fetched(likeness if curves else self.model.calibration(likeness))

        for one_got in one_behind(compared()):
            if isinstance(one_got, Failure):
                yield one_got
                continue
            got, every = one_got[0], one_got[1].get()
            found = []
            for job in np.unique(got.jobs):
                mine, one = np.flatnonzero(got.jobs == job), int(job) % len(self.passes)
                scores = every[mine][:, numbers[one]]
                place, column = (i.numpy() for i in torch.nonzero(scores >= least[numbers[one]], as_tuple=True))
                regions = got.boxes[mine][place]
                centre, half = (regions[:, :2] + regions[:, 2:]) / 2, sides[one][column] / 2
                boxes = np.concatenate([centre - half, centre + half], axis=1)
                classes, raw = numbers[one][column], scores.numpy()[place, column].astype(np.float64)
                for c in np.unique(classes) if curves else ():
                    raw[classes == c] = curves[c](raw[classes == c])
                found.append((int(job) // len(self.passes), Candidates(boxes, regions, classes, raw)))
            yield found

    def on_scale(self, number: int, found: Candidates) -> npt.NDArray[np.float64]:
        """See `OwnScales`: as far above what is ordinary."""
        mine = self.targets[number].curve
        scores = found.scores.copy()
        for c, target in enumerate(self.targets):
            if mine is not None and target.curve is not None and c != number:
                where = found.classes == c
                scores[where] = mine.as_much_above(target.curve, scores[where])
        return scores

    def _with_curves(self, views: Sequence[Tensor], scenes: Sequence[Scene]) -> list[Target]:
        """The targets, each with what its cosines mean in these scenes, if these have enough windows to say it."""
        source = self.sliding or self.engine
        size = self.model.chip.size
        drawn = [random_windows(source, scenes, self.radiometry_of, p.window, size, self.stride) for p in self.passes]
        known = [(one, found) for one, found in zip(self.passes, drawn, strict=True) if found is not None]
        if not known:
            if scenes:
                instead = "by the training's calibration"
                if not self.model.calibration.fitted:
                    instead = "(cosine + 1) / 2, and most windows reach 0.3; ckpt_path=<a training's best.ckpt> helps"
                log.warning(
                    "The scenes are too small, or hold too little that is valid, to say what is ordinary there: window "
                    "scores are %s.", instead,
                )  # fmt: skip
            return self.targets
        found = []
        for number, (target, shown) in enumerate(zip(self.targets, views, strict=True)):
            # Where its windows are as large as the scenes, those of other classes say it.
            own = [seen for one, seen in known if number in one.classes] or [seen for _, seen in known]
            found.append(replace(target, curve=fit_cosines(target.prototype, shown, torch.cat(own))))
        return found

    def _targets(self, exemplars: Sequence[Exemplar]) -> tuple[list[Target], list[Tensor]]:
        """A target for each class of the exemplars, and vectors ``[exemplars, views, D]`` of these.

        All chips are embedded together, in full batches.
        """
        spec = self.model.chip
        if self.sliding is not None:
            # With as much around them as windows of a tile have.
            more = 1 + 2 * AROUND
            spec = replace(spec, size=spec.size * more, padding=((1 + 2 * spec.padding) * more - 1) / 2)
        groups = by_class(exemplars)
        chips = torch.stack(self._chips([e for group in groups.values() for e in group], spec))
        every = torch.stack([dihedral(chips, view) for view in range(VIEWS if self.dihedral else 1)], dim=1)
        embed = self.sliding.embed if self.sliding is not None else self.engine.embed
        batches = every.flatten(0, 1).split(self.engine.batch_size)
        vectors = torch.cat([embed(batch.to(self.engine.device)).cpu() for batch in batches])
        own = vectors.split([len(group) * every.shape[1] for group in groups.values()])
        found, shown = [], []
        for (name, group), mine in zip(groups.items(), own, strict=True):
            sides = np.array([(b[2] - b[0], b[3] - b[1]) for b in (e.box for e in group)])
            width, height = np.median(sides, axis=0).tolist()
            found.append(Target(name, F.normalize(mine.mean(0), dim=0), (width, height)))
            shown.append(mine.unflatten(0, (len(group), -1)))
        return found, shown

    def _chips(self, exemplars: Sequence[Exemplar], spec: ChipSpec) -> list[Tensor]:
        """Normalised chips, in order; each scene is opened once for all that follow each other in it."""
        chips = []
        for scene, group in itertools.groupby(exemplars, key=lambda e: e.scene):
            radiometry = self.radiometry_of(scene)
            with SceneReader(scene) as reader:
                for exemplar in group:
                    chip, valid = cut_chip(reader, exemplar.box, spec, radiometry)
                    if valid == 0:
                        raise InputError(
                            f"{scene.path}: the {exemplar.class_name} exemplar at {exemplar.box} holds no valid pixel."
                        )
                    chips.append(radiometry.normalise(chip))
        return chips

    def _plan(self, scale: float) -> list[Pass]:
        """Classes of nearly one size share a pass, its window the geometric mean of theirs."""
        wanted = [self._window(t, scale) for t in self.targets]
        groups: list[list[int]] = []
        for c in np.argsort([w * h for w, h in wanted], kind="stable").tolist():
            first = wanted[groups[-1][0]] if groups else None
            if first and all(abs(a / b - 1) <= self.tolerance for a, b in zip(wanted[c], first, strict=True)):
                groups[-1].append(c)
            else:
                groups.append([c])
        passes = []
        for group in groups:
            sides = np.exp(np.log([wanted[c] for c in group]).mean(axis=0))
            window = (_rounded(float(sides[0])), _rounded(float(sides[1])))
            passes.append(Pass(window, scale, tuple(sorted(group))))
        return passes

    def _window(self, target: Target, scale: float) -> tuple[float, float]:
        if self.window is not None:
            return self.window * scale, self.window * scale
        x0, y0, x1, y1 = self.model.chip.pad((0, 0, *target.extent))
        return (x1 - x0) * scale, (y1 - y0) * scale

    def _box_size(self, one: Pass, target: Target) -> tuple[float, float]:
        if self.window is not None:
            bare = 1 + 2 * self.model.chip.padding
            return one.window[0] / bare, one.window[1] / bare
        return target.extent[0] * one.scale, target.extent[1] * one.scale


def _extent(scene: Scene) -> tuple[int, int]:
    x0, y0, x1, y1 = scene.aoi
    return x1 - x0, y1 - y0


def _rounded(side: float) -> int:
    """A window's side in whole pixels; large ones in eights, so that tiles can begin in many places."""
    return max(4, round(side)) if side < 128 else 8 * round(side / 8)
