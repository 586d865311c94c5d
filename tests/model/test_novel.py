from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from siamese_sat.model.novel import few_shot_ap, novel_retrieval


def at(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], 1)


def members(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


def test_average_precision_by_hand() -> None:
    # Exemplar 0: other 4, then 10 of the class: 1/2. Exemplar 10: 4 first, then 0: 1/2.
    assert few_shot_ap(at(0, 4, 10, 90), members(1, 0, 1, 0), 0) == pytest.approx(1 / 2)
    # Two of 0, 10, 20 average to 5, 10 or 15; the third comes behind 26 only where it is the first: 25 and 11 away.
    found = few_shot_ap(at(0, 10, 20, 26), members(1, 1, 1, 0), 0, draws=300)
    assert found == pytest.approx((1 + 1 + 1 / 2) / 3, abs=0.06)


def test_exemplars_are_not_found_themselves() -> None:
    # Of a class of two that lie apart, the other one is last of all: an exemplar found would be first.
    assert few_shot_ap(at(0, 180, 10, 20, 30), members(1, 1, 0, 0, 0), 0) == pytest.approx(1 / 4)


def test_so_many_exemplars_are_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = torch.Tensor.mean
    monkeypatch.setattr(torch.Tensor, "mean", lambda self, *a: seen.append(len(self)) or original(self, *a))
    few_shot_ap(at(*range(9)), members(*[1] * 8, 0), 0)
    assert seen == [5] * 10
    seen.clear()
    few_shot_ap(at(*range(9)), members(*[1] * 4, *[0] * 5), 0)
    assert seen == [3] * 10, "one must remain to be found"


def test_the_draws_follow_the_seed() -> None:
    rng = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(60, 8, generator=rng), dim=1)
    labels = torch.arange(60) % 4
    one, again, other = (novel_retrieval(embeddings, labels, 3, s) for s in (1, 1, 2))
    assert one == again
    assert one["novel_ap"] != other["novel_ap"]
    assert one["novel_recall_at_1"] == other["novel_recall_at_1"]


def test_each_held_out_class_weighs_alike() -> None:
    # Class 1 lies apart from all, class 2 in the midst of class 0.
    embeddings, labels = at(0, 4, 8, 90, 91, 92, 93, 2, 6), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2])
    found = novel_retrieval(embeddings, labels, known=1)
    second = few_shot_ap(embeddings, labels == 2, [0, 2])
    assert second < 0.6
    assert found["novel_ap"] == pytest.approx(np.mean([1, second]))
    assert found["novel_recall_at_1"] == pytest.approx(4 / 6), "of the chips"
    assert novel_retrieval(embeddings, labels, known=2) == pytest.approx({"novel_recall_at_1": 0, "novel_ap": second})


def test_a_collapse_finds_by_chance() -> None:
    labels = torch.arange(40) % 4
    found = novel_retrieval(at(0).expand(40, 2), labels, known=3)
    assert found["novel_ap"] == pytest.approx(5 / 35)  # five of the ten are shown


@pytest.mark.parametrize("labels", [[0, 0, 1], [0, 0, 2]])
def test_without_two_held_out_chips_there_is_nothing_to_say(labels: list[int]) -> None:
    assert novel_retrieval(at(0, 1, 2), torch.tensor(labels), known=2) == {}
