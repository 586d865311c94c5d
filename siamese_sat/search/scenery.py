"""What lies round places, seen from afar: tanks stand in farms of tanks, and what looks like one in a town is none.

The coarsest level in which a class is sought shows each place with several times its own extent around it, where larger
things are sought too. Of that level, in the deeper stage of the two that are compared, the mean cell round every few
cells is kept, and each candidate is told the nearest: see `siamese_sat.search.rerank`, which uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.neighbors import KDTree
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.int8]
Cells = npt.NDArray[np.integer[Any]]
# Scene pixels that become 128 level pixels, and the level's blur.
Level = tuple[int, float]

# Level pixels between samples along a side.
APART = 32
# Of a cell, the first whitened dimensions.
DIMENSIONS = 64
# Length of a sample, in steps of its numbers.
STEPS = 127


@dataclass(frozen=True)
class Samples:
    """Of one level of a scene.

    Attributes:
        first: ``[2]`` x and y, in scene pixels, of sample (0, 0).
        apart: scene pixels between samples.
        places: ``[m, 2]`` row and column of each; one at least.
        vectors: ``[m, D]`` of length `STEPS`, but for rounding; ``D`` up to `DIMENSIONS`.
    """

    first: tuple[float, float]
    apart: float
    places: Cells
    vectors: Vectors

    def nearest(self, points: FloatArray) -> Vectors:
        """Vectors ``[n, D]`` of the samples that lie nearest to points (x, y), in scene pixels."""
        # In a fixed order, or the one of two that are as near would depend on how the scene was shared out.
        order = np.lexsort(self.places.T)
        tree = KDTree(self.places[order, ::-1])
        nearest = tree.query((points - self.first) / self.apart, return_distance=False)[:, 0]
        found: Vectors = self.vectors[order[nearest]]
        return found


@dataclass(frozen=True)
class Scenery:
    """What the parts of a scene look like at large.

    Attributes:
        of: class number -> the level that tells of it.
        dimensions: of a sample's vector.
        samples: by level.
    """

    of: Mapping[int, Level]
    dimensions: int
    samples: Mapping[Level, Samples] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence[Scenery]) -> Scenery:
        """All parts of a scene as one; there must be one."""
        of: dict[int, Level] = {}
        by_level: dict[Level, list[Samples]] = {}
        for part in parts:
            of.update(part.of)
            for level, samples in part.samples.items():
                by_level.setdefault(level, []).append(samples)
        return cls(of, parts[0].dimensions, {level: _joined(some) for level, some in by_level.items()})

    def round(self, points: FloatArray, classes: Cells) -> Vectors:
        """What lies round places.

        Args:
            points: ``[n, 2]`` x and y in scene pixels.
            classes: ``[n]`` number of each one's class.

        Returns:
            ``[n, D]``, zeros where nothing is known.
        """
        found = np.zeros((len(points), self.dimensions), np.int8)
        for level, samples in self.samples.items():
            mine = np.isin(classes, [number for number, own in self.of.items() if own == level])
            if mine.any():
                found[mine] = samples.nearest(points[mine])
        return found


def sample(
    cells: Tensor,
    valid: npt.NDArray[np.bool_],
    margin: int,
    first: tuple[int, int],
    stride: int,
    scale: float,
    corner: tuple[float, float],
) -> Samples | None:
    """Samples of one tile: where tiles end changes none.

    Args:
        cells: ``[D, rows + 2 * margin, columns + 2 * margin]`` whitened.
        valid: the same rows and columns, which cells lie on valid pixels; others do not count.
        margin: cells on either side of the tile, and on either side of a sample over which its mean is taken.
        first: row and column, in the level, of the tile's first cell.
        stride: level pixels of a cell.
        scale: scene pixels of a level pixel.
        corner: x and y, in scene pixels, where the level begins.

    Returns:
        None where no sample falls on the tile, or none of them sees a valid cell.
    """
    apart = max(1, APART // stride)
    off = [-start % apart for start in first]
    counts = torch.from_numpy(valid).to(cells.device, torch.float32)
    some = torch.cat([cells[:DIMENSIONS].float() * counts, counts[None]])[:, off[0] :, off[1] :]
    side = 2 * margin + 1
    if min(some.shape[1:]) < side:
        return None
    means = F.avg_pool2d(some[None], side, stride=apart)[0]
    rows, columns = (np.arange(n) + -(-start // apart) for n, start in zip(means.shape[1:], first, strict=True))
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.int32)
    # Of what is partly valid the length says nothing.
    vectors = (F.normalize(means[:-1], dim=0) * STEPS).round().flatten(1).T.cpu().numpy().astype(np.int8)
    known = means[-1].flatten().cpu().numpy() > 0
    if not known.any():
        return None
    # A cell is centred on a pixel's middle, hence the half.
    x, y = (edge + 0.5 * scale for edge in corner)
    return Samples((x, y), apart * stride * scale, places[known], vectors[known])


def _joined(parts: Sequence[Samples]) -> Samples:
    return Samples(
        parts[0].first,
        parts[0].apart,
        np.concatenate([p.places for p in parts]),
        np.concatenate([p.vectors for p in parts]),
    )
