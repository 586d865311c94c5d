"""The colours of classes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), those first that stand out from fields and water, and a
# violet that the colour-blind tell from them; then each the one furthest in CIELAB from all before it and from the
# white of truth. Further classes begin again.
PALETTE = (
    "#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#D55E00", "#009E73", "#0072B2", "#8700FF",
    "#00FF00", "#FF005A", "#9678FF", "#695A1E", "#FF00C3", "#96FF87", "#D2F0C3", "#00FFFF",
    "#FFB496", "#69961E", "#962D96", "#A53C3C", "#969696", "#C3B45A", "#FF96FF", "#006969",
)  # fmt: skip

# Okabe and Ito's palette in an order for white paper, where its yellow would be lost.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
STYLES = ("solid", (0, (4, 2)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))  # each further round of the colours has another
HATCHES = (None, "/////", ".....", "xxxxx")  # likewise, of bars


def class_colours(classes: Iterable[str]) -> dict[str, str]:
    """A colour for every class; those of the first 24 differ."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(classes))}


def ink_on(colour: str) -> str:
    """Black or white, whichever is read better on a colour (WCAG 2.2, relative luminance)."""
    part = np.asarray(to_rgb(colour))
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "white"


def strokes(number: int) -> dict[str, Any]:
    """How the line of that number is drawn, that of a class alike in all diagrams: 28 differ."""
    style = STYLES[number // len(LINES) % len(STYLES)]
    return {"color": LINES[number % len(LINES)], "lw": 1.8, "ls": style}


def fills(number: int) -> dict[str, Any]:
    """How bars of that number are filled: where lines are broken, they are hatched."""
    hatch = HATCHES[number // len(LINES) % len(HATCHES)]
    return {
        "color": LINES[number % len(LINES)],
        "hatch": hatch,
        "edgecolor": "white" if hatch else None,
        "linewidth": 0,
    }
