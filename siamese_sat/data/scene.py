"""One raster: its bands, mask and place on the map; read by windows, never whole."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt
import rasterio
import torch
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from siamese_sat.data.remote import reach_s3
from siamese_sat.errors import InputError

log = logging.getLogger(__name__)

AlphaRule = Literal["auto", "mask", "data"]
PixelBox = tuple[float, float, float, float]

# A scene without a place on the map is a normal one here: its boxes stay in pixels.
warnings.simplefilter("ignore", NotGeoreferencedWarning)

# GDAL's own cache would take 5 % of the machine's memory, however small the tiles are. Said for the whole process and
# before GDAL first asks: what one reader says in its own time ends for all when that reader does.
GDAL_CACHE_MB = 64
os.environ.setdefault("GDAL_CACHEMAX", str(GDAL_CACHE_MB))
# Where blocks are whole rows, all tiles beside each other need the same ones: that many are kept, or each tile decodes
# them all again.
GDAL_CACHE_MB_OF_ROWS = 192


@dataclass(frozen=True)
class Scene:
    """What is known of a raster without reading its pixels.

    Attributes:
        path: a local path or anything GDAL opens (``s3://``, ``https://``, ``/vsizip/``).
        width: pixels.
        height: pixels.
        bands: 1-based band numbers of the file in the model's order (B, G, R, NIR by default).
        dtype: numpy name of the bands' type.
        crs: coordinate reference system, or None.
        transform: pixel (column, row) to map coordinates; the identity when the raster has none.
        nodata: the value that stands for "no data" in the chosen bands, or None.
        alpha: 1-based number of the band that is a mask, or None.
        has_mask: whether an internal or side-car mask says which pixels are valid.
        bits: significant bits as the file declares them (NBITS), or None.
        aoi: area of interest in pixels (x_min, y_min, x_max, y_max), half-open; what lies outside is invalid.
        whole_rows: whether the file's blocks are as wide as it is: to read a part of a row is to decode all of it.
    """

    path: str
    width: int
    height: int
    bands: tuple[int, ...]
    dtype: str
    crs: CRS | None
    transform: Affine
    nodata: float | None
    alpha: int | None
    has_mask: bool
    bits: int | None
    aoi: tuple[int, int, int, int]
    whole_rows: bool = False

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return self.path.rsplit("/", 1)[-1]

    @property
    def georeferenced(self) -> bool:
        """Whether pixels can be brought to map coordinates."""
        return self.crs is not None and self.transform != Affine.identity()

    @property
    def megapixels(self) -> float:
        """Area of interest in millions of pixels."""
        x0, y0, x1, y1 = self.aoi
        return (x1 - x0) * (y1 - y0) / 1e6

    def within(self, aoi: Sequence[float] | None) -> Scene:
        """The same scene with its area of interest cut to ``aoi`` (pixels, half-open); None leaves it.

        Raises:
            InputError: when nothing of the scene lies inside.
        """
        if aoi is None:
            return self
        if len(aoi) != 4:
            raise InputError(f"An area of interest is x_min,y_min,x_max,y_max in pixels; got {list(aoi)}.")
        x0, y0, x1, y1 = self.aoi
        cut = (max(x0, int(aoi[0])), max(y0, int(aoi[1])), min(x1, int(aoi[2])), min(y1, int(aoi[3])))
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            raise InputError(
                f"{self.path}: nothing of the {self.width} x {self.height} scene lies inside the area of "
                f"interest {list(aoi)}; give pixels as x_min,y_min,x_max,y_max."
            )
        return replace(self, aoi=cut)


def open_scene(path: str | Path, bands: Sequence[int], alpha: AlphaRule = "auto") -> Scene:
    """Looks a raster up without reading it.

    Args:
        path: anything GDAL opens.
        bands: 1-based band numbers in the model's order.
        alpha: what a band that is tagged as alpha is. ``auto`` looks at its values, because GDAL tags the fourth
            band of any 8-bit 4-band GeoTIFF as alpha unless the writer said otherwise: a mask holds hardly
            anything but its lowest and highest value, near-infrared does.

    Raises:
        InputError: the file cannot be opened, lacks a band, or a chosen band is a mask.
    """
    path = str(path)
    reach_s3()
    try:
        with rasterio.open(path) as source:
            lacking = [b for b in bands if not 1 <= b <= source.count]
            if lacking or not bands:
                raise InputError(
                    f"{path} has bands 1 to {source.count}, but {list(bands)} asks for "
                    f"{lacking[0] if lacking else 'none'}; set bands (train.py: data.bands) to some it has, in the "
                    "order B,G,R,NIR."
                )
            tagged = [i + 1 for i, c in enumerate(source.colorinterp) if c == ColorInterp.alpha]
            mask_band = next(iter(tagged), None)
            if mask_band is not None and not _is_mask(source, mask_band, alpha):
                log.info("%s: band %d is tagged alpha but holds image data; read as data.", path, mask_band)
                mask_band = None
            if mask_band in bands:
                rest = [b for b in bands if b != mask_band]
                colours = {c: i + 1 for i, c in enumerate(source.colorinterp)}
                rgb = [colours.get(c) for c in (ColorInterp.blue, ColorInterp.green, ColorInterp.red)]
                raise InputError(
                    f"{path}: band {mask_band} is alpha (a mask), not image data; set "
                    f"data.bands={rgb if all(rgb) else rest}, or data.alpha=data if it is image data "
                    f"(bands and alpha in a search)."
                )
            if any("complex" in source.dtypes[b - 1] for b in bands):
                raise InputError(f"{path}: complex pixels cannot be used; convert the raster to amplitude first.")
            flags = source.mask_flag_enums[bands[0] - 1]
            bits = source.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS")
            return Scene(
                path=path,
                width=source.width,
                height=source.height,
                bands=tuple(bands),
                dtype=str(np.result_type(*(source.dtypes[b - 1] for b in bands))),
                crs=source.crs,
                transform=source.transform,
                nodata=source.nodatavals[bands[0] - 1],
                alpha=mask_band,
                has_mask=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
                bits=int(bits) if bits else None,
                aoi=(0, 0, source.width, source.height),
                whole_rows=source.block_shapes[bands[0] - 1][1] >= source.width,
            )
    except RasterioError as error:
        raise InputError(
            f"{path} cannot be opened as a raster ({_first_line(error)}); check the path and the file."
        ) from error


def guess_bands(path: str | Path) -> list[int]:
    """Band numbers in the order B, G, R, NIR, where the user does not say them.

    One band is itself; three, and three with a mask, are taken by their colours; of four or more the first four, in the
    file's order: colour tags of such files are mostly what GDAL writes by itself.
    """
    try:
        with rasterio.open(path) as source:
            colours = {c: i + 1 for i, c in enumerate(source.colorinterp)}
            mask = colours.get(ColorInterp.alpha)
            masked = source.count == 4 and mask is not None and _is_mask(source, mask, "auto")
            if (source.count == 3 or masked) and ColorInterp.red in colours:
                return [colours[c] for c in (ColorInterp.blue, ColorInterp.green, ColorInterp.red)]
            return list(range(1, min(source.count, 4) + 1))
    except RasterioError as error:
        raise InputError(f"{path} cannot be opened as a raster ({_first_line(error)}); check the path.") from error


class SceneReader:
    """An open handle on a scene. One belongs to one thread or worker: GDAL handles are not shared.

    Use as a context manager.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        options: dict[str, int] = {}
        if scene.whole_rows and os.environ.get("GDAL_CACHEMAX") == str(GDAL_CACHE_MB):
            options["GDAL_CACHEMAX"] = GDAL_CACHE_MB_OF_ROWS * 2**20
        if "GDAL_NUM_THREADS" not in os.environ:
            # Blocks are decoded side by side, by as many threads as compute: one decodes slower than a GPU searches.
            options["GDAL_NUM_THREADS"] = torch.get_num_threads()
        self._env = rasterio.Env(**options)
        self._source: rasterio.DatasetReader | None = None

    def __enter__(self) -> SceneReader:
        reach_s3()
        self._env.__enter__()
        try:
            self._source = rasterio.open(self.scene.path)
        except RasterioError as error:
            self._env.__exit__()
            raise InputError(f"{self.scene.path} cannot be opened ({_first_line(error)}).") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._source is not None:
            self._source.close()
        self._env.__exit__(kind, error, trace)

    def read(
        self, x_min: int, y_min: int, width: int, height: int
    ) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
        """Reads a window, which may reach beyond the scene.

        Args:
            x_min: left column; may be negative.
            y_min: top row; may be negative.
            width: columns.
            height: rows.

        Returns:
            Pixels ``[bands, height, width]`` in the scene's own type, zero where nothing is, and validity
            ``[height, width]``: False outside the scene or its area of interest, where the mask or nodata value
            says so, and where any band is not finite.

        Raises:
            InputError: the file is damaged there.
        """
        scene, source = self.scene, self._source
        if source is None:
            raise RuntimeError("SceneReader is used as a context manager: with SceneReader(scene) as reader")
        shape = (len(scene.bands), height, width)
        left, top = max(x_min, scene.aoi[0]), max(y_min, scene.aoi[1])
        right, bottom = min(x_min + width, scene.aoi[2]), min(y_min + height, scene.aoi[3])
        if left >= right or top >= bottom:
            return np.zeros(shape, dtype=scene.dtype), np.zeros((height, width), dtype=bool)
        window = Window(left, top, right - left, bottom - top)
        inside = np.s_[top - y_min : bottom - y_min, left - x_min : right - x_min]
        try:
            block = source.read(list(scene.bands), window=window).astype(scene.dtype, copy=False)
            good = np.ones(block.shape[1:], dtype=bool)
            if scene.alpha is not None:
                good &= source.read(scene.alpha, window=window) > 0
            elif scene.has_mask:
                good &= source.read_masks(scene.bands[0], window=window) > 0
        except RasterioError as error:
            raise InputError(f"{scene.path} cannot be read at {window} ({_first_line(error)}).") from error
        if scene.nodata is not None and not np.isnan(scene.nodata):
            # A value that no measurement has (-9999, or any in floating point) spoils the pixel in whichever band it
            # stands; 0 or 255 may be real in one band and are nothing only where they stand in all.
            sentinel = scene.nodata < 0 or np.issubdtype(block.dtype, np.floating)
            good &= (block != scene.nodata).all(axis=0) if sentinel else (block != scene.nodata).any(axis=0)
        if np.issubdtype(block.dtype, np.floating):
            good &= np.isfinite(block).all(axis=0)
            block = np.where(good, block, 0).astype(scene.dtype, copy=False)
        if block.shape == shape:
            return block, good
        pixels = np.zeros(shape, dtype=scene.dtype)
        valid = np.zeros((height, width), dtype=bool)
        pixels[:, inside[0], inside[1]] = block
        valid[inside] = good
        return pixels, valid


def _is_mask(source: rasterio.DatasetReader, band: int, rule: AlphaRule) -> bool:
    if rule != "auto":
        return rule == "mask"
    shape = (min(source.height, 256), min(source.width, 256))
    values = source.read(band, out_shape=shape)
    extremes = (values == 0) | (values == values.max())
    # Image data saturates in places; a mask does almost everywhere.
    return bool(extremes.mean() > 0.9)


def _first_line(error: BaseException) -> str:
    return str(error.__cause__ or error).splitlines()[0].rstrip(".")
