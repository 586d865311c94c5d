"""The whitened feature maps of a place, in one stage or two, and the patches cut from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from siamese_sat.search.peak import patches_at, patches_between
from siamese_sat.search.whiten import Whitening


@dataclass(frozen=True)
class Maps:
    """Whitened cells of a place.

    Attributes:
        cells: ``[D, H, W]``.
        further: gives ``[D, h, w]`` of a later stage, or None where there is none.
        origin: row and column, in ``deep``, of the place on which the first of ``cells`` is centred.
        phase: strides of ``cells`` in one of ``deep``.
    """

    cells: Tensor
    further: Callable[[], Tensor] | None
    origin: tuple[float, float] = (0.0, 0.0)
    phase: int = 2

    @cached_property
    def deep(self) -> Tensor | None:
        """Cells ``[D, h, w]`` of the later stage, made when they are first asked for."""
        return self.further() if self.further is not None else None

    def patches(
        self, y: Tensor, x: Tensor, size: int, deep_size: int, off: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Patches ``[N, D, size, size]`` whose first rows and columns these are, and deep ones with the same middle.

        Deep cells are wide: their middle is moved by ``off``, rows and columns of the first stage's cells.
        """
        shallow = patches_at(self.cells, y, x, size)
        if self.deep is None:
            return shallow, None
        row, column = ((c + d + size // 2) / self.phase + o for c, d, o in zip((y, x), off, self.origin, strict=True))
        return shallow, patches_between(self.deep, row, column, deep_size)


@dataclass(frozen=True)
class Whitenings:
    """One whitening per stage."""

    first: Whitening
    deep: Whitening | None
    phase: int = 2

    def __call__(
        self, features: Tensor, deep: Callable[[], Tensor] | None, origin: tuple[float, float] = (0.0, 0.0)
    ) -> Maps:
        """Features ``[C, H, W]`` of the stages, those of the later one given when they are needed, to whitened maps."""
        own = self.deep
        further = (lambda: own(deep())) if own is not None and deep is not None else None
        return Maps(self.first(features), further, origin, self.phase)
