"""At which sizes a scene is searched: sizes of each class's own, and few levels that serve all classes.

A rung is a size of things. At a level of its own, things of a rung appear at the one size at which templates are made;
but the finest rungs cost most of a search, by the square. So neighbouring rungs share a level, in which templates are
made at as many sizes. Rungs follow from a class's own exemplars: beside another class it is sought at the same sizes.
Levels follow from the class with the smallest things; those of another class may appear up to half a rung larger or
smaller there.

Small things are enlarged, so a level shows larger things sharper than the level below shows smaller ones: what is
larger than small exemplars looks unlike them, and matches best at a size too small. `grained` levels are blurred until
they show no more detail of the ground than the level in which the median exemplar is sought.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from siamese_sat.search.level import UNIT, blur_of

# Bits of a step that count; a longer one ends in zeros.
STEP_BITS = 9


@dataclass(frozen=True, order=True)
class Rung:
    """Things of one size, and the level in which they are sought.

    Attributes:
        step: scene pixels that become 128 level pixels.
        appears: level pixels of their longer side there.
        grain: level pixels that a scene pixel is made to cover there, by a blur; 0: it is left as it is.
    """

    step: int
    appears: float
    grain: float = 0.0

    @property
    def size(self) -> float:
        """Scene pixels of their longer side."""
        return self.step * self.appears / UNIT

    @property
    def blur(self) -> float:
        """Standard deviation of the level's blur, level pixels; 0: there is none."""
        return blur_of(UNIT / self.step, self.grain)


def ladder(
    sizes: Mapping[str, Sequence[float]],
    object_size: float,
    ratio: float,
    least: int,
    most: int,
    max_zoom: float | None = None,
    sizes_per_level: int = 1,
    following: Collection[str] = (),
    larger: int = 0,
) -> dict[str, tuple[Rung, ...]]:
    """Rungs of each class: from one below its smallest exemplar to one above its largest, or further.

    Args:
        sizes: longer sides of a class's exemplars, scene pixels.
        object_size: level pixels of a thing in a level of its own; with more sizes to a level, the middle one.
        ratio: of neighbouring sizes, above 1.
        least: rungs on either side of the median exemplar, at least.
        most: smaller than the median exemplar, at most; twice as many that are larger, which take little time.
        max_zoom: ``object_size`` per scene pixel of the smallest things, at most, or as many as the median exemplar
            has: smaller ones cost by the square and show blurs. None: no limit.
        sizes_per_level: neighbouring rungs of a class that share a level; no more than there are.
        following: classes by which the levels of the others do not change; not all.
        larger: rungs above the median exemplar, at least, as far as ``most`` allows.

    Returns:
        By class, rising.
    """
    own, places = (
        {name: _places(longer, object_size, ratio, (least, most, more), max_zoom) for name, longer in sizes.items()}
        for more in (0, larger)
    )
    leading = [found for name, found in places.items() if name not in following]
    # What none of the others is sought at, the ones that follow need not be.
    top = max(found[-1] for found in leading) + 0.5
    places = {
        name: [place for place in found if name not in following or place <= top or place in own[name]]
        for name, found in places.items()
    }
    # The levels of the exemplars' own sizes are the same with larger ones beside them.
    per_level = min(sizes_per_level, max(len(found) for name, found in own.items() if name not in following))
    # The smallest of all is the smallest in its level: the finest level is as coarse as can be.
    offset = min(found[0] for found in leading) + (per_level - 1) / 2
    return {
        name: tuple(sorted({_rung(place, object_size, ratio, per_level, offset) for place in found}))
        for name, found in places.items()
    }


def grained(rungs: Sequence[Rung], median: float, own: Sequence[Rung] = ()) -> tuple[Rung, ...]:
    """The same rungs, the levels of larger things blurred.

    Args:
        rungs: of a class.
        median: scene pixels of the longer side of the exemplars by which it is told what is larger.
        own: rungs of these, where they are of another class.
    """
    near = min(own or rungs, key=lambda r: abs(math.log(r.size / median)))
    grain = UNIT / near.step
    return tuple(
        replace(r, grain=grain) if r.step > near.step and replace(r, grain=grain).blur > 0 else r for r in rungs
    )


def _places(
    longer: Sequence[float], object_size: float, ratio: float, counts: tuple[int, int, int], max_zoom: float | None
) -> list[float]:
    """A class's sizes, rising: logarithms to the base ``ratio`` of multiples of ``object_size``.

    ``counts`` are ``least``, ``most`` and ``larger`` of `ladder`.
    """
    least, most, larger = counts
    middle, smallest, largest = (
        math.log(float(size) / object_size) / math.log(ratio) for size in (np.median(longer), min(longer), max(longer))
    )
    low = max(min(math.floor(smallest - middle + 0.5) - 1, -least), -most)
    finest: float = -math.inf if max_zoom is None else math.ceil(-math.log(max_zoom) / math.log(ratio) - middle - 1e-9)
    low = int(max(low, min(finest, 0)))
    high = max(min(max(math.floor(largest - middle + 0.5) + 1, larger), 2 * most), min(least, most))
    return [middle + k for k in range(low, high + 1)]


def _level(place: float, per_level: int, offset: float) -> float:
    """The place whose things appear at the middle size in the level that is nearest to this one."""
    return offset + per_level * math.floor((place - offset) / per_level + 0.5 - 1e-6)


def _rung(place: float, object_size: float, ratio: float, per_level: int, offset: float) -> Rung:
    level = _level(place, per_level, offset)
    # To the last bits the same in every level, or a template would be made for each.
    beside = round(place - level, 6)
    step = max(1, round(ratio**level * UNIT))
    # Long steps share a divisor with the unit, as large as a few thousandths of them: see `level`.
    coarse = 2 ** min(max(step.bit_length() - STEP_BITS, 0), UNIT.bit_length() - 1)
    return Rung(round(step / coarse) * coarse, object_size * ratio**beside)
