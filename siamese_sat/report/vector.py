"""Detections as polygons on the map: GeoPackage, GeoParquet, GeoJSON."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from pyproj.exceptions import CRSError, ProjError

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing
from siamese_sat.report.place import COLUMNS, PIXELS, crs_name, map_corners, rows_by_scene

log = logging.getLogger(__name__)

LAYER = "detections"
DEGREES = "EPSG:4326"


def write_vector(detections: pd.DataFrame, scenes: Mapping[str, Scene], path: str | Path) -> Path | None:
    """Writes the detections of the georeferenced scenes as polygons, all columns beside them.

    The suffix says the format. ``.gpkg`` keeps the scenes' CRS in a layer ``detections``, or has one layer per CRS
    (``detections_EPSG_32632``); ``.parquet`` is GeoParquet in the scenes' CRS, or in EPSG:4326 when there are several;
    ``.geojson`` is always EPSG:4326, as RFC 7946 wants. A file without a single row still has its CRS and columns
    (GeoJSON has no place for those).

    Args:
        detections: one row per box.
        scenes: the scene behind every ``filename``.
        path: file to write; one that is there is replaced as a whole.

    Returns:
        ``path``, or None (and a warning) when no scene is georeferenced.

    Raises:
        InputError: unknown suffix, pyarrow is missing for GeoParquet, the CRS cannot be brought to EPSG:4326, or
            the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".gpkg", ".parquet", ".geojson"):
        raise InputError(f"{path}: a map file ends in .gpkg, .parquet or .geojson, not {suffix or 'in nothing'}.")
    if suffix == ".parquet":
        _need_pyarrow(path)
    frames = _frames(detections, scenes)
    if not frames:
        log.warning("%s is not written: none of the %d scenes is georeferenced.", path, len(scenes))
        return None
    lost = len(detections) - sum(len(frame) for frame in frames.values())
    if lost:
        log.warning("%s lacks %d detections in scenes without georeference.", path, lost)
    with replacing(path) as temporary:
        if suffix == ".gpkg":
            for number, (name, frame) in enumerate(frames.items()):
                layer = LAYER if len(frames) == 1 else f"{LAYER}_{_slug(name, number)}"
                _to_file(frame, temporary, "GPKG", layer, mode="a" if number else "w")
        elif suffix == ".parquet":
            one = _merged(frames, path) if len(frames) > 1 else next(iter(frames.values()))
            one.to_parquet(temporary, index=False)
        else:
            _to_file(_merged(frames, path), temporary, "GeoJSON", LAYER, RFC7946="YES", COORDINATE_PRECISION="9")
    return path


def _frames(detections: pd.DataFrame, scenes: Mapping[str, Scene]) -> dict[str, gpd.GeoDataFrame]:
    """One table per CRS, whose index is the row's place among all detections."""
    # An empty table has columns of no type, from which neither a layer nor a parquet column can be made.
    typed = {c: "string" if c in ("class_name", "filename") else "float64" for c in COLUMNS}
    detections = detections.reset_index(drop=True).astype(typed)
    boxes = detections[PIXELS].to_numpy(dtype=np.float64)
    corners = np.full((len(detections), 4, 2), np.nan)
    rows: dict[str, list[int]] = {}
    for filename, mine in rows_by_scene(detections, scenes).items():
        scene = scenes[filename]
        corners[mine] = map_corners(boxes[mine], scene.transform)
        rows.setdefault(crs_name(scene.crs), []).extend(mine.tolist())
    frames = {}
    for name, numbers in rows.items():
        chosen = sorted(numbers)
        shapes = shapely.polygons(corners[chosen]) if chosen else []
        frames[name] = gpd.GeoDataFrame(detections.iloc[chosen], geometry=shapes, crs=name)
    return frames


def _merged(frames: Mapping[str, gpd.GeoDataFrame], path: Path) -> gpd.GeoDataFrame:
    """All tables in degrees, best first again."""
    try:
        moved = [frame.to_crs(DEGREES) for frame in frames.values()]
    except (CRSError, ProjError) as error:
        raise InputError(f"{path}: a scene's CRS cannot be brought to {DEGREES}; write .gpkg instead.") from error
    filled = [frame for frame in moved if len(frame)] or moved[:1]
    return pd.concat(filled).sort_index()


def _to_file(frame: gpd.GeoDataFrame, path: Path, driver: str, layer: str, mode: str = "w", **options: str) -> None:
    frame.to_file(
        path, driver=driver, layer=layer, mode=mode, engine="pyogrio", geometry_type="Polygon", index=False, **options
    )


def _slug(name: str, number: int) -> str:
    # WKT is far too long for the name of a layer.
    return re.sub(r"\W", "_", name) if len(name) < 32 else f"crs_{number + 1}"


def _need_pyarrow(path: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install siamese-sat[parquet], or write .gpkg.") from error
