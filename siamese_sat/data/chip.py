"""Chips: 64 x 64 patches cut round labelled boxes, and background chips from where no label is."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from siamese_sat.data.radiometry import Radiometry
from siamese_sat.data.scene import PixelBox, Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.progress import track

log = logging.getLogger(__name__)

BACKGROUND = "background"
Shape = Literal["stretched", "square"]


@dataclass(frozen=True)
class ChipSpec:
    """How a box becomes a chip.

    Attributes:
        size: pixels a side after resizing.
        padding: part of the box's width and height that is added on each side.
        shape: ``stretched`` takes the padded box as it is; ``square`` a square of its longer side round its centre.
    """

    size: int = 64
    padding: float = 0.15
    shape: Shape = "stretched"

    def __post_init__(self) -> None:
        if self.size < 8 or not 0 <= self.padding < 5 or self.shape not in ("stretched", "square"):
            raise InputError(
                f"A chip of size {self.size}, padding {self.padding}, shape {self.shape!r} cannot be cut; give a "
                f"size of at least 8, a padding of 0 to 5, and stretched or square."
            )

    def pad(self, box: PixelBox) -> PixelBox:
        """The part of the scene that the chip of a box shows."""
        x0, y0, x1, y1 = box
        grow = 1 + 2 * self.padding
        width, height = (x1 - x0) * grow, (y1 - y0) * grow
        if self.shape == "square":
            width = height = max(width, height)
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        return cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2


class Chips(Dataset[tuple[Tensor, Tensor]]):
    """Chips in memory.

    Indexed with a list of positions it gives a batch: pixels ``[B, C, S, S]`` and class numbers ``[B]``.

    Args:
        pixels: ``[N, C, S, S]`` float32 in raster units, invalid pixels at the band mean.
        labels: ``[N]`` int64, numbers into ``classes``.
        classes: names; ``background``, where there is one, is the last that is trained, held-out classes follow.
        scenes: the path that each chip comes from, ``[N]``.
        boxes: ``[N, 4]`` labelled box in pixels of that scene, without padding.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        classes: Sequence[str],
        scenes: Sequence[str],
        boxes: npt.NDArray[np.float64],
    ) -> None:
        self.pixels, self.labels, self.classes = pixels, labels, tuple(classes)
        self.scenes, self.boxes = list(scenes), boxes

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.pixels[index], self.labels[index]

    def subset(self, index: npt.NDArray[np.int64]) -> Chips:
        """The chips at these positions."""
        where = torch.from_numpy(index)
        return Chips(
            self.pixels[where],
            self.labels[where],
            self.classes,
            [self.scenes[i] for i in index],
            self.boxes[index],
        )

    @property
    def background(self) -> int | None:
        """The class number of background, or None."""
        return self.classes.index(BACKGROUND) if BACKGROUND in self.classes else None


