"""Which part of an archive a question is about: where, when, in which scenes, at which sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyogrio.errors import DataSourceError
from pyproj import CRS
from pyproj.exceptions import CRSError

from siamese_sat.errors import InputError
from siamese_sat.search.index.schema import MAP, among

DEGREES = "EPSG:4326"
# Degrees that fp32 may be off by, and a little more.
SLACK = 5e-5


@dataclass(frozen=True)
class Filter:
    """A part of an index.

    Attributes:
        scenes: entries of the scenes that are asked, columns as in the scene table.
        where: SQL condition on windows, None for all.
        area: in degrees, or None; ``where`` knows only the box round it.
    """

    scenes: pd.DataFrame
    where: str | None
    area: shapely.Geometry | None

    def inside(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Which boxes ``[n, 4]`` in degrees have their middle in the area; without a place on the map none has."""
        if self.area is None:
            return np.ones(len(boxes), dtype=bool)
        points = shapely.points((boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2)
        return np.asarray(shapely.covers(self.area, points))


def make_filter(
    scenes: pd.DataFrame,
    *,
    paths: Sequence[str] | None = None,
    area: str | Sequence[float] | None = None,
    area_crs: str = DEGREES,
    scene_glob: str | Sequence[str] | None = None,
    dates: Sequence[Any] | None = None,
    scales: Sequence[int] | None = None,
) -> Filter:
    """The part of an index that all of these let through.

    Args:
        scenes: entries of all scenes.
        paths: these scenes only.
        area: a file of polygons that GDAL reads, or x_min, y_min, x_max, y_max.
        area_crs: of such a box, and of a file that does not say.
        scene_glob: patterns of which a scene's path or file name matches one.
        dates: first and last day as YYYY-MM-DD, either may be None; scenes without a date are left out.
        scales: sides of windows in pixels.

    Raises:
        InputError: a setting cannot be understood, or nothing is left.
    """
    keep = np.ones(len(scenes), dtype=bool)
    if paths is not None:
        keep &= scenes.path.isin(list(paths)).to_numpy()
    if scene_glob is not None:
        globs = [scene_glob] if isinstance(scene_glob, str) else list(scene_glob)
        keep &= np.array([any(fnmatch(p, g) or fnmatch(Path(p).name, g) for g in globs) for p in scenes.path], bool)
    if dates is not None:
        first, last = _dates(dates)
        days = scenes.date
        keep &= np.array([d is not None and not pd.isna(d) and first <= d <= last for d in days], dtype=bool)
    shape = _area(area, area_crs) if area is not None else None
    conditions = []
    if shape is not None:
        x0, y0, x1, y1 = shape.bounds
        bounds = scenes[list(MAP)].to_numpy(float)
        keep &= (bounds[:, 0] <= x1) & (bounds[:, 2] >= x0) & (bounds[:, 1] <= y1) & (bounds[:, 3] >= y0)
        conditions += [
            f"map_x_min <= {x1 + SLACK:.7f}", f"map_x_max >= {x0 - SLACK:.7f}",
            f"map_y_min <= {y1 + SLACK:.7f}", f"map_y_max >= {y0 - SLACK:.7f}",
        ]  # fmt: skip
    if not len(scenes):
        raise InputError("The index is empty; search.py mode=index scenes=<folder> fills it.")
    if not keep.any():
        raise InputError("No scene of the index is left by query.area, query.scenes, query.dates and scenes.")
    if not keep.all():
        conditions.append(among("scene", scenes.scene[keep].tolist()))
    if scales is not None:
        conditions.append(among("scale", list(scales)))
    return Filter(scenes[keep].reset_index(drop=True), " AND ".join(conditions) or None, shape)


def _dates(dates: Sequence[Any]) -> tuple[date, date]:
    try:
        first, last = dates
        return (
            date.fromisoformat(str(first)) if first is not None else date.min,
            date.fromisoformat(str(last)) if last is not None else date.max,
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"query.dates={list(dates)} must be [YYYY-MM-DD, YYYY-MM-DD], either of them null.") from error


def _area(area: str | Sequence[float], crs: str) -> shapely.Geometry:
    try:
        system = CRS.from_user_input(crs)
    except CRSError as error:
        raise InputError(f"query.area_crs={crs!r} is no coordinate reference system; try EPSG:4326.") from error
    if isinstance(area, str):
        if not Path(area).expanduser().is_file():
            raise InputError(f"{area}: no such file; query.area names a file of polygons, or a box.")
        try:
            frame = gpd.read_file(Path(area).expanduser())
        except DataSourceError as error:
            raise InputError(f"{area}: query.area cannot be read ({str(error).splitlines()[0]}).") from error
        found = frame.geometry if frame.crs is not None else frame.geometry.set_crs(system)
    else:
        try:
            x0, y0, x1, y1 = map(float, area)
        except (TypeError, ValueError) as error:
            raise InputError(f"query.area={area!r} must be a file, or [x_min, y_min, x_max, y_max].") from error
        # Points along its sides: a straight line of one system is none in another.
        found = gpd.GeoSeries(
            [shapely.segmentize(shapely.box(x0, y0, x1, y1), max(x1 - x0, y1 - y0, 1e-9) / 16)], crs=system
        )
    union = shapely.union_all(shapely.make_valid(found.to_crs(DEGREES).to_numpy()))
    if union.is_empty or union.area == 0:
        raise InputError(f"query.area={area!r} encloses nothing; give polygons, or x_min,y_min,x_max,y_max.")
    return union
