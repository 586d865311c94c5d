from __future__ import annotations

import math
from typing import Any

import pytest

from siamese_sat.search import ladder as module
from siamese_sat.search.ladder import Rung, grained
from siamese_sat.search.level import LEAST_BLUR, SOFTNESS


def ladder(*args: Any, **options: Any) -> dict[str, tuple[int, ...]]:  # noqa: ANN401
    """Steps of each class where every size has a level of its own."""
    return {name: tuple(r.step for r in rungs) for name, rungs in module.ladder(*args, **options).items()}


def test_levels_of_one_size() -> None:
    """At a level whose step is the unit, 49 scene pixels are 49 level pixels."""
    assert ladder({"a": [49.0]}, 49.0, 1.25, 2, 2) == {"a": (82, 102, 128, 160, 200)}
    assert ladder({"a": [98.0]}, 49.0, 1.25, 1, 1) == {"a": (205, 256, 320)}
    assert ladder({"a": [49.0]}, 24.5, 2.0, 1, 1) == {"a": (128, 256, 512)}
    assert ladder({"a": [49.0]}, 49.0, 1.25, 0, 0) == {"a": (128,)}


def test_neighbouring_sizes_share_a_level() -> None:
    found = module.ladder({"a": [49.0]}, 49.0, 1.25, 2, 4)["a"]
    assert found == tuple(Rung(step, 49.0) for step in (82, 102, 128, 160, 200))
    found = module.ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, None, 3)["a"]
    assert found == (Rung(102, 39.2), Rung(102, 49.0), Rung(102, 61.25), Rung(200, 39.2), Rung(200, 49.0))
    assert module.ladder({"a": [49.0]}, 49.0, 1.25, 0, 0, None, 3)["a"] == (Rung(128, 49.0),)


def test_a_class_that_follows_changes_no_level_of_the_others() -> None:
    alone = module.ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, None, 3)["a"]
    for size in (20.0, 44.0, 300.0):
        sizes = {"a": [49.0], "b": [size]}
        found = module.ladder(sizes, 49.0, 1.25, 2, 4, None, 3, following=["b"])
        assert found["a"] == alone
        # Levels lie as far apart for the one that follows: where both have things of a size they share it.
        finest = min(r.step for r in alone)
        apart = [math.log(r.step / finest) / math.log(1.25) / 3 for r in found["b"]]
        assert apart == pytest.approx([round(v) for v in apart], abs=0.05)
    assert module.ladder({"a": [49.0], "b": [44.0]}, 49.0, 1.25, 2, 4, None, 3)["a"] != alone


def test_from_below_the_smallest_to_above_the_largest() -> None:
    found = ladder({"a": [128 / 1.25**3, 128.0, 128 * 1.25**2]}, 128.0, 1.25, 2, 4)["a"]
    assert found == tuple(round(128 * 1.25**k) for k in range(-4, 4))
    # What lies between levels belongs to the nearer one.
    found = ladder({"a": [128 / 1.25**2.4, 128.0, 128 * 1.25**2.6]}, 128.0, 1.25, 0, 9)["a"]
    assert found == tuple(round(128 * 1.25**k) for k in range(-3, 5))


def test_no_more_levels_than_asked_for_on_either_side_of_the_median() -> None:
    found = ladder({"a": [1.0, 128.0, 9000.0]}, 128.0, 1.25, 2, 3)["a"]
    assert found == tuple(round(128 * 1.25**k) for k in range(-3, 7)), "larger ones are cheap"
    found = ladder({"a": [127.0, 128.0, 9000.0]}, 128.0, 1.25, 2, 3)["a"]
    assert found == tuple(round(128 * 1.25**k) for k in range(-2, 7))
    assert ladder({"a": [127.0, 128.0, 128.0]}, 128.0, 1.25, 3, 2)["a"] == tuple(
        round(128 * 1.25**k) for k in range(-2, 3)
    )


@pytest.mark.parametrize("larger", [3, 5, 6, 9])
def test_larger_ones_are_sought_as_far_as_allowed(larger: int) -> None:
    found = ladder({"a": [127.0, 128.0, 129.0]}, 128.0, 1.25, 2, 3, larger=larger)["a"]
    assert found == tuple(round(128 * 1.25**k) for k in range(-2, min(larger, 6) + 1))
    # Beside a larger exemplar they change nothing, and below the median nothing at all.
    found = ladder({"a": [60.0, 128.0, 9000.0]}, 128.0, 1.25, 2, 3, larger=larger)["a"]
    assert found == ladder({"a": [60.0, 128.0, 9000.0]}, 128.0, 1.25, 2, 3)["a"]


