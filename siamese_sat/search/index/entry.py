"""A scene as the index remembers it: enough to know it again, to show its boxes on the map, and to open it unseen."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.crs import CRS
from rasterio.errors import RasterioError

from siamese_sat.data.scene import Scene
from siamese_sat.data.source import REMOTE

HEADER = 65_536  # bytes: the tags of a GeoTIFF, and mostly its first tiles
DAY = re.compile(r"(?<!\d)(19[5-9]\d|20\d\d)([-_]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)|"
                 r"(?<!\d)(19[5-9]\d|20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=T\d{4})")  # fmt: skip
ACQUIRED = ("ACQUISITIONDATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED", "DATETIME")


@dataclass(frozen=True)
class Signature:
    """By which a changed file is told: size, time of modification in ns, and SHA-256 of its first 64 KiB.

    Of a remote scene nothing is asked: its path alone says which it is, so that an archive in an object store is not
    touched again.
    """

    size: int
    modified: int
    header: str


def scene_path(path: str) -> str:
    """The path under which a scene is known, whatever folder the command is run from."""
    return path if path.startswith(REMOTE) else str(Path(path).expanduser().resolve())


def signature(path: str) -> Signature:
    """What a file is now; all zero where it is remote or gone."""
    if path.startswith(REMOTE):
        return Signature(0, 0, "")
    file = Path(path)
    try:
        found = file.stat()
        with file.open("rb") as stream:
            return Signature(found.st_size, found.st_mtime_ns, hashlib.sha256(stream.read(HEADER)).hexdigest())
    except OSError:
        return Signature(0, 0, "")


def scene_date(path: str) -> date | None:
    """The day a scene was taken: as its acquisition tags say, else its name, else the TIFF's own time tag."""
    try:
        with rasterio.open(path) as source:
            spaces = {None, "IMD", "IMAGERY", *source.tag_namespaces()}
            tags = {k.upper(): v for space in spaces for k, v in source.tags(ns=space).items()}
    except RasterioError:
        tags = {}
    texts = [*(tags.get(name, "") for name in ACQUIRED), path.rsplit("/", 1)[-1], tags.get("TIFFTAG_DATETIME", "")]
    return next((day for day in map(_day, texts) if day is not None), None)


def to_json(scene: Scene) -> str:
    """All that is known of a scene without its pixels, as text."""
    plain = asdict(scene)
    plain["crs"] = scene.crs.to_wkt() if scene.crs is not None else None
    plain["transform"] = list(scene.transform)[:6]
    return json.dumps(plain)


def from_json(text: str) -> Scene:
    """The reverse of `to_json`; no file is touched."""
    plain: dict[str, Any] = json.loads(text)
    plain["crs"] = CRS.from_wkt(plain["crs"]) if plain["crs"] else None
    plain["transform"] = Affine(*plain["transform"])
    return Scene(**{**plain, "bands": tuple(plain["bands"]), "aoi": tuple(plain["aoi"])})


def degrees(scene: Scene, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Bounds ``[n, 4]`` in degrees (longitude, latitude) of pixel boxes ``[n, 4]``; NaN without a place on the map."""
    if not scene.georeferenced or scene.crs is None or not len(boxes):
        return np.full((len(boxes), 4), np.nan)
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    t = scene.transform
    try:
        to_degrees = Transformer.from_crs(scene.crs.to_wkt(), "EPSG:4326", always_xy=True)
        east, north = to_degrees.transform(t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f)
    except ProjError:
        return np.full((len(boxes), 4), np.nan)
    found = np.stack([east.min(1), north.min(1), east.max(1), north.max(1)], axis=1)
    return np.where(np.isfinite(found).all(axis=1, keepdims=True), found, np.nan)


def _day(text: str) -> date | None:
    match = DAY.search(text.replace(":", "-"))
    if match is None:
        return None
    year, month, day = [g for g in match.groups() if g and g.isdigit()]
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        return None
