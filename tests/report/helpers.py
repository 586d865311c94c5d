"""Tiny scenes and detections for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import rasterio
from affine import Affine
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from PIL import Image

from siamese_sat.data.scene import Scene, open_scene

Picture = npt.NDArray[np.uint8]
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


def load(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB"))


def near(picture: Picture, colour: str, within: int = 40) -> npt.NDArray[np.bool_]:
    goal = np.array(to_rgb(colour)) * 255
    alike: npt.NDArray[np.bool_] = (np.abs(picture.astype(float) - goal) < within).all(axis=-1)
    return alike


def x_of(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_xdata(), dtype=np.float64)


def y_of(line: Line2D) -> npt.NDArray[np.float64]:
    return np.asarray(line.get_ydata(), dtype=np.float64)
