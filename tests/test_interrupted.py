"""A search that was interrupted goes on, and ends with the rows of one that was not."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hydra import compose, initialize_config_dir

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.model import checkpoint
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.embedder import EmbedderSpec
from siamese_sat.search.detect import Candidates
from siamese_sat.search.method import Divisible
from siamese_sat.search.parts import Parts
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.template import TemplateSearch
from siamese_sat.searching import search
from siamese_sat.synthetic import make_scene as draw
from tests.conftest import write_scene
from tests.search.conftest import Correlation, ground, plant, thing, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = [f"{number}.tif" for number in range(5)]
WINDOW = ("search/method=window", "search.method.calibration=training")
AGAIN = "scene(s) are taken from an earlier run"
# Killed as soon as two scenes are kept, in the midst of whatever else is going on.
CODE = """
import os, signal, sys
from hydra import compose, initialize_config_dir
from siamese_sat.search.parts import Parts
from siamese_sat.searching import search
kept, keep = [], Parts.keep
def and_die(self, name, found):
    keep(self, name, found)
    kept.append(name)
    if len(kept) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Parts.keep = and_die
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    search(compose("search", sys.argv[2:]))
"""


class Stopped(BaseException):
    """As a signal would: nobody catches it."""


class Steady(Correlation):
    """The same numbers whenever it is made, as a checkpoint's are."""

    def __init__(self, spec: EmbedderSpec | None = None) -> None:
        super().__init__(spec)
        for parameter in self.parameters():
            torch.nn.init.ones_(parameter)


@dataclass
class Desk:
    """Five scenes, and searches of them.

    Attributes:
        folder: where they lie.
        own: settings that say what is searched for, and by what.
        searched: names of the scenes that a method has looked at, in this process.
    """

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    own: list[str]
    searched: list[str] = field(default_factory=list)

    @property
    def parts(self) -> Path:
        return self.folder / "out" / "parts"

    def settings(self, out: str, *more: str) -> list[str]:
        return [
            f"scenes={self.folder / 'scenes'}", f"paths.output_dir={self.folder / out}", *self.own,
            "search.device=cpu", "search.precision=fp32", "search.threshold=0.1", "output.overlays=0",
            "output.page=false", "output.vector=[]", "output.coco=false", *more,
        ]  # fmt: skip

    def search(self, *more: str, out: str = "out") -> bytes:
        """The bytes of detections.csv."""
        self.searched.clear()
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            search(compose("search", self.settings(out, *more)))
        return (self.folder / out / "detections.csv").read_bytes()

    def stop(self, *more: str, after: int = 2) -> list[Path]:
        """A search that is stopped when so many scenes are kept; their files."""
        keep, kept = Parts.keep, list[str]()

        def and_stop(parts: Parts, name: str, found: Candidates) -> None:
            keep(parts, name, found)
            kept.append(name)
            if len(kept) == after:
                raise Stopped

        with self.monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(Parts, "keep", and_stop)
            self.search(*more)
        assert not (self.folder / "out" / "detections.csv").exists()
        return sorted(self.parts.glob("*/*.part"))


def counted(made: Desk) -> Desk:
    """The same, whose searches are counted."""
    of = WindowSearch.candidates_of

    def counting(some: Callable[..., Iterator[Candidates]]) -> Callable[..., Iterator[Candidates]]:
        def some_counted(method: Divisible, scene: Scene, *more: Any) -> Iterator[Candidates]:  # noqa: ANN401
            made.searched.append(scene.name)
            yield from some(method, scene, *more)

        return some_counted

    def of_counted(method: WindowSearch, scenes: Mapping[str, Scene], *more: Any) -> Any:  # noqa: ANN401
        made.searched.extend(scenes)
        yield from of(method, scenes, *more)

    for method in (TemplateSearch, WindowSearch):
        made.monkeypatch.setattr(method, "some", counting(method.some))
    made.monkeypatch.setattr(WindowSearch, "candidates_of", of_counted)
    return made


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Windows by plain correlation: quick."""
    monkeypatch.setattr(checkpoint, "Embedder", Steady)
    for number, name in enumerate(NAMES):
        land = ground(208, 208)
        # Each a little unlike the first, in which it is shown.
        boat = (thing(1, 40, 40) * 0.8 + thing(10 + number, 40, 40) * 0.2).astype(np.uint16)
        plant(land, boat if number else thing(1, 40, 40), 6 + 26 * (1 + number), 6 + 26)
        plant(land, thing(2, 40, 40), 6 + 26, 110)
        write_scene(tmp_path / "scenes" / name, land)
    model, first = write_checkpoint(tmp_path / "model.ckpt"), tmp_path / "scenes" / NAMES[0]
    boxes = f"exemplars.boxes=[[{first},32,32,72,72,boat]]"
    return counted(Desk(tmp_path, monkeypatch, [f"ckpt_path={model}", boxes, *WINDOW]))


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A real network."""
    for number, name in enumerate(NAMES):
        land, _ = draw(np.random.default_rng(number), 200, 220, ("storage tank",), 2, 20)
        write_scene(tmp_path / "scenes" / name, land[:, : 112 + 8 * number, :120])
    first = tmp_path / "scenes" / NAMES[0]
    boxes = f"exemplars.boxes=[[{first},30,30,70,66,thing],[{first},60,50,96,90,thing]]"
    return counted(Desk(tmp_path, monkeypatch, [boxes, "model=resnet18", "model.weights=null"]))


