"""Scale factor, per-band mean and standard deviation: what turns raster values into network input."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from siamese_sat.data.scene import Scene, SceneReader
from siamese_sat.errors import InputError
from siamese_sat.progress import track

log = logging.getLogger(__name__)

DEFAULT_NAMES = {1: ("PAN",), 3: ("B", "G", "R"), 4: ("B", "G", "R", "NIR")}
BLOCK = 1024


@dataclass(frozen=True)
class Radiometry:
    """How pixel values become network input: ``(value / scale - mean) / std``, band by band.

    Attributes:
        names: band names in the model's order.
        scale: the value that stands for 1: 255, 2047, 4095, 10000, 65535 or 1.
        mean: per band, of value / scale.
        std: per band, of value / scale; above 0.
    """

    names: tuple[str, ...]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Brings ``[..., C, H, W]`` raster values of any type to float32 network input of the same shape."""
        gain, offset = self.affine(pixels.device)
        return torch.addcmul(offset, pixels.to(torch.float32), gain)

    def affine(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The same as one gain and one offset per band, each ``[C, 1, 1]``."""
        std = torch.tensor(self.std, device=device)[:, None, None]
        mean = torch.tensor(self.mean, device=device)[:, None, None]
        return 1 / (self.scale * std), -mean / std

    def fill(self, pixels: npt.NDArray[Any], valid: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Puts the band mean where nothing valid is.

        Args:
            pixels: ``[C, H, W]``.
            valid: ``[H, W]``.

        Returns:
            ``pixels`` itself where all is valid, else a filled copy of the same type.
        """
        if valid.all():
            return pixels
        mean = np.asarray(self.mean)[:, None, None] * self.scale
        if np.issubdtype(pixels.dtype, np.integer):
            mean = np.rint(mean)
        return np.where(valid, pixels, mean.astype(pixels.dtype))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, as a checkpoint carries them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Radiometry:
        """The reverse of `to_dict`."""
        return cls(tuple(values["names"]), float(values["scale"]), tuple(values["mean"]), tuple(values["std"]))

    def distance(self, other: Radiometry) -> float:
        """How far another radiometry's means lie from this one's, in this one's standard deviations (the largest)."""
        mine, std = np.asarray(self.mean) * self.scale, np.asarray(self.std) * self.scale
        theirs = np.asarray(other.mean) * other.scale
        return float(np.max(np.abs(theirs - mine) / std))

    def __str__(self) -> str:
        bands = ", ".join(f"{n} {m:.4f} ± {s:.4f}" for n, m, s in zip(self.names, self.mean, self.std, strict=True))
        return f"scale {self.scale:g}; {bands}"


# How each scene is normalised.
RadiometryOf = Callable[[Scene], Radiometry]


def for_imagenet_weights(found: Radiometry, dtype: str) -> Radiometry:
    """The radiometry that suits ImageNet weights which no training has adapted.

    Red, green and blue of 8-bit scenes are taken as the photographs were that the weights come from, by their constants
    (0.485, 0.456, 0.406 and 0.229, 0.224, 0.225); the weights know the contrast that these give.
    Other bands and other types keep the scenes' statistics.
    """
    if np.dtype(dtype) != np.uint8:
        return found
    known = {"R": (0.485, 0.229), "G": (0.456, 0.224), "B": (0.406, 0.225)}
    pairs = [known.get(name, (mean, std)) for name, mean, std in zip(found.names, found.mean, found.std, strict=True)]
    return Radiometry(found.names, found.scale, tuple(m for m, _ in pairs), tuple(s for _, s in pairs))


def band_names(count: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Band names in the model's order: as given, or B, G, R, NIR and so on by their number.

    Raises:
        InputError: when as many names as bands are not given.
    """
    if names is not None:
        if len(names) != count:
            raise InputError(f"data.band_names={list(names)} names {len(names)} bands, data.bands has {count}.")
        return tuple(names)
    return DEFAULT_NAMES.get(count) or ("B", "G", "R", "NIR", *(f"X{i}" for i in range(5, count + 1)))[:count]


def detect_scale(dtype: str, high: float, bits: int | None = None) -> float:
    """The value that stands for 1.

    Args:
        dtype: numpy name of the scenes' type.
        high: their 99.9th percentile over all bands.
        bits: significant bits where the file declares them.

    Returns:
        255 for 8-bit; 2047 or 4095 for 11- and 12-bit sensors in uint16; 10000 for scaled reflectance; 65535 for the
        full 16-bit range; for floating point 1, 255 or 10000, whichever the values fit.
    """
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return next((s for s, top in ((1.0, 2.0), (255.0, 255.0), (10_000.0, 20_000.0)) if high <= top), high)
    if kind.itemsize == 1:
        return 255.0
    if bits in (10, 11, 12, 14):
        return float(2**bits - 1)
    # An 11- or 12-bit sensor cannot exceed its range; reflectance of bright roofs and clouds does.
    for scale, top in ((255.0, 255), (2047.0, 2047), (4095.0, 4095), (10_000.0, 20_000), (65_535.0, 65_535)):
        if high <= top:
            return scale
    return float(high)


def estimate(
    scenes: Sequence[Scene], names: Sequence[str] | None = None, *, max_blocks: int | None = None, quiet: bool = False
) -> Radiometry:
    """Streams over the scenes block by block; memory does not grow with them.

    Args:
        scenes: all with as many bands.
        names: band names in the model's order; None takes the usual ones.
        max_blocks: look at no more than this many blocks of each scene, spread evenly; None reads them all.
        quiet: show no progress bar.

    Returns:
        Scale, mean and standard deviation of the valid pixels (Chan et al. 1979, pairwise update, in float64).

    Raises:
        InputError: no scene has a valid pixel.
    """
    bands = len(scenes[0].bands)
    kinds = sorted({s.dtype for s in scenes})
    if len(kinds) > 1:
        log.warning("Scenes of several types (%s) share one scale: bring them to one unit first.", ", ".join(kinds))
    count, mean, spread = 0, np.zeros(bands), np.zeros(bands)
    sample: list[npt.NDArray[np.float64]] = []
    for scene in scenes if quiet else track(scenes, "Reading band statistics", unit="scenes"):
        with SceneReader(scene) as reader:
            for block in _blocks(scene, max_blocks):
                pixels, valid = reader.read(*block)
                values = pixels[:, valid].astype(np.float64)
                n = values.shape[1]
                if n == 0:
                    continue
                block_mean = values.mean(axis=1)
                delta = block_mean - mean
                spread += values.var(axis=1) * n + delta**2 * (count * n / (count + n))
                mean += delta * (n / (count + n))
                count += n
                sample.append(np.percentile(values[:, :: max(1, n // 20_000)], 99.9, axis=1))
    if count == 0:
        raise InputError(f"{scenes[0].path}: no valid pixel in any of {len(scenes)} scene(s); check nodata and bands.")
    bits = {s.bits for s in scenes}
    # The median over blocks keeps one cloud or one dead pixel from deciding; the larger band decides.
    high = float(np.max(np.percentile(np.stack(sample), 90, axis=0)))
    scale = detect_scale(scenes[0].dtype, high, bits.pop() if len(bits) == 1 else None)
    std = np.sqrt(spread / count) / scale
    flat = std < 1e-6
    if flat.any():
        log.warning("Band(s) %s hold one value only.", [b for b, f in zip(scenes[0].bands, flat, strict=True) if f])
    return Radiometry(
        band_names(bands, names),
        scale,
        tuple((mean / scale).tolist()),
        tuple(np.where(flat, 1.0, std).tolist()),
    )


def _blocks(scene: Scene, most: int | None) -> Iterator[tuple[int, int, int, int]]:
    x0, y0, x1, y1 = scene.aoi
    corners = [(x, y) for y in range(y0, y1, BLOCK) for x in range(x0, x1, BLOCK)]
    if most is not None and len(corners) > most:
        corners = [corners[i] for i in np.linspace(0, len(corners) - 1, most).round().astype(int)]
    for x, y in corners:
        yield x, y, min(BLOCK, x1 - x), min(BLOCK, y1 - y)
