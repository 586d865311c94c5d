"""The figures behind the pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from siamese_sat.report import plot, quality, render


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, so that a test can ask what is in them."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: str | Path) -> Path:
        figures.append(figure)
        return render.save(figure, path)

    for module in (plot, quality):
        monkeypatch.setattr(module, "save", keep)
    return figures
