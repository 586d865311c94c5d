from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from siamese_sat.errors import InputError
from siamese_sat.report.page import Section, write_page


class Reader(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "p", "h1", "h2"):
            self.cells.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def test_text_and_tables_are_escaped_and_formatted(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"<b>": ["<script>x</script>", None], "n": [12345, 6], "x": [1e-4, np.nan], "ok": [True, False]}
    )
    path = write_page(tmp_path / "p.html", "A & <B>", [Section("H<1>", "one <i>\n\n\n\ntwo", frame)])
    reader = read(path)
    assert reader.cells == [
        "A & <B>", "H<1>", "one <i>", "two", "<b>", "n", "x", "ok",
        "<script>x</script>", "12,345", "1.0e-04", "True", "\u2013", "6", "\u2013", "False",
    ]  # fmt: skip
    assert not {"script", "i", "b", "link"} & {tag for tag, _ in reader.tags}
    numbers = [attrs.get("class") for tag, attrs in reader.tags if tag == "td"]
    assert numbers[:4] == [None, "number", "number", None]


def test_images_travel_inside_the_page(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large_one.png")
    small = np.zeros((4, 6, 3), dtype=np.uint8)
    small[1, 2] = (255, 0, 7)
    Image.fromarray(small).save(tmp_path / "small.png")
    images = [tmp_path / "large_one.png", tmp_path / "small.png"]
    path = write_page(tmp_path / "p.html", "t", [Section("h", images=images)])
    pictures = [attrs for tag, attrs in read(path).tags if tag == "img"]
    kinds, opened = [], []
    for attrs in pictures:
        found = re.fullmatch(r"data:image/(\w+);base64,(.*)", attrs["src"] or "")
        assert found
        kinds.append(found[1])
        opened.append(Image.open(io.BytesIO(base64.b64decode(found[2]))))
    assert kinds == ["jpeg", "png"]
    assert [o.format for o in opened] == ["JPEG", "PNG"]
    assert (np.asarray(opened[1]) == small).all()
    assert pictures[0]["alt"] == "large one"
    assert (pictures[1]["width"], pictures[1]["height"]) == ("6", "4")
    assert path.stat().st_size < (tmp_path / "large_one.png").stat().st_size


def test_a_page_refuses_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    for name in ("x.png", "gone.png"):
        with pytest.raises(InputError, match=name):
            write_page(tmp_path / "p.html", "t", [Section("h", images=[tmp_path / name])])
    assert not (tmp_path / "p.html").exists()
