"""Where a box lies on the map."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from affine import Affine
from rasterio.crs import CRS

from siamese_sat.data.scene import Scene

PIXELS = ["x_min", "y_min", "x_max", "y_max"]
COLUMNS = [*PIXELS, "class_name", "filename", "score"]
MAP = ["map_x_min", "map_y_min", "map_x_max", "map_y_max"]


def map_corners(boxes: npt.NDArray[np.float64], transform: Affine) -> npt.NDArray[np.float64]:
    """Brings pixel boxes to the map, corner by corner: a rotated raster turns a box into a tilted parallelogram.

    Args:
        boxes: ``[N, 4]`` as x_min, y_min, x_max, y_max in pixels.
        transform: pixel (column, row) to map coordinates.

    Returns:
        ``[N, 4, 2]``: the (x, y) of upper left, upper right, lower right and lower left.
    """
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    t = transform
    return np.stack([t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f], axis=-1)


def crs_name(crs: CRS) -> str:
    """``EPSG:32632`` and the like where an authority knows the system, else its WKT."""
    authority = crs.to_authority()
    # A lookalike that the authority's own entry does not equal would shift the map unseen.
    if authority is not None and CRS.from_authority(*authority) == crs:
        return ":".join(authority)
    return str(crs.to_wkt())


def rows_by_scene(detections: pd.DataFrame, scenes: Mapping[str, Scene]) -> dict[str, npt.NDArray[np.intp]]:
    """The row numbers of every georeferenced scene's detections; scenes without any have an empty array."""
    rows = detections.groupby("filename").indices if len(detections) else {}
    placed = [name for name, scene in scenes.items() if scene.georeferenced]
    return {name: np.asarray(rows.get(name, ()), dtype=np.intp) for name in placed}


def with_map_coordinates(detections: pd.DataFrame, scenes: Mapping[str, Scene]) -> pd.DataFrame:
    """Adds the map bounds of every box and the coordinate reference system they are in.

    Args:
        detections: one row per box; ``filename`` says which scene it is in.
        scenes: the scene behind every ``filename``.

    Returns:
        A copy with ``map_x_min``, ``map_y_min``, ``map_x_max``, ``map_y_max`` (in units of the scene's CRS, around
        all four corners) and ``crs``; NaN and None where the scene is unknown or has no georeference.
    """
    bounds = np.full((len(detections), 4), np.nan)
    systems = np.full(len(detections), None, dtype=object)
    boxes = detections[PIXELS].to_numpy(dtype=np.float64)
    for name, rows in rows_by_scene(detections, scenes).items():
        scene = scenes[name]
        corners = map_corners(boxes[rows], scene.transform)
        bounds[rows] = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        systems[rows] = crs_name(scene.crs)
    located = detections.copy()
    located[MAP] = bounds
    located["crs"] = pd.Series(systems, index=located.index, dtype=object)
    return located
