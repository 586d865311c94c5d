"""Tiny scenes and detections for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
from affine import Affine

from siamese_sat.data.scene import Scene, open_scene

COLUMNS = ["x_min", "y_min", "x_max", "y_max", "class_name", "filename", "score"]


def make_scene(
    path: Path,
    pixels: npt.NDArray[np.generic] | None = None,
    crs: str | None = None,
    transform: Affine | None = None,
    nodata: float | None = None,
) -> Scene:
    """Writes ``[C, H, W]`` (dull grey, 40 rows of 60, by default) as a GeoTIFF and opens it."""
    pixels = np.full((4, 40, 60), 100, dtype=np.uint16) if pixels is None else pixels
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    placed = {} if crs is None else {"crs": crs, "transform": transform}
    with rasterio.open(path, "w", dtype=pixels.dtype, nodata=nodata, **profile, **placed) as target:
        target.write(pixels)
    return open_scene(path, range(1, len(pixels) + 1))


def table(*rows: Sequence[object]) -> pd.DataFrame:
    """Rows of the seven columns."""
    return pd.DataFrame(list(rows), columns=COLUMNS)
