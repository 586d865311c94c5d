from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.colors import to_rgb

from siamese_sat.report.colour import PALETTE, class_colours, ink_on
from siamese_sat.report.render import rgb_bands

Floats = npt.NDArray[np.float64]

# What the colour-blind see, in linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
SEEN = {
    "usual": np.eye(3),
    "protan": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deutan": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritan": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]])  # over D65


def linear(colours: list[str]) -> Floats:
    part = np.array([to_rgb(colour) for colour in colours])
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def differences(rgb: Floats) -> Floats:
    """Distances in CIELAB of all pairs of linear colours ``[n, 3]``."""
    x, y, z = np.cbrt(rgb.clip(0, 1) @ XYZ.T).T
    lab = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
    apart: Floats = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(len(rgb), 1)]
    return apart


def test_the_colours_of_many_classes_differ() -> None:
    colours = class_colours(f"class {i}" for i in range(24))
    assert len(set(colours.values())) == 24
    assert differences(linear([*PALETTE, "#FFFFFF"])).min() > 20, "2 is just seen"


@pytest.mark.parametrize("eye", SEEN)
def test_the_first_eight_differ_to_the_colour_blind_too(eye: str) -> None:
    assert differences(linear(list(PALETTE[:8])) @ SEEN[eye].T).min() > 12


def test_letters_are_read_on_every_colour() -> None:
    for colour in PALETTE:
        low, high = np.sort(linear([colour, ink_on(colour)]) @ XYZ[1])
        assert (high + 0.05) / (low + 0.05) > 4.5, colour


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["B", "G", "R", "NIR"], (2, 1, 0)),
        (["R", "G", "B"], (0, 1, 2)),
        (["NIR", "red", "Green", "blue"], (1, 2, 3)),
        (["NIR", "SWIR", "R"], (0, 1, 2)),
        (["PAN"], (0,)),
        (["B", "NIR"], (0,)),
    ],
)
def test_bands_are_known_by_their_names(names: list[str], shown: tuple[int, ...]) -> None:
    assert rgb_bands(names) == shown