@pytest.mark.parametrize("per_level", [1, 3, 4])
@pytest.mark.parametrize(("least", "most"), [(2, 4), (0, 2)])
def test_larger_ones_move_no_level(per_level: int, least: int, most: int) -> None:
    few, more = (module.ladder({"a": [49.0]}, 49.0, 1.25, least, most, None, per_level, (), n)["a"] for n in (0, 8))
    assert len(more) > len(few)
    assert more[: len(few)] == few


def test_what_follows_is_sought_no_larger_than_the_others_unless_it_is() -> None:
    sizes = {"a": [128.0], "b": [100.0], "c": [700.0]}
    found = ladder(sizes, 128.0, 1.25, 2, 4, following=["b", "c"], larger=8)
    assert max(found["b"]) <= 1.12 * max(found["a"])
    assert max(found["b"]) * 1.25 > max(found["a"]) / 1.12
    assert max(found["c"]) == pytest.approx(700 * 1.25**2, rel=0.12)
    assert len(ladder(sizes, 128.0, 1.25, 2, 4, larger=8)["c"]) == 11


@pytest.mark.parametrize("size", [300.0, 1500.0, 9000.0])
def test_long_steps_share_a_divisor_with_the_unit(size: float) -> None:
    found = ladder({"a": [size]}, 49.0, 1.25, 2, 4, larger=8)["a"]
    for k, step in enumerate(found, start=-2):
        assert step == pytest.approx(size / 49 * 1.25**k * 128, rel=0.004)
        assert step // math.gcd(step, 128) <= max(512, step / 128)


@pytest.mark.parametrize("per_level", [1, 3])
def test_the_largest_exemplar_is_sought_beside_many_small_ones(per_level: int) -> None:
    found = module.ladder({"a": [8.0, 12.0, 17.0, 58.0, 70.0]}, 49.0, 1.25, 2, 4, None, per_level)["a"]
    sought = sorted(r.appears * r.step / 128 for r in found)
    assert sought[-1] >= 1.1 * 70
    assert sought[-2] < 1.1 * 70


@pytest.mark.parametrize("per_level", [1, 2, 3])
@pytest.mark.parametrize("ratio", [1.25, 1.0, 1.1, 1.25**0.5, 1.25**-1.5, 3.7, 0.11, 0.9])
def test_classes_share_levels_but_each_has_its_own_sizes(ratio: float, per_level: int) -> None:
    sizes = {"a": [40.0, 44.0, 46.0], "b": [44.0 * ratio]}
    found = module.ladder(sizes, 49.0, 1.25, 2, 4, None, per_level)
    assert list(found) == ["a", "b"]
    alone = {name: module.ladder({name: own}, 49.0, 1.25, 2, 4, None, per_level)[name] for name, own in sizes.items()}
    for name, rungs in found.items():
        sought, own = ([r.appears * r.step / 128 for r in some] for some in (rungs, alone[name]))
        assert sought == pytest.approx(own, rel=0.1 if ratio == 0.11 else 0.02), "steps are whole"
        # Nothing is sought much smaller or larger than where half a rung lies between sizes and levels.
        assert all(abs(math.log(r.appears / 49, 1.25)) <= per_level / 2 + 1e-3 for r in rungs)
        assert len({r.appears for r in rungs}) <= per_level
    # Levels lie as far apart as rungs that share one reach.
    first = min(r.step for rungs in found.values() for r in rungs)
    for step in {r.step for rungs in found.values() for r in rungs}:
        apart = math.log(step / first, 1.25) / per_level
        assert apart == pytest.approx(round(apart), abs=0.2 if ratio == 0.11 else 0.05)


def test_neighbours_of_one_level_share_the_others() -> None:
    found = ladder({"a": [40.0], "b": [40.0 * 1.25]}, 49.0, 1.25, 2, 4)
    assert found["b"][:-1] == found["a"][1:]


def test_tiny_things_have_whole_steps() -> None:
    assert ladder({"a": [0.6]}, 49.0, 1.25, 3, 4) == {"a": (1, 2, 3)}
    assert ladder({"a": [0.1]}, 49.0, 1.25, 1, 1) == {"a": (1,)}


