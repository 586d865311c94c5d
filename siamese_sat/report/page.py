"""One HTML page that can be mailed: no script, nothing to fetch."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype, is_numeric_dtype
from PIL import Image

from siamese_sat.errors import InputError
from siamese_sat.report.files import replacing

# A satellite picture is ten times smaller as JPEG and looks the same; line drawings are smaller as PNG.
JPEG_ABOVE_BYTES = 400_000

STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #5d6875; --paper: #fbfaf8; --card: #ffffff;
  --line: #dcdfe3; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #9aa5b1; --paper: #16191d;
  --card: #1e2328; --line: #353c44; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
p { max-width: 46rem; margin: 0 0 .9rem; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-bottom: 1.6rem; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
section { border-top: 1px solid var(--line); padding: 1.6rem 0 .8rem; }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); width: fit-content; max-width: 100%; margin-bottom: 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .9rem; text-align: left; white-space: nowrap; }
th { position: sticky; top: 0; background: var(--card); color: var(--soft); font-weight: 600;
  box-shadow: inset 0 -1px var(--line); }
tbody tr + tr td { border-top: 1px solid var(--line); }
.number { text-align: right; }
figure { margin: 0 0 1.4rem; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px;
  background: #fff; }
figcaption { color: var(--soft); font-size: .85rem; margin-top: .4rem; }
@media print { .scroll { max-height: none; } section { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """A part of the page, shown in this order.

    Attributes:
        heading: its title.
        text: plain text; an empty line begins a new paragraph.
        table: shown without its index, or None.
        images: PNG or JPEG files, which are copied into the page; the file's stem becomes the caption.
    """

    heading: str
    text: str = ""
    table: pd.DataFrame | None = None
    images: list[Path] = field(default_factory=list)


def write_page(path: str | Path, title: str, sections: Iterable[Section]) -> Path:
    """Writes one self-contained HTML page; all text is escaped.

    Raises:
        InputError: an image cannot be read, or the page cannot be written.
    """
    path = Path(path)
    sections = list(sections)
    parts = [_section(number, section) for number, section in enumerate(sections, start=1)]
    links = "".join(f'<a href="#s{n}">{escape(s.heading)}</a>' for n, s in enumerate(sections, start=1))
    nav = f"<nav>{links}</nav>" if len(sections) > 2 else ""
    html = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>{nav}\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def _section(number: int, section: Section) -> str:
    paragraphs = (part.strip() for part in section.text.split("\n\n"))
    text = "".join(f"<p>{escape(part)}</p>" for part in paragraphs if part)
    table = "" if section.table is None else _table(section.table)
    images = "".join(_figure(Path(image)) for image in section.images)
    return f'<section id="s{number}"><h2>{escape(section.heading)}</h2>{text}{table}{images}</section>'


def _table(frame: pd.DataFrame) -> str:
    columns: list[tuple[str, str, list[str]]] = []
    for place, name in enumerate(frame.columns):
        values = frame.iloc[:, place]
        number = is_numeric_dtype(values.dtype) and not is_bool_dtype(values.dtype)
        form = _decimal if is_float_dtype(values.dtype) else "{:,}".format if number else str
        cells = ["\u2013" if pd.isna(v) else escape(form(v)) for v in values]
        columns.append((escape(str(name)), ' class="number"' if number else "", cells))
    head = "".join(f"<th{kind}>{name}</th>" for name, kind, _ in columns)
    rows = (
        "<tr>" + "".join(f"<td{kind}>{cells[row]}</td>" for _, kind, cells in columns) + "</tr>"
        for row in range(len(frame))
    )
    body = "".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _decimal(value: float) -> str:
    # A learning rate of 0.0001 is not 0.000.
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:,.3f}"


def _figure(image: Path) -> str:
    try:
        data = image.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            kind, (width, height) = picture.format, picture.size
            if kind == "PNG" and len(data) > JPEG_ABOVE_BYTES:
                buffer = io.BytesIO()
                picture.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
                kind, data = "JPEG", min(buffer.getvalue(), data, key=len)
    except OSError as error:
        raise InputError(f"{image} cannot be read as an image for the page ({error}).") from error
    mime = "png" if data.startswith(b"\x89PNG") else "jpeg"
    if kind not in ("PNG", "JPEG"):
        raise InputError(f"{image} is {kind}; a page takes PNG and JPEG.")
    caption = escape(image.stem.replace("_", " "))
    source = f"data:image/{mime};base64,{base64.b64encode(data).decode('ascii')}"
    return (
        f'<figure><img src="{source}" width="{width}" height="{height}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
