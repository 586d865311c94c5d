"""Which chips train and which validate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from siamese_sat.data.chip import Chips
from siamese_sat.errors import InputError

Places = npt.NDArray[np.int64]


def split_chips(
    chips: Chips, trained: int, val_fraction: float, by: Literal["chip", "scene"], seed: int
) -> tuple[Places, Places]:
    """Positions of training chips and of validation chips.

    Chips of held-out classes never train. By chip, all of them validate. By scene, those in validation scenes do, the
    others are left out; scenes whose objects are all held out validate, background and all.

    Args:
        chips: class numbers from ``trained`` on are of held-out classes.
        trained: number of classes that are trained.
        val_fraction: part of each trained class (or of the scenes that have one) that validates, in 0..1.
        by: ``chip`` stratifies by class; ``scene`` keeps a scene on one side.
        seed: of the draw.

    Raises:
        InputError: too few scenes, or fewer than two validation chips of a held-out class.
    """
    labels = chips.labels.numpy()
    held = labels >= trained
    rng = np.random.default_rng(seed)

    def draw(items: Sequence[str] | Places) -> list[Any]:
        # At least one on either side; a class of one chip is trained on.
        count = min(max(1, round(val_fraction * len(items))), len(items) - 1)
        drawn: list[Any] = rng.permutation(items)[:count].tolist()
        return drawn

    if by == "scene":
        # Scenes of background alone are trained on: to validate needs objects.
        objects = [(s, h) for s, c, h in zip(chips.scenes, labels, held, strict=True) if c != chips.background]
        homes = sorted({s for s, h in objects if not h})
        if len(homes) < 2:
            raise InputError("data.split=scene needs at least two labelled scenes; use data.split=chip.")
        validating = {*draw(homes), *({s for s, _ in objects} - set(homes))}
        val = np.flatnonzero(np.isin(chips.scenes, sorted(validating)))
    else:
        drawn = [i for c in np.unique(labels[~held]) for i in draw(np.flatnonzero(labels == c))]
        val = np.array(sorted([*drawn, *np.flatnonzero(held).tolist()]), dtype=np.int64)
    for number, name in enumerate(chips.classes[trained:], start=trained):
        there = int((labels[val] == number).sum())
        if there < 2:
            raise InputError(
                f"data.holdout_classes: validation has {there} chip(s) of {name!r}, and needs one to show and one to "
                f"find{'; use data.split=chip' if by == 'scene' else ''}."
            )
    return np.setdiff1d(np.flatnonzero(~held), val), val