def test_no_level_magnifies_more_than_asked_but_the_exemplars_own() -> None:
    every = ladder({"a": [49.0]}, 49.0, 1.25, 2, 4)["a"]
    assert ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, max_zoom=1.6)["a"] == every
    assert ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, max_zoom=1.3)["a"] == every[1:]
    assert ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, max_zoom=1.25)["a"] == every[1:]
    assert ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, max_zoom=1.2)["a"] == every[2:]
    assert ladder({"a": [49.0]}, 49.0, 1.25, 2, 4, max_zoom=0.1)["a"] == every[2:], "the median exemplar's stays"
    # In one class only; the other's levels are its own.
    both = ladder({"a": [49.0], "b": [490.0]}, 49.0, 1.25, 2, 4, max_zoom=0.9)
    assert both["a"] == every[2:]
    assert both["b"] == ladder({"a": [49.0], "b": [490.0]}, 49.0, 1.25, 2, 4)["b"]


@pytest.mark.parametrize("per_level", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [[49.0], [14.0, 6.0, 30.0, 12.0, 50.0], [200.0, 90.0]])
def test_sizes_that_share_a_level_are_those_of_levels_of_their_own(per_level: int, sizes: list[float]) -> None:
    """What is sought is the same, in fewer levels and less of them."""
    alone, shared = (module.ladder({"a": sizes}, 49.0, 1.25, 2, 4, None, n)["a"] for n in (1, per_level))
    assert len(alone) == len(shared)
    sought = [sorted(r.step * r.appears / 128 for r in found) for found in (alone, shared)]
    assert sought[1] == pytest.approx(sought[0], rel=0.06), "steps are whole"
    assert len({r.step for r in shared}) == math.ceil(len(alone) / per_level)
    assert {r.appears for r in shared} <= {49 * 1.25 ** (i - (per_level - 1) / 2) for i in range(per_level)}
    # The smallest are sought at the smallest size that there is: the finest level is as coarse as can be.
    assert min(shared, key=lambda r: r.step * r.appears).appears == pytest.approx(49 * 1.25 ** (-(per_level - 1) / 2))


def test_levels_are_shared_by_classes_too() -> None:
    found = module.ladder({"a": [49.0], "b": [49.0 * 1.25]}, 49.0, 1.25, 2, 4, None, 3)
    assert found["a"] == (Rung(102, 39.2), Rung(102, 49.0), Rung(102, 61.25), Rung(200, 39.2), Rung(200, 49.0))
    assert found["b"] == (Rung(102, 49.0), Rung(102, 61.25), Rung(200, 39.2), Rung(200, 49.0), Rung(200, 61.25))


@pytest.mark.parametrize("per_level", [1, 3])
@pytest.mark.parametrize("size", [8.0, 12.5, 17.0, 24.0])
def test_levels_of_larger_things_are_blurred_to_the_detail_of_the_median_exemplars(size: float, per_level: int) -> None:
    rungs = module.ladder({"a": [size]}, 49.0, 1.25, 2, 4, None, per_level, (), 8)["a"]
    found = grained(rungs, size)
    assert [(r.step, r.appears) for r in found] == [(r.step, r.appears) for r in rungs]
    (near,) = {r.step for r in rungs if r.size == pytest.approx(size, rel=0.1)}
    for rung in found:
        if rung.step <= near:
            assert rung.grain == rung.blur == 0
        elif rung.grain:
            assert rung.grain == 128 / near
            # As soft as the level of the exemplars, less what this one is already.
            assert rung.blur == pytest.approx(SOFTNESS * math.sqrt((128 / near) ** 2 - max(128 / rung.step, 1) ** 2))
        else:
            assert SOFTNESS**2 * ((128 / near) ** 2 - max(128 / rung.step, 1) ** 2) < LEAST_BLUR**2
    blurs = [r.blur for r in found]
    assert blurs == sorted(blurs), "the larger the more"
    assert blurs[-1] >= LEAST_BLUR


def test_where_exemplars_show_all_detail_nothing_is_blurred() -> None:
    rungs = module.ladder({"a": [60.0]}, 49.0, 1.25, 2, 4, None, 3, (), 8)["a"]
    assert grained(rungs, 60.0) == rungs


def test_rungs_may_follow_the_exemplars_of_another_class() -> None:
    rungs = module.ladder({"a": [12.0], "b": [60.0]}, 49.0, 1.25, 2, 4, None, 3, (), 8)
    assert {r.grain for r in grained(rungs["b"], 60.0)} == {0}
    alike = {r.step: r.grain for r in grained(rungs["a"], 12.0)}
    found = grained(rungs["b"], 12.0, rungs["a"])
    shared = [r for r in found if r.step in alike]
    assert shared
    assert all(r.grain == alike[r.step] > 0 for r in shared)
