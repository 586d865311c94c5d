"""Writes made-up scenes and their labels to disk, as a user's own data would lie there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import RasterioError
from rasterio.transform import from_origin
from rich.progress import track

from siamese_sat.errors import InputError
from siamese_sat.synthetic.objects import CLASSES
from siamese_sat.synthetic.scene import SceneObject, make_scene

BAND_NAMES = ("B", "G", "R", "NIR")
NOVEL = ("aircraft", "storage tank", "swimming pool")


@dataclass(frozen=True)
class DatasetPaths:
    """Where a made-up data set lies.

    Attributes:
        train: folder of ``<scene>.tif`` with ``<scene>.json`` beside it; no novel class appears there.
        search: folder of ``<scene>.tif`` without labels, which hold every class.
        truth: folder of ``<scene>.json``, the labels of the scenes in ``search``.
        exemplar_scene: one further scene with objects of every class.
        exemplar_labels: its labels.
    """

    train: Path
    search: Path
    truth: Path
    exemplar_scene: Path
    exemplar_labels: Path


def write_scene(
    path: Path,
    pixels: npt.NDArray[np.uint16],
    *,
    crs: str = "EPSG:32643",
    origin: tuple[float, float] = (500000.0, 2000000.0),
    resolution: float = 1.0,
    tiled: bool = True,
) -> None:
    """Writes a deflated GeoTIFF whose fourth band is data and not alpha.

    Args:
        path: the file; its folder must exist.
        pixels: ``[4, h, w]`` in the order B, G, R, NIR.
        crs: anything rasterio takes as a coordinate reference system.
        origin: map coordinates of the outer corner of the upper left pixel.
        resolution: size of a pixel in map units.
        tiled: in tiles of 256 px, or in strips.

    Raises:
        InputError: the file cannot be written.
        ValueError: not four bands.
    """
    if pixels.ndim != 3 or len(pixels) != len(BAND_NAMES):
        raise ValueError(f"pixels must be [4, h, w], got {list(pixels.shape)}")
    _, height, width = pixels.shape
    tiling = {"tiled": True, "blockxsize": 256, "blockysize": 256} if tiled else {"tiled": False}
    try:
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=width,
            height=height,
            count=len(BAND_NAMES),
            dtype=pixels.dtype,
            crs=crs,
            transform=from_origin(*origin, resolution, resolution),
            compress="deflate",
            predictor=2,
            # Otherwise GDAL takes the fourth of four bands for alpha.
            photometric="MINISBLACK",
            alpha="unspecified",
            **tiling,
        ) as target:
            target.write(pixels)
            target.descriptions = BAND_NAMES
    except (RasterioError, OSError) as error:
        raise InputError(f"{path} cannot be written ({error}); check the folder and its free space.") from error


def write_labels(path: Path, objects: Sequence[SceneObject]) -> None:
    """Writes boxes in the challenge's form: GeoJSON whose coordinates are pixels, ``Class Name`` as property."""
    features = []
    for o in objects:
        ring = [(o.x_min, o.y_min), (o.x_max, o.y_min), (o.x_max, o.y_max), (o.x_min, o.y_max), (o.x_min, o.y_min)]
        features.append(
            {
                "type": "Feature",
                "properties": {"Class Name": o.class_name},
                "geometry": {"type": "MultiPolygon", "coordinates": [[ring]]},
            }
        )
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}, indent=1))


def make_dataset(
    folder: Path,
    *,
    train_scenes: int = 4,
    search_scenes: int = 2,
    novel: Sequence[str] = NOVEL,
    size: int = 1024,
    seed: int = 0,
    classes: Sequence[str] = CLASSES,
    per_class: int = 6,
    exemplars_per_class: int = 5,
    clutter: int = 150,
    progress: bool = True,
) -> DatasetPaths:
    """Writes scenes to train on, scenes to search, and one scene to take exemplars from.

    The same arguments give the same pixels and labels. Each scene has a seed of its own, so one more training
    scene leaves the others as they are, and no object stands in two scenes.

    Args:
        folder: made if need be; files of the same name are replaced.
        train_scenes: how many to train on.
        search_scenes: how many to search.
        novel: classes kept out of training, to be found from exemplars alone.
        size: width and height in pixels.
        seed: any non-negative number.
        classes: all classes, novel ones among them.
        per_class: objects of each class in each scene.
        exemplars_per_class: objects of each class in the exemplar scene, which grows beyond ``size`` to hold them.
        clutter: unlabelled things per scene.
        progress: whether to show a bar.

    Raises:
        InputError: an unknown class, nothing left to train on, or scenes too small for their objects.
    """
    unknown = sorted(set(novel) - set(classes))
    if unknown:
        raise InputError(f"novel names {', '.join(unknown)}, which is not among the classes: {', '.join(classes)}.")
    known = [name for name in classes if name not in novel]
    if train_scenes and not known:
        raise InputError("Every class is novel, so that none is left to train on; name fewer in novel.")
    # About four times the area that the objects' boxes cover leaves room for roads and water.
    roomy = 64 * math.ceil(math.sqrt(len(classes) * exemplars_per_class * 60**2 * 4) / 64)
    exemplar_size = max(size, roomy)
    paths = DatasetPaths(
        folder / "train",
        folder / "search",
        folder / "truth",
        folder / "exemplars" / "exemplars.tif",
        folder / "exemplars" / "exemplars.json",
    )
    jobs: list[tuple[tuple[int, int], Path, Path, int, Sequence[str], int]] = [
        ((2, 0), paths.exemplar_scene, paths.exemplar_labels, exemplar_size, classes, exemplars_per_class)
    ]
    for i in range(train_scenes):
        name = f"scene_{i:02d}"
        jobs.append(((0, i), paths.train / f"{name}.tif", paths.train / f"{name}.json", size, known, per_class))
    for i in range(search_scenes):
        name = f"search_{i:02d}"
        jobs.append(((1, i), paths.search / f"{name}.tif", paths.truth / f"{name}.json", size, classes, per_class))
    for place in (paths.train, paths.search, paths.truth, paths.exemplar_scene.parent):
        place.mkdir(parents=True, exist_ok=True)
    for (group, number), tif, labels, side, names, count in track(
        jobs, description="Making scenes", disable=not progress
    ):
        rng = np.random.default_rng((seed, group, number))
        pixels, objects = make_scene(rng, side, side, names, count, clutter)
        # Side by side on the map, a row for each group, so that no two scenes lie on one another.
        origin = (500000.0 + number * 2 * size, 2000000.0 - group * 2 * exemplar_size)
        write_scene(tif, pixels, origin=origin)
        write_labels(labels, objects)
    return paths
