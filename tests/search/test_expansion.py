from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.search.detect import Candidates
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.expansion import expand
from tests.conftest import make_scene, ramp

# Left side of 10 pixel boxes and score; the first is the exemplar itself, the last is cut by the border.
PLACES = {"boat": [(20, 0.99), (40, 0.9), (60, 0.8), (80, 0.65), (100, 0.5), (191, 0.95)], "raft": [(130, 0.7)]}


@dataclass
class Told:
    """Finds what `PLACES` says, and remembers what it was prepared with."""

    box_scale: float = 1.0
    classes: list[str] = field(default_factory=list)
    seen: list[list[Exemplar]] = field(default_factory=list)

    def prepare(self, exemplars: Sequence[Exemplar]) -> None:
        self.classes = sorted({e.class_name for e in exemplars})
        self.seen.append(list(exemplars))

    def windows(self, scene: Scene) -> dict[str, int]:
        return dict.fromkeys(self.classes, 5)

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        for number, name in enumerate(self.classes):
            rows = [(x, s) for x, s in PLACES[name] if s >= thresholds[name]]
            grown = 5 * (self.box_scale - 1)
            boxes = np.array([[x - grown, 20 - grown, x + 10 + grown, 30 + grown] for x, _ in rows], float)
            boxes = boxes.reshape(-1, 4)
            yield Candidates(boxes, boxes, np.full(len(rows), number), np.array([s for _, s in rows]))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "a.tif", ramp(1, 60, 200))


def shown(scene: Scene) -> list[Exemplar]:
    return [Exemplar("boat", scene, (20.0, 20.0, 30.0, 30.0)), Exemplar("raft", scene, (150.0, 5.0, 160.0, 15.0))]


def grown(method: Told, scene: Scene, **settings: float) -> list[Exemplar]:
    method.prepare(shown(scene))
    return expand(method, method.prepare, shown(scene), {"a": scene}, 0.1, **settings)  # type: ignore[arg-type]


def lefts(exemplars: Sequence[Exemplar], name: str) -> list[float]:
    return [round(e.box[0], 6) for e in exemplars if e.class_name == name]


def test_the_surest_join_but_neither_the_exemplar_itself_nor_what_a_border_cuts(scene: Scene) -> None:
    method = Told()
    found = grown(method, scene, rounds=1, hits=2, least=0.6)
    assert lefts(found, "boat") == [20, 40, 60]
    assert lefts(found, "raft") == [150, 130]
    assert method.seen == [shown(scene), found]


def test_only_what_is_sure_enough_joins(scene: Scene) -> None:
    assert lefts(grown(Told(), scene, rounds=1, least=0.7), "boat") == [20, 40, 60]
    assert lefts(grown(Told(), scene, rounds=1, least=0.0), "boat") == [20, 40, 60, 80, 100]


def test_boxes_do_not_grow_from_round_to_round(scene: Scene) -> None:
    found = grown(Told(box_scale=1.4), scene, rounds=3, hits=1, least=0.6)
    assert lefts(found, "boat") == [20, 40]
    assert found[2].box == pytest.approx((40, 20, 50, 30))


def test_nothing_happens_without_rounds_and_it_ends_where_nothing_is_sure(scene: Scene) -> None:
    method = Told()
    assert grown(method, scene) == shown(scene)
    assert len(method.seen) == 1
    assert grown(method, scene, rounds=5, least=1.0) == shown(scene)
    assert len(method.seen) == 2


@pytest.mark.parametrize("settings", [{"rounds": -1}, {"hits": 0}, {"least": 1.5}, {"least": -0.1}])
def test_settings_that_cannot_be(scene: Scene, settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"search\.expansion"):
        grown(Told(), scene, **settings)


def test_an_exemplar_given_by_another_path_does_not_join_again(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = Told()
    given = [replace(e, scene=replace(e.scene, path="a.tif")) for e in shown(scene)]
    method.prepare(given)
    found = expand(method, method.prepare, given, {"a": scene}, 0.1, rounds=1, hits=1)  # type: ignore[arg-type]
    assert lefts(found, "boat") == [20, 40]


def test_without_exemplars_there_is_nothing_to_add_to(scene: Scene) -> None:
    """A training's own classes would give way to the few that have a sure hit."""
    with pytest.raises(InputError, match="give some"):
        expand(Told(), Told().prepare, [], {"a": scene}, 0.1, rounds=1)  # type: ignore[arg-type]
