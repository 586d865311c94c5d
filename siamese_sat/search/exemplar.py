"""What is searched for: boxes in scenes, whichever way the user gave them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from siamese_sat.data.annotation import LabelReader, assign_labels
from siamese_sat.data.chip import BACKGROUND, ChipSpec
from siamese_sat.data.datamodule import open_scenes
from siamese_sat.data.scene import AlphaRule, PixelBox, Scene, open_scene
from siamese_sat.data.source import list_scenes
from siamese_sat.errors import InputError

log = logging.getLogger(__name__)


# Pixels of the longer side from which an exemplar shows something; to seek smaller ones takes hours, and finds nothing.
SMALLEST = 3.0
# Put before the name of a class for what is unlike it; no class name begins so.
NEGATIVE = "\0unlike "


@dataclass(frozen=True)
class Exemplar:
    """One labelled box in a scene.

    Attributes:
        class_name: of what it shows.
        scene: where it lies.
        box: pixels of the scene, half-open, without padding.
    """

    class_name: str
    scene: Scene
    box: PixelBox

    @property
    def cut(self) -> bool:
        """Whether the box reaches the border of the scene or its area of interest: part of the thing is missing."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.box, self.scene.aoi
        return min(x0 - left, y0 - top, right - x1, bottom - y1) <= 1

    @property
    def tiny(self) -> bool:
        """Whether it is too small to show anything."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1]) < SMALLEST


@dataclass(frozen=True)
class ExemplarSource:
    """Where exemplars come from; several kinds may be given at once.

    Attributes:
        chips: a folder with a sub-folder of chip images per class. An image is taken as a padded box at the scene's
            own resolution, so its size says how large the thing is.
        scenes: scenes whose labels are exemplars.
        labels: their label files; None looks beside the scenes.
        boxes: rows of scene, x_min, y_min, x_max, y_max, class.
        classes: these classes only; None for all.
        per_class: at most so many of each class from labelled scenes, drawn with the seed; None for all.
        bands: 1-based band numbers of the exemplar scenes, if they differ from those of the searched ones.
        aoi: see `open_scenes`, for the labelled scenes.
        aliases: see `LabelReader`.
        class_field: see `LabelReader`.
        default_class: see `LabelReader`.
        seed: of the draw.
        setting: under which the user gave all this: messages name it.
    """

    chips: str | None = None
    scenes: str | Sequence[str] | None = None
    labels: str | Sequence[str] | None = None
    boxes: Sequence[Sequence[Any]] | None = None
    classes: Sequence[str] | None = None
    per_class: int | None = 5
    bands: Sequence[int] | None = None
    aoi: Any = None
    aliases: Mapping[str, str] | None = None
    class_field: str | None = None
    default_class: str | None = None
    seed: int = 0
    setting: str = "exemplars"

    @property
    def given(self) -> bool:
        """Whether the user named any exemplar."""
        return any(v is not None for v in (self.chips, self.scenes, self.labels, self.boxes))

    def check(self) -> None:
        """Says which file is missing, without reading one: for before something long begins.

        Raises:
            InputError: a folder, an image or a label file is not there.
        """
        if self.chips is not None:
            _class_folders(Path(self.chips).expanduser(), self.setting)
        if self.scenes is not None:
            list_scenes(self.scenes)
        if self.labels is not None:
            assign_labels((), self.labels, f"{self.setting}.labels")
        for row in self.boxes or ():
            if isinstance(row, list | tuple) and row:  # what else is wrong with it is told when it is read
                list_scenes(str(row[0]))

    def load(self, bands: Sequence[int], alpha: AlphaRule, chip: ChipSpec) -> list[Exemplar]:
        """All exemplars, class by class.

        Raises:
            InputError: a source is missing or malformed, or nothing is left.
        """
        bands = list(self.bands) if self.bands is not None else list(bands)
        found = [
            *self._from_chips(bands, alpha, chip),
            *self._from_labels(bands, alpha),
            *self._from_boxes(bands, alpha),
        ]
        names = sorted({e.class_name for e in found})
        if self.classes is not None:
            missing = sorted(set(self.classes) - set(names))
            if missing:
                raise InputError(
                    f"{self.setting}.classes names {missing[0]!r}, of which there is no exemplar; there are "
                    f"{', '.join(names) or 'none'}."
                )
            found = [e for e in found if e.class_name in set(self.classes)]
        if not found:
            raise InputError(
                f"{self.setting}: the settings name no exemplar; check the label files and {self.setting}.classes."
            )
        found = _large_enough(found)
        chips = Path(self.chips).expanduser() if self.chips is not None else None
        cut = sum(e.cut for e in found if chips is None or chips not in Path(e.scene.path).parents)
        if cut:
            log.warning(
                "%d of %d exemplars are cut by their scene's border; whole ones search better.", cut, len(found)
            )
        return sorted(found, key=lambda e: e.class_name)

    def _from_chips(self, bands: Sequence[int], alpha: AlphaRule, chip: ChipSpec) -> list[Exemplar]:
        if self.chips is None:
            return []
        keep = 1 / (1 + 2 * chip.padding)
        found = []
        for folder in _class_folders(Path(self.chips).expanduser(), self.setting):
            for path in list_scenes(folder):
                scene = open_scene(path, bands, alpha)
                dx, dy = scene.width * (1 - keep) / 2, scene.height * (1 - keep) / 2
                found.append(Exemplar(folder.name, scene, (dx, dy, scene.width - dx, scene.height - dy)))
        return found

    def _from_labels(self, bands: Sequence[int], alpha: AlphaRule) -> list[Exemplar]:
        if self.scenes is None and self.labels is None:
            return []
        scenes = open_scenes(self.scenes, bands, alpha, self.aoi, self.labels)
        labels = LabelReader(
            dict(self.aliases or {}), self.class_field, self.default_class,
            setting=f"{self.setting}.labels", group=self.setting,
        ).read(scenes, self.labels)  # fmt: skip
        if labels.empty:
            raise InputError(
                f"{self.labels or self.scenes}: no label lies in {self.setting}.scenes; check {self.setting}.labels."
            )
        by_path = {s.path: s for s in scenes}
        rng = np.random.default_rng(self.seed)
        found = []
        for name, group in labels.groupby("class_name", sort=True):
            if name == BACKGROUND:
                continue
            corners = group[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float).tolist()
            mine = [
                Exemplar(str(name), by_path[str(path)], (x0, y0, x1, y1))
                for path, (x0, y0, x1, y1) in zip(group.scene, corners, strict=True)
            ]
            found.extend(draw_exemplars(mine, self.per_class, rng))
        return found

    def _from_boxes(self, bands: Sequence[int], alpha: AlphaRule) -> list[Exemplar]:
        found = []
        opened: dict[str, Scene] = {}
        for row in self.boxes or ():
            whole = isinstance(row, list | tuple) and len(row) == 6
            if not whole or not all(isinstance(v, int | float) for v in row[1:5]):
                raise InputError(f"{self.setting}.boxes: {row!r} is not [scene, x_min, y_min, x_max, y_max, class].")
            path, (x0, y0, x1, y1) = str(row[0]), map(float, row[1:5])
            if path not in opened:
                opened[path] = open_scene(list_scenes(path)[0], bands, alpha)
            scene = opened[path]
            if not (x0 < x1 and y0 < y1):
                raise InputError(
                    f"{self.setting}.boxes: {list(row)} is empty; x_min must be below x_max, and y_min below y_max."
                )
            if not (x1 > 0 and y1 > 0 and x0 < scene.width and y0 < scene.height):
                size = f"{scene.width} x {scene.height}"
                raise InputError(f"{self.setting}.boxes: {list(row)} lies outside the {size} scene; give pixels of it.")
            found.append(Exemplar(str(row[5]), scene, (x0, y0, x1, y1)))
        return found


def _large_enough(exemplars: Sequence[Exemplar]) -> list[Exemplar]:
    """Those in which there is something to see.

    Raises:
        InputError: a class has none.
    """
    found = [e for e in exemplars if not e.tiny]
    left = {e.class_name for e in found}
    for lost in exemplars:
        if lost.class_name not in left:
            raise InputError(
                f"{lost.scene.path}: the {lost.class_name} exemplar at {lost.box} is smaller than {SMALLEST:.0f} "
                "pixels and shows nothing; give a box round the whole thing."
            )
    if len(found) < len(exemplars):
        log.warning("%d exemplars smaller than %d pixels are left out.", len(exemplars) - len(found), SMALLEST)
    return found


def _class_folders(root: Path, setting: str) -> list[Path]:
    """One folder of chips per class."""
    wanted = f"{setting}.chips wants one with a sub-folder of images per class."
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; {wanted}")
    folders = sorted(p for p in root.iterdir() if p.is_dir())
    if not folders:
        raise InputError(f"{root}: no sub-folder in it; {wanted}")
    return folders


def draw_exemplars(exemplars: Sequence[Exemplar], count: int | None, rng: np.random.Generator) -> list[Exemplar]:
    """At most ``count`` of them at random, in their own order.

    Whole ones come before those that a border cuts, and these before what is too small to show anything.
    """
    if count is None or len(exemplars) <= count:
        return list(exemplars)
    order = rng.permutation(len(exemplars))
    chosen = sorted(order, key=lambda i: (exemplars[i].tiny, exemplars[i].cut))[:count]
    return [exemplars[i] for i in sorted(chosen)]


def by_class(exemplars: Sequence[Exemplar]) -> dict[str, list[Exemplar]]:
    """Exemplars grouped by class, classes in order of name."""
    groups: dict[str, list[Exemplar]] = {}
    for exemplar in sorted(exemplars, key=lambda e: e.class_name):
        groups.setdefault(exemplar.class_name, []).append(exemplar)
    return groups
