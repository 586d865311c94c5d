"""Tiny GeoTIFFs whose every pixel is known."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

# Before torch is imported: several processes of tests with a thread for every core each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from filelock import FileLock
from rasterio.enums import ColorInterp

from siamese_sat.data.scene import Scene, open_scene

# Ray finds any cluster that runs on the machine: of files with tests of it only one runs at a time.
OF_RAY = ("scaleout/test_choose.py", "scaleout/test_cluster.py", "tests/test_interrupted.py")


@pytest.fixture(scope="module", autouse=True)
def alone_with_ray(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Files are shared out among processes (``--dist loadfile``): these wait for each other."""
    if not request.path.as_posix().endswith(OF_RAY):
        yield
        return
    # A process's base folder lies in that of the whole run.
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


UTM33 = "EPSG:32633"
NORTH_UP = Affine(2, 0, 500_000, 0, -2, 5_000_000)


def skip_without_openvino() -> None:
    """Not `pytest.importorskip`: imported so, OpenVINO reports each model to its makers, by a process of its own."""
    if find_spec("openvino") is None:
        pytest.skip("needs OpenVINO")


def ramp(bands: int, height: int, width: int, dtype: str = "uint16") -> npt.NDArray[np.generic]:
    """``[bands, height, width]`` with 10000 * band + 100 * row + column, so that a value tells where it stood."""
    band, row, column = np.indices((bands, height, width))
    return (10_000 * (band + 1) + 100 * row + column).astype(dtype)


def write_scene(
    path: Path,
    pixels: npt.NDArray[np.generic],
    *,
    crs: str | None = None,
    transform: Affine | None = None,
    nodata: float | None = None,
    colorinterp: Sequence[ColorInterp] | None = None,
    mask: npt.NDArray[np.bool_] | None = None,
    internal_mask: bool = True,
    **options: object,
) -> str:
    """Writes ``[C, H, W]`` as a GeoTIFF.

    Args:
        path: of the file; its folder is made.
        pixels: all bands of the file, masks included.
        crs: None for a raster without a place on the map.
        transform: pixel to map; None for none.
        nodata: the value that stands for nothing.
        colorinterp: one a band; None leaves it to GDAL, which tags the fourth of four 8-bit bands as alpha.
        mask: ``[H, W]``, True where a pixel is valid.
        internal_mask: whether the mask lies in the file or beside it as .msk.
        options: GDAL creation options such as ``tiled=True``.

    Returns:
        The path as a string, as scenes carry it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    placed = {k: v for k, v in {"crs": crs, "transform": transform, "nodata": nodata}.items() if v is not None}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal_mask),
        rasterio.open(path, "w", **profile, **placed, **options) as target,
    ):
        if colorinterp is not None:
            target.colorinterp = list(colorinterp)
        target.write(pixels)
        if mask is not None:
            target.write_mask(mask)
    return str(path)


def make_scene(path: Path, pixels: npt.NDArray[np.generic], **options: object) -> Scene:
    """Writes a raster (see `write_scene`) and opens all its bands in the order of the file."""
    return open_scene(write_scene(path, pixels, **options), range(1, len(pixels) + 1))  # type: ignore[arg-type]
