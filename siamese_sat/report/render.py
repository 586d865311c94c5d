"""What all pictures share: pixels to colours, a figure that is nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rasterio
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing

DPI = 100
NO_DATA_GREY = 232


@dataclass(frozen=True)
class Preview:
    """A scene's area of interest at the size of a picture.

    Attributes:
        pixels: ``[bands, height, width]``, the bands that :func:`preview` was asked for.
        valid: ``[height, width]``.
        left: scene column of the picture's left edge.
        top: scene row of the picture's upper edge.
        zoom_x: picture pixels per scene pixel.
        zoom_y: likewise downwards.
    """

    pixels: npt.NDArray[np.generic]
    valid: npt.NDArray[np.bool_]
    left: int
    top: int
    zoom_x: float
    zoom_y: float


def rgb_bands(names: Sequence[str]) -> tuple[int, ...]:
    """Which bands become red, green and blue, counted from 0.

    Args:
        names: of the bands in the model's order; red, green and blue are known by R, G, B or by their full names.

    Returns:
        Three places; those of the first three bands where the names do not tell, of the first alone where there are
        one or two.
    """
    if len(names) < 3:
        return (0,)
    places = {name.strip().lower(): place for place, name in enumerate(names)}
    found = [places.get(colour, places.get(colour[0])) for colour in ("red", "green", "blue")]
    known = tuple(place for place in found if place is not None)
    return known if len(known) == 3 else (0, 1, 2)


def shown_bands(count: int, rgb: Sequence[int]) -> tuple[int, ...]:
    """Which of ``count`` bands become red, green and blue: ``rgb``, or the first alone when there are one or two.

    Raises:
        InputError: ``rgb`` asks for a band that is not there.
    """
    if count < 3:
        return (0,)
    if len(rgb) != 3 or min(rgb) < 0 or max(rgb) >= count:
        raise InputError(f"rgb={list(rgb)} must name three of the {count} bands, counted from 0.")
    return tuple(rgb)


def preview(scene: Scene, max_side: int, bands: Sequence[int]) -> Preview:
    """Reads a scene's area of interest decimated, so that a large scene never comes into memory whole.

    Args:
        scene: the scene.
        max_side: the longer side of the result at most, in pixels. A small scene is not enlarged.
        bands: which of ``scene.bands`` to read, counted from 0.

    Raises:
        InputError: the file cannot be read.
    """
    left, top, right, bottom = scene.aoi
    window = Window(left, top, right - left, bottom - top)
    scale = min(1.0, max_side / max(right - left, bottom - top))
    shape = (max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale)))
    numbers = [scene.bands[b] for b in bands]
    try:
        with rasterio.open(scene.path) as source:
            pixels = source.read(numbers, window=window, out_shape=shape, resampling=Resampling.average)
            valid = np.ones(shape, dtype=bool)
            if scene.alpha is not None:
                valid &= source.read(scene.alpha, window=window, out_shape=shape) > 0
            elif scene.has_mask:
                valid &= source.read_masks(numbers[0], window=window, out_shape=shape) > 0
    except RasterioError as error:
        raise InputError(f"{scene.path} cannot be read for its picture ({error}).") from error
    if scene.nodata is not None and not np.isnan(scene.nodata):
        valid &= (pixels != scene.nodata).any(axis=0)
    valid &= np.isfinite(pixels).all(axis=0)
    return Preview(pixels, valid, left, top, shape[1] / (right - left), shape[0] / (bottom - top))


def stretch_limits(
    pixels: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_], rgb: Sequence[int] = (2, 1, 0)
) -> npt.NDArray[np.float64]:
    """What becomes black and what becomes white: the 2nd and 98th percentile of every shown band.

    Args:
        pixels: ``[C, H, W]``.
        valid: ``[H, W]``, the pixels that count.
        rgb: which bands become red, green and blue, counted from 0.

    Returns:
        ``[3, 2]`` (``[1, 2]`` for one or two bands); the extremes where the percentiles coincide, as in a dark sea
        with a few bright ships.
    """
    limits = []
    for band in shown_bands(len(pixels), rgb):
        values = pixels[band][valid].astype(np.float64)
        low, high = np.percentile(values, [2, 98]) if values.size else (0.0, 1.0)
        limits.append((values.min(), values.max()) if values.size and high <= low else (low, high))
    return np.array(limits, dtype=np.float64)


def to_rgb(
    pixels: npt.NDArray[np.generic],
    valid: npt.NDArray[np.bool_],
    rgb: Sequence[int] = (2, 1, 0),
    limits: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.uint8]:
    """Makes a picture of bands of any type and range.

    Args:
        pixels: ``[C, H, W]``; with one or two bands the first is shown grey.
        valid: ``[H, W]``; the rest becomes light grey.
        rgb: which bands become red, green and blue, counted from 0.
        limits: what :func:`stretch_limits` gave, so that several pictures are stretched alike; None takes these
            pixels' own.

    Returns:
        ``[H, W, 3]``.

    Raises:
        InputError: ``rgb`` asks for a band that is not there.
    """
    if limits is None:
        limits = stretch_limits(pixels, valid, rgb)
    chosen = pixels[list(shown_bands(len(pixels), rgb))].astype(np.float64)
    low, high = limits[:, 0, None, None], limits[:, 1, None, None]
    flat = high <= low
    stretched = np.where(flat, 0.5, (chosen - low) / np.where(flat, 1.0, high - low))
    levels = np.round(np.clip(np.nan_to_num(stretched), 0, 1) * 255).astype(np.uint8)
    levels[:, ~valid] = NO_DATA_GREY
    return np.ascontiguousarray(np.broadcast_to(levels, (3, *valid.shape)).transpose(1, 2, 0))


def plain(text: str) -> str:
    """Keeps matplotlib from reading a name as mathematics (``$``) or as a label to be hidden (``_``)."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many pixels, outside pyplot's global list, which would keep every figure in memory."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG, whatever the suffix, at its own size."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=figure.dpi)
    return Path(path)


def dress(axes: Axes, label: str) -> None:
    """Axes as all diagrams have them, with the name of their ordinate."""
    axes.set_ylabel(label, color="#444444")
    axes.grid(color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#bbbbbb")
    axes.tick_params(colors="#555555", length=0, labelsize=9)