TEMPLATE = (
    "search.method.views=2",
    "search.method.samples=8",
    "search.method.max_levels=0",
    "search.method.min_levels=0",
)
RAY = ("engine=ray", "engine.workers=2", "engine.split_mpx=0.01")
no_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
WAYS = [
    pytest.param(TEMPLATE, id="template", marks=pytest.mark.slow),
    pytest.param(("search/method=window", "search.threshold=0"), id="window"),
    pytest.param((*TEMPLATE, *RAY), id="ray", marks=[pytest.mark.slow, no_ray]),
]


@pytest.mark.parametrize("way", WAYS)
def test_killed_and_started_again(network: Desk, way: Sequence[str], caplog: pytest.LogCaptureFixture) -> None:
    expected = network.search(*way, out="whole")
    assert expected.count(b"\n") > 5
    command = [sys.executable, "-c", CODE, str(ROOT / "conf"), *network.settings("out", *way)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (network.folder / "out" / "detections.csv").exists()
    assert len(list(network.parts.glob("*/*.part"))) == 2
    with caplog.at_level(logging.INFO):
        assert network.search(*way) == expected
    assert f"2 of 5 {AGAIN}" in caplog.text
    if "engine=ray" not in way:  # there, others count
        assert sorted(network.searched) == NAMES[2:]
    assert not network.parts.exists()


def test_all_scenes_done_are_all_taken(desk: Desk) -> None:
    expected = desk.search(out="whole")
    desk.stop(after=5)
    assert desk.search() == expected
    assert desk.searched == []


def test_what_changes_nothing_may_change(desk: Desk) -> None:
    expected = desk.search(out="whole")
    desk.stop()
    assert desk.search("output.overlays=1", "search.batch_size=7", "engine.split_mpx=1") == expected
    assert desk.searched == NAMES[2:]


def weigh(desk: Desk) -> None:
    class Other(Steady):
        def __init__(self, spec: EmbedderSpec | None = None) -> None:
            super().__init__(spec)
            torch.nn.init.zeros_(self.backbone.stem[0].bias)

    desk.monkeypatch.setattr(checkpoint, "Embedder", Other)


def calibrate(desk: Desk) -> None:
    write_checkpoint(desk.folder / "model.ckpt", calibration=Calibration(0.9, 0.0, "linear"))


def touch(desk: Desk) -> None:
    os.utime(desk.folder / "scenes" / NAMES[4], ns=(1, 1))


def brighten(desk: Desk) -> None:
    path = desk.folder / "scenes" / NAMES[0]
    about = path.stat()
    with rasterio.open(path, "r+") as target:
        target.write(target.read() // 2)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # of the same size, too


def mask(desk: Desk, width: int) -> None:
    path = desk.folder / "scenes" / NAMES[1]
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as target:
        target.write_mask(np.tile(np.arange(target.width) < width, (target.height, 1)))


OTHERS: list[Any] = [
    pytest.param(["search.nms_iou=0.5"], None, id="setting"),
    pytest.param(["search.scales=[1.5]"], None, id="setting of the method"),
    pytest.param(["search.threshold=0.2"], None, id="threshold"),
    pytest.param(["output.ranking=3"], None, id="ranking, for which everything is scored"),
    pytest.param(["negatives.boxes=[[{0}/scenes/1.tif,32,110,72,150,other]]"], None, id="negatives"),
    pytest.param(["exemplars.boxes=[[{0}/scenes/0.tif,32,110,72,150,boat]]"], None, id="exemplars"),
    pytest.param(["radiometry=per_scene"], None, id="radiometry"),
    pytest.param([], weigh, id="weights"),
    pytest.param([], calibrate, id="calibration"),
    pytest.param(["aoi=[0,0,180,180]"], None, id="area of interest"),
    pytest.param([], touch, id="time of a scene"),
    pytest.param([], brighten, id="pixels of a scene"),
]


@pytest.mark.parametrize(("settings", "change"), OTHERS)
def test_another_question_is_asked_of_all_scenes(
    desk: Desk, settings: list[str], change: Callable[[Desk], None] | None, caplog: pytest.LogCaptureFixture
) -> None:
    desk.stop()
    settings = [s.format(desk.folder) for s in settings]
    if change is not None:
        change(desk)
    with caplog.at_level(logging.INFO):
        found = desk.search(*settings)
    assert desk.searched == NAMES
    assert "what an earlier run had done is not used" in caplog.text
    assert AGAIN not in caplog.text
    (kept,) = desk.parts.iterdir()  # the right settings may come next
    os.utime(kept, (1, 1))
    assert found == desk.search(*settings)
    assert not desk.parts.exists(), "nobody has gone on with it for long"
    assert found == desk.search(*settings, out="whole")


def test_a_mask_beside_a_scene_counts_too(desk: Desk) -> None:
    mask(desk, 180)
    scene = desk.folder / "scenes" / NAMES[1]
    before = scene.stat()
    desk.stop()
    mask(desk, 90)
    assert Path(f"{scene}.msk").is_file()
    os.utime(scene, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scene.stat().st_size == before.st_size
    found = desk.search()
    assert desk.searched == NAMES
    assert found == desk.search(out="whole")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def no_file(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [cut_short, flip, no_file, lambda path: path.write_bytes(b"")])
def test_a_damaged_part_is_searched_again(
    desk: Desk, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    expected = desk.search(out="whole")
    first, second = desk.stop()
    damage(first)
    with caplog.at_level(logging.INFO):
        assert desk.search() == expected
    assert f"1 of 5 {AGAIN}" in caplog.text
    assert len(desk.searched) == 4
    assert [first.name] == [r.args[0].name for r in caplog.records if "is searched again" in r.msg]  # type: ignore[index,union-attr]
    assert second.name not in caplog.text


def test_what_is_half_written_counts_for_nothing(desk: Desk) -> None:
    expected = desk.search(out="whole")
    first, _ = desk.stop()
    first.rename(first.with_name(f".77-{first.name}"))
    assert desk.search() == expected
    assert len(desk.searched) == 4
    assert not desk.parts.exists()


def test_a_scene_that_failed_is_tried_again(desk: Desk) -> None:
    expected = desk.search(out="whole")
    of = WindowSearch.candidates_of

    def failing(method: WindowSearch, scenes: Mapping[str, Scene], *more: Any) -> Any:  # noqa: ANN401
        for name, found in of(method, scenes, *more):
            yield name, InputError("The disk is away.") if name == NAMES[1] else found

    with desk.monkeypatch.context() as patch:
        patch.setattr(WindowSearch, "candidates_of", failing)
        assert len(desk.stop(after=3)) == 3
    assert desk.search() == expected
    assert desk.searched == [NAMES[1], NAMES[4]]


def test_only_the_last_search_of_an_expansion_goes_on(desk: Desk) -> None:
    expanding = ("search.expansion.rounds=1", "search.expansion.hits=2", "search.expansion.least=0.2")
    expected = desk.search(*expanding, out="whole")
    assert desk.searched == NAMES * 2, "nothing joined"
    assert expected != desk.search(out="plain")
    desk.stop(*expanding)
    assert desk.search(*expanding) == expected
    assert desk.searched == [*NAMES, *NAMES[2:]]


def test_nothing_is_kept_where_nothing_is_wanted(desk: Desk) -> None:
    expected = desk.search(out="whole")
    keep = Parts.keep
    desk.monkeypatch.setattr(Parts, "keep", lambda *_: pytest.fail("A scene is kept."))
    assert desk.search("search.parts_dir=null") == expected
    desk.monkeypatch.setattr(Parts, "keep", keep)


def test_a_place_that_cannot_be_written_ends_no_search(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    expected = desk.search(out="whole")
    (desk.folder / "file").touch()
    assert desk.search(f"search.parts_dir={desk.folder / 'file'}") == expected
    assert caplog.text.count("cannot be written") == 1
    assert (desk.folder / "file").is_file()


def test_what_others_put_there_stays(desk: Desk) -> None:
    desk.stop()
    (desk.parts / "mine").mkdir()
    (desk.parts / "mine" / "notes.txt").touch()
    for folder in desk.parts.iterdir():
        os.utime(folder, (1, 1))
    desk.search("search.nms_iou=0.5")
    assert [p.name for p in desk.parts.rglob("*")] == ["mine", "notes.txt"]
