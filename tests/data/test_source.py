from __future__ import annotations

from pathlib import Path

import pytest

from siamese_sat.data.source import list_scenes, scene_keys
from siamese_sat.errors import InputError


@pytest.fixture(autouse=True)
def someone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in s3:// is only taken with credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """b.tif, a.TIF, c.png, notes.md and sub/d.jp2, all empty: nothing is opened here."""
    for name in ("b.tif", "a.TIF", "c.png", "notes.md", "sub/d.jp2", "bare/readme.md", "odd[1].tif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("{0}", ["a.TIF", "b.tif", "c.png", "odd[1].tif"]),
        ("{0}/b.tif", ["b.tif"]),
        ("{0}/odd[1].tif", ["odd[1].tif"]),
        ("{0}/?.tif", ["b.tif"]),
        ("{0}/**/*", ["a.TIF", "b.tif", "c.png", "odd[1].tif", "sub/d.jp2"]),
        (["{0}/c.png", "{0}", "{0}/sub"], ["c.png", "a.TIF", "b.tif", "odd[1].tif", "sub/d.jp2"]),
    ],
)
def test_every_form_of_setting(folder: Path, spec: str | list[str], expected: list[str]) -> None:
    filled = spec.format(folder) if isinstance(spec, str) else [s.format(folder) for s in spec]
    assert list_scenes(filled) == [str(folder / name) for name in expected]
    if isinstance(filled, str):
        assert list_scenes([filled]) == list_scenes(filled)


def test_a_text_file_names_paths_beside_itself(folder: Path) -> None:
    listing = folder / "scenes.txt"
    listing.write_text(f"# first\nsub/d.jp2\n\n{folder}/b.tif  # absolute\ns3://bucket/e.tif\n*.png\n")
    expected = [f"{folder}/sub/d.jp2", f"{folder}/b.tif", "s3://bucket/e.tif", f"{folder}/c.png"]
    assert list_scenes(str(listing)) == expected


@pytest.mark.parametrize("path", ["s3://b/a.tif", "https://h/a.tif?x=[1]*", "/vsizip/a.zip/a.tif"])
def test_remote_paths_go_to_gdal_untouched(path: str) -> None:
    assert list_scenes(path) == [path]


@pytest.mark.parametrize("spec", ["{0}/nothing.tif", "{0}/bare", "{0}/*.jpg", "{0}/missing.txt", "{0}/notes*"])
def test_what_names_no_raster_is_an_input_error(folder: Path, spec: str) -> None:
    with pytest.raises(InputError):
        list_scenes(spec.format(folder))
    with pytest.raises(InputError):
        list_scenes([])


def test_keys_are_short_where_they_can_be() -> None:
    paths = ["/x/a.tif", "/y/a.tif", "/x/b.tif"]
    assert scene_keys(paths) == {"/x/a.tif": "/x/a.tif", "/y/a.tif": "/y/a.tif", "b.tif": "/x/b.tif"}
