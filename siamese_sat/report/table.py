"""Detections as rows: CSV, the table on the terminal, and the doors to the other formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from rasterio.crs import CRS
from rich import box
from rich.table import Table
from rich.text import Text

from siamese_sat.errors import InputError
from siamese_sat.report.coco import write_coco
from siamese_sat.report.files import replacing
from siamese_sat.report.place import COLUMNS, MAP, PIXELS, with_map_coordinates
from siamese_sat.report.vector import write_vector

__all__ = ["class_table", "with_map_coordinates", "write_coco", "write_csv", "write_vector"]

CsvStyle = Literal["default", "challenge"]


def write_csv(detections: pd.DataFrame, path: str | Path, style: CsvStyle = "default") -> Path:
    """Writes detections as CSV, UTF-8.

    Args:
        detections: one row per box, best first; the order is kept.
        path: file to write; one that is there is replaced at once, or left alone when writing fails.
        style: ``default`` has a header and, behind the seven columns, whatever further columns the table has;
            ``challenge`` is what the original wrote: no header and exactly x_min, y_min, x_max, y_max,
            class_name, filename, score.

    Pixels have two decimals, none where they are whole; scores six; map coordinates nine in degrees (0.1 mm) and
    three in other units.

    Raises:
        InputError: unknown style, or the file cannot be written.
    """
    if style not in ("default", "challenge"):
        raise InputError(f"CSV style {style!r} is unknown; choose default or challenge.")
    path = Path(path)
    extra = [c for c in detections.columns if c not in COLUMNS] if style == "default" else []
    text = detections[COLUMNS + extra].copy()
    for column in PIXELS:
        text[column] = _formatted(detections[column], _pixel)
    text["score"] = _formatted(detections["score"], "{:.6f}".format)
    if set(MAP) <= set(extra):
        decimals = _decimals(detections)
        for column in MAP:
            pairs = zip(detections[column], decimals, strict=True)
            text[column] = ["" if pd.isna(v) else f"{v:.{d}f}" for v, d in pairs]
    with replacing(path) as temporary:
        text.to_csv(temporary, index=False, header=style == "default", lineterminator="\n", encoding="utf-8")
    return path


def class_table(
    detections: pd.DataFrame,
    classes: Sequence[str],
    scenes: int,
    windows: int | Mapping[str, int],
    seconds: float,
) -> Table:
    """A table for the terminal: what was searched and what was found, one row per class.

    Args:
        detections: one row per box.
        classes: the classes that were searched for; those without a detection have a row too.
        scenes: how many scenes were searched.
        windows: how many windows were compared, for all classes alike or for each.
        seconds: how long the search took.
    """
    table = Table(title=f"{len(detections)} detections", title_justify="left", title_style="bold")
    table.add_column("class", no_wrap=True)
    for heading in ("scenes", "windows", "windows/s", "detections", "best score"):
        table.add_column(heading, justify="right")
    for name in classes:
        found = detections.loc[detections["class_name"] == name, "score"]
        count = windows.get(name, 0) if isinstance(windows, Mapping) else windows
        rate = f"{count / seconds:,.0f}" if seconds > 0 else "-"
        best = f"{found.max():.2f}" if len(found) else "-"
        # Text, not str: a class called "[red]" is a name and no mark-up.
        table.add_row(Text(name), f"{scenes:,}", f"{count:,}", rate, f"{len(found):,}", best)
    return table


def frame_table(frame: pd.DataFrame, title: str) -> Table:
    """Any table of figures for the terminal, its index in the first column."""
    # Many columns in 80 letters: no room for a frame.
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column(str(frame.index.name or ""), no_wrap=True)
    for heading in frame.columns:
        table.add_column(str(heading), justify="right")
    for name, row in frame.iterrows():
        cells = [f"{v:,.3f}" if isinstance(v, float) and not v.is_integer() else f"{v:,.0f}" for v in row.tolist()]
        table.add_row(Text(str(name)), *(c if c != "nan" else "-" for c in cells))
    return table


def _formatted(values: pd.Series, form: Callable[[float], str]) -> list[str]:
    return ["" if pd.isna(value) else form(float(value)) for value in values]


def _pixel(value: float) -> str:
    text = f"{value:.2f}".removesuffix(".00")
    return "0" if text == "-0" else text


def _decimals(detections: pd.DataFrame) -> list[int]:
    systems = detections["crs"] if "crs" in detections else pd.Series([None] * len(detections))
    known = {name: 9 if CRS.from_user_input(name).is_geographic else 3 for name in systems.dropna().unique()}
    return [known.get(name, 9) for name in systems]