def cut_chip(reader: SceneReader, box: PixelBox, spec: ChipSpec, radiometry: Radiometry) -> tuple[Tensor, float]:
    """Cuts the chip of one box.

    Args:
        reader: an open scene.
        box: pixels of the scene, half-open, without padding.
        spec: padding, shape and size.
        radiometry: gives the band means that invalid pixels become.

    Returns:
        Pixels ``[C, S, S]`` float32 in raster units, and the valid fraction in 0..1.
    """
    x0, y0, x1, y1 = spec.pad(box)
    left, top = math.floor(x0 + 0.5), math.floor(y0 + 0.5)
    width, height = max(1, math.floor(x1 + 0.5) - left), max(1, math.floor(y1 + 0.5) - top)
    pixels, valid = reader.read(left, top, width, height)
    filled = torch.from_numpy(radiometry.fill(pixels, valid).astype(np.float32))
    return resize(filled[None], spec.size, spec.size)[0], float(valid.mean())


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize of ``[N, C, H, W]``; one function, so that chips and windows look alike."""
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)


def cut_chips(
    scenes: Sequence[Scene],
    labels: pd.DataFrame,
    classes: Sequence[str],
    spec: ChipSpec,
    radiometry: Radiometry,
    cache: Path | None = None,
) -> Chips:
    """Cuts a chip for each row of ``labels``; the result is kept in ``cache`` and taken from there next time.

    Args:
        scenes: every scene that a label names.
        labels: a frame as `LabelReader.read` gives it; every class_name stands in ``classes``.
        classes: class names in the order of their numbers.
        spec: padding, shape and size.
        radiometry: for invalid pixels.
        cache: a folder, or None to keep nothing.
    """
    key = _fingerprint(scenes, labels, spec, radiometry)
    file = cache / f"chips_{key}.npy" if cache else None
    # Top to bottom within a scene: a JPEG or PNG is decoded again from its first row for a row further up.
    ordered = labels.sort_values(["scene", "y_min"], kind="stable").reset_index(drop=True)
    pixels = _kept(file)
    if pixels is None:
        pixels = _cut_all({s.path: s for s in scenes}, ordered, spec, radiometry)
        if file is not None:
            _save(file, pixels.numpy())
    number = {name: i for i, name in enumerate(classes)}
    return Chips(
        pixels,
        torch.tensor([number[c] for c in ordered.class_name], dtype=torch.int64),
        classes,
        ordered.scene.tolist(),
        ordered[["x_min", "y_min", "x_max", "y_max"]].to_numpy(float),
    )


def _cut_all(scenes: dict[str, Scene], labels: pd.DataFrame, spec: ChipSpec, radiometry: Radiometry) -> Tensor:
    bands = len(radiometry.names)
    chips = torch.empty(len(labels), bands, spec.size, spec.size)
    groups = labels.groupby("scene", sort=False)
    for path, group in track(groups, "Cutting chips", unit="scenes", total=len(groups)):
        with SceneReader(scenes[str(path)]) as reader:
            for i, x0, y0, x1, y1 in group[["x_min", "y_min", "x_max", "y_max"]].itertuples():
                chips[i], _ = cut_chip(reader, (x0, y0, x1, y1), spec, radiometry)
    return chips


def sample_background(
    scenes: Sequence[Scene],
    labels: pd.DataFrame,
    count: int,
    *,
    spec: ChipSpec | None = None,
    avoid: pd.DataFrame | None = None,
    dilation: float = 0.2,
    min_valid: float = 0.5,
    seed: int = 0,
) -> pd.DataFrame:
    """Draws boxes whose chips touch no labelled box, of the sizes that labelled boxes have.

    Args:
        scenes: labelled and unlabelled scenes; each gives background in proportion to its area.
        labels: the boxes whose sizes are taken.
        count: how many to draw; fewer come back, with a warning, where there is no room.
        spec: what a chip shows round its box; None takes the default.
        avoid: all labelled boxes of these scenes, those of classes that are not trained included; None for ``labels``.
        dilation: part of a labelled box's width and height by which it is grown on each side first.
        min_valid: least valid fraction of a background box.
        seed: of the draw.

    Returns:
        A frame like ``labels`` with class_name "background".
    """
    rng = np.random.default_rng(seed)
    spec, avoid = spec or ChipSpec(), labels if avoid is None else avoid
    sizes = (labels[["x_max", "y_max"]].to_numpy() - labels[["x_min", "y_min"]].to_numpy()).astype(float)
    areas = np.array([(s.aoi[2] - s.aoi[0]) * (s.aoi[3] - s.aoi[1]) for s in scenes], dtype=float)
    wanted = rng.multinomial(count, areas / areas.sum())
    rows: list[tuple[float, float, float, float, str, str]] = []
    for scene, n in zip(scenes, wanted, strict=True):
        if not n:
            continue
        taken = avoid[avoid.scene == scene.path][["x_min", "y_min", "x_max", "y_max"]].to_numpy(float)
        grow = (taken[:, 2:] - taken[:, :2]) * dilation
        taken = np.concatenate([taken[:, :2] - grow, taken[:, 2:] + grow], axis=1)
        x0, y0, x1, y1 = scene.aoi
        size = np.minimum(sizes[rng.integers(len(sizes), size=30 * n)], [x1 - x0, y1 - y0])
        corner = np.floor([x0, y0] + rng.random((30 * n, 2)) * ([x1 - x0, y1 - y0] - size))
        boxes = np.concatenate([corner, corner + size], axis=1)
        shown = np.array([spec.pad((a, b, c, d)) for a, b, c, d in boxes.tolist()])
        touches = np.zeros(len(boxes), dtype=bool)
        for t in taken:
            touches |= ((shown[:, :2] < t[2:]) & (shown[:, 2:] > t[:2])).all(axis=1)
        free = boxes[~touches]
        with SceneReader(scene) as reader:
            # As many at a time as are still needed, each time from the top down, as above.
            start, found = 0, 0
            while found < n and start < len(free):
                share = free[start : start + n - found]
                start += len(share)
                for box in share[np.argsort(share[:, 1])]:
                    left, top = int(box[0]), int(box[1])
                    width, height = max(1, int(box[2] - left)), max(1, int(box[3] - top))
                    if reader.read(left, top, width, height)[1].mean() >= min_valid:
                        rows.append((*box.tolist(), BACKGROUND, scene.path))
                        found += 1
    if len(rows) < count:
        log.warning("Room for %d background chips only, %d were asked for.", len(rows), count)
    return pd.DataFrame(rows, columns=["x_min", "y_min", "x_max", "y_max", "class_name", "scene"])


def _fingerprint(
    scenes: Sequence[Scene],
    labels: pd.DataFrame,
    spec: ChipSpec,
    radiometry: Radiometry,
) -> str:
    digest = hashlib.sha256()
    for scene in scenes:
        local = Path(scene.path)
        stat = local.stat() if local.is_file() else None
        seen = (stat.st_size, stat.st_mtime_ns) if stat else None
        digest.update(repr((replace(scene, crs=None), seen)).encode())
    digest.update(pd.util.hash_pandas_object(labels, index=False).to_numpy().tobytes())
    # The numbers of the classes are not in the pixels: runs that hold out different ones share their chips.
    digest.update(json.dumps([asdict(spec), radiometry.to_dict()]).encode())
    return digest.hexdigest()[:24]


def _kept(file: Path | None) -> Tensor | None:
    if file is None or not file.is_file():
        return None
    try:
        pixels = torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is damaged (%s): cutting the chips again.", file, error)
        return None
    log.info("%d chips taken from %s.", len(pixels), file)
    return pixels


def _save(file: Path, pixels: npt.NDArray[np.float32]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may write to one cache.
    partial = file.with_name(f"{file.stem}.{uuid.uuid4().hex}.part")
    with partial.open("wb") as stream:
        np.save(stream, pixels, allow_pickle=False)
    partial.replace(file)
