from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from siamese_sat.model.metrics import fixed_batch_means, prototype_accuracy, retrieval


def at(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_retrieval_by_hand() -> None:
    # Nearest two of 0: 10 a, 14 b; of 10: 14 b, 0 a; of 40: 60 b, 65 b; of 14: 10 a, 0 a; of 60: 65 b, 40 a;
    # of 65: 60 b, 40 a. R is 2, so a chip's average precision is 1/2, 1/4, 0, 0, 1/2, 1/2.
    found = retrieval(at(0, 10, 40, 14, 60, 65), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found["recall_at_1"] == pytest.approx(3 / 6)
    assert found["map_at_r"] == pytest.approx(1.75 / 6)


def test_perfect_retrieval_is_one() -> None:
    found = retrieval(at(0, 1, 2, 90, 91, 180, 181), torch.tensor([0, 0, 0, 1, 1, 2, 2]))
    assert found == pytest.approx({"recall_at_1": 1, "map_at_r": 1, "prototype_accuracy": 1})


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]])
def test_retrieval_is_nan_where_no_class_has_two(labels: list[int]) -> None:
    found = retrieval(at(*range(len(labels))), torch.tensor(labels))
    assert set(found) == {"recall_at_1", "map_at_r", "prototype_accuracy"}
    assert all(math.isnan(v) for v in found.values())


def test_prototype_accuracy_leaves_the_own_chip_out() -> None:
    # 0 is nearer to the mean of 0 and 60 than to 40.5, but the prototype without it is 60.
    assert prototype_accuracy(at(0, 60, 40, 41), torch.tensor([0, 0, 1, 1])) == pytest.approx(2 / 4)


def test_single_chips_are_candidates_but_not_asked() -> None:
    labels = torch.tensor([5, 5, 9, 9])
    assert prototype_accuracy(at(0, 20, 100, 120), labels) == 1
    # A single chip at 15 is nearer to 20 than 0 is, and to 0 than 20 is; itself it does not count.
    stolen = prototype_accuracy(at(0, 20, 100, 120, 15), torch.tensor([5, 5, 9, 9, 7]))
    assert stolen == pytest.approx(2 / 4)
    assert math.isnan(prototype_accuracy(at(0, 50), torch.tensor([0, 1])))


def test_fixed_batches_are_the_same_every_time() -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(40, 8), dim=1)
    labels = torch.arange(40) % 4
    batches: list[tuple[int, ...]] = []

    def figures(picked: Tensor, classes: Tensor) -> dict[str, Tensor]:
        batches.append(tuple(classes.tolist()))
        return {"loss": picked[0].sum() + classes.float().mean()}

    first = fixed_batch_means(embeddings, labels, figures, seed=3)
    seen = list(batches)
    torch.manual_seed(99)
    assert fixed_batch_means(embeddings, labels, figures, seed=3) == first
    assert batches[len(seen) :] == seen
    assert fixed_batch_means(embeddings, labels, figures, seed=4) != first
    assert len(seen) >= 32, "too few batches make a noisy figure"
    assert all(sorted(b) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3] for b in seen)


def test_figures_over_fixed_batches_are_means() -> None:
    values = iter(range(1000))
    taken: list[int] = []

    def figures(picked: Tensor, classes: Tensor) -> dict[str, Tensor]:
        taken.append(next(values))
        return {"loss": torch.tensor(float(taken[-1])), "twice": torch.tensor(2.0 * taken[-1])}

    found = fixed_batch_means(at(*range(0, 60, 5)), torch.arange(12) % 3, figures, seed=0)
    mean = sum(taken) / len(taken)
    assert found == pytest.approx({"loss": mean, "twice": 2 * mean})
