from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from siamese_sat.data.scene import Scene
from siamese_sat.errors import InputError
from siamese_sat.search.detect import Candidates
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.rerank import FLOOR
from siamese_sat.search.unlike import Unlike
from tests.conftest import make_scene, ramp
from tests.search.conftest import correlation_model, engine_of

PLACES = {  # class: (x, score) of 10 pixel boxes
    "boat": [(0, 0.8), (50, 0.6), (100, 0.4)],
    "raft": [(50, 0.7)],
    "jetty": [(52, 0.8), (200, 0.9)],
}


class Told:
    """Finds what `PLACES` says of the exemplars' classes, marked ones by their bare names."""

    def prepare(self, model: object, engine: object, exemplars: Sequence[Exemplar], *rest: object) -> None:
        self.classes = sorted({e.class_name for e in exemplars})

    def windows(self, scene: Scene) -> dict[str, int]:
        return dict.fromkeys(self.classes, 5)

    def candidates(self, scene: Scene, thresholds: Mapping[str, float]) -> Iterator[Candidates]:
        for number, name in enumerate(self.classes):
            rows = [(x, s) for x, s in PLACES[name.rsplit(" ", 1)[-1]] if s >= thresholds[name]]
            boxes = np.array([[x, 0, x + 10, 10] for x, _ in rows], float).reshape(-1, 4)
            yield Candidates(boxes, boxes, np.full(len(rows), number), np.array([s for _, s in rows]))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return make_scene(tmp_path / "a.tif", ramp(1, 8, 8))


def prepared(scene: Scene, *negatives: str, told: Told | None = None) -> Unlike:
    method = Unlike(told or Told(), [Exemplar(n, scene, (0, 0, 1, 1)) for n in negatives])  # type: ignore[arg-type]
    model = correlation_model()
    shown = [Exemplar(n, scene, (0, 0, 1, 1)) for n in ("boat", "raft")]
    method.prepare(model, engine_of(model), shown, lambda s: model.radiometry, [scene])
    return method


def scores(method: Unlike, scene: Scene, least: float) -> dict[tuple[str, float], float]:
    found = Candidates.join(list(method.candidates(scene, {"boat": least, "raft": least})))
    names = [method.classes[i] for i in found.classes]
    return {(n, b[0]): round(float(s), 6) for n, b, s in zip(names, found.boxes, found.scores, strict=True)}


def test_negatives_lower_what_lies_where_they_do(scene: Scene) -> None:
    method = prepared(scene, "jetty")
    assert method.classes == ["boat", "raft"]
    assert method.windows(scene) == {"boat": 5, "raft": 5}
    assert scores(method, scene, 0.0) == {
        ("boat", 0): 0.8, ("boat", 50): 0.45, ("boat", 100): 0.4, ("raft", 50): round(0.49 / 0.8, 6),
    }  # fmt: skip
    assert scores(method, scene, 0.42) == {("boat", 0): 0.8, ("boat", 50): 0.45, ("raft", 50): round(0.49 / 0.8, 6)}


def test_negatives_of_a_class_are_against_it_alone(scene: Scene) -> None:
    found = scores(prepared(scene, "boat"), scene, 0.0)
    assert found[("raft", 50)] == 0.7
    assert found[("boat", 0)] == 0.8, "as much like what it is as like what it is not"
    assert scores(prepared(scene, "raft"), scene, 0.0)[("boat", 50)] == 0.6


def test_both_are_measured_on_the_scale_of_what_is_sought(scene: Scene) -> None:
    """Of what three boats make of a place and what one mistake does, the numbers do not mean the same."""

    class Scaled(Told):
        def on_scale(self, number: int, found: Candidates) -> npt.NDArray[np.float64]:
            assert self.classes[number] in ("boat", "raft")
            assert {self.classes[c].rsplit(" ", 1)[-1] for c in found.classes} <= {"jetty"}
            return found.scores * (1.0 if self.classes[number] == "boat" else 0.5)

    method = prepared(scene, "jetty", told=Scaled())
    found = scores(method, scene, 0.0)
    assert found[("boat", 50)] == 0.45
    assert found[("raft", 50)] == 0.7


def test_what_is_marked_does_not_come_back(tmp_path: Path, scene: Scene) -> None:
    """Where the negative itself lies, in its own scene and of the class that it is none of."""
    other = make_scene(tmp_path / "b.tif", ramp(1, 8, 8))
    radiometry = correlation_model().radiometry
    shown = [Exemplar(n, scene, (0, 0, 1, 1)) for n in ("boat", "raft")]
    for box in [(50, 0, 60, 10), (53, 2, 65, 14), (48, 0, 56, 10)]:  # the same, one round its centre, one beside it
        method = Unlike(Told(), [Exemplar("raft", scene, box)])  # type: ignore[arg-type]
        model = correlation_model()
        method.prepare(model, engine_of(model), shown, lambda s: radiometry, [scene, other])
        assert scores(method, scene, 0.0) == {
            ("boat", 0): 0.8, ("boat", 50): 0.6, ("boat", 100): 0.4, ("raft", 50): FLOOR,
        }  # fmt: skip
        assert ("raft", 50) not in scores(method, scene, 0.05)
        assert scores(method, other, 0.0)[("raft", 50)] == 0.7, "as likely as what it is unlike"


def test_what_is_unlike_still_says_so(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PLACES, "boat", [(200, 0.1), (52, 0.01)])
    found = scores(prepared(scene, "jetty"), scene, 0.0)
    assert found[("boat", 200)] == FLOOR, "0.01 by the negative at 0.9"
    assert found[("boat", 52)] == round(0.01**2 / 0.8, 6)


def test_negatives_alone_are_nothing(scene: Scene) -> None:
    model = correlation_model()
    with pytest.raises(InputError, match="Negatives alone"):
        Unlike(Told(), [Exemplar("a", scene, (0, 0, 1, 1))]).prepare(  # type: ignore[arg-type]
            model, engine_of(model), [], lambda s: model.radiometry, [scene]
        )
