from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss, ProxyAnchorLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from siamese_sat.model.signs import distances, mean_cosine, plateau, triplet_margin

AB = torch.tensor([0, 0, 1, 1])


def at(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    angle = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angle.cos(), angle.sin()], 1)


def chord(degrees: float) -> float:
    """Distance of two unit vectors at this angle."""
    return 2 * math.sin(math.radians(degrees) / 2)


def test_mean_cosine_by_hand() -> None:
    # Pairs at 0, 60 and 90 degrees: 60 (1/2), 90 (0), 30 (sqrt 3 / 2).
    assert float(mean_cosine(at(0, 60, 90))) == pytest.approx((0.5 + 0 + math.sqrt(3) / 2) / 3, abs=1e-6)
    assert float(mean_cosine(at(33, 33, 33, 33))) == pytest.approx(1, abs=1e-6)


def test_distances_by_hand() -> None:
    found = distances(at(0, 20, 50, 170), AB)
    assert float(found["positive_distance"]) == pytest.approx((chord(20) + chord(120)) / 2, abs=1e-5)
    apart = [chord(50), chord(170), chord(30), chord(150)]
    assert float(found["negative_distance"]) == pytest.approx(sum(apart) / 4, abs=1e-5)
    # Farthest positive and nearest negative: 20 and 50, 20 and 30, 120 and 30, 120 and 150.
    assert float(found["active_triplets"]) == pytest.approx(1 / 4)
    assert float(distances(at(0, 20, 50, 170), AB, margin=0.18)["active_triplets"]) == pytest.approx(2 / 4)
    assert float(distances(at(0, 20, 50, 170), AB, margin=2)["active_triplets"]) == 1


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_collapse_is_active_with_and_without_a_margin(margin: float) -> None:
    found = distances(torch.eye(4)[0].expand(6, 4), torch.arange(6) % 2, margin)
    assert {k: float(v) for k, v in found.items()} == {
        "positive_distance": 0, "negative_distance": 0, "active_triplets": 1
    }  # fmt: skip


def test_a_batch_of_one_class_has_no_negatives() -> None:
    found = distances(at(0, 90), torch.tensor([3, 3]))
    assert float(found["positive_distance"]) == pytest.approx(chord(90))
    assert math.isnan(found["negative_distance"])
    assert math.isnan(found["active_triplets"])


@pytest.mark.parametrize("smooth", [True, False])
def test_the_plateau_is_the_loss_of_equal_embeddings(smooth: bool) -> None:
    loss = TripletMarginLoss(margin=0.5, smooth_loss=smooth)
    same = at(10, 10, 10, 10)
    assert float(loss(same, AB, BatchHardMiner()(same, AB))) == pytest.approx(plateau(loss), abs=1e-6)


@pytest.mark.parametrize(("loss", "margin"), [(MultiSimilarityLoss(), 0), (ProxyAnchorLoss(2, 4), 0)])
def test_only_a_triplet_loss_has_a_plateau_and_a_margin(loss: nn.Module, margin: float) -> None:
    assert plateau(loss) is None
    assert triplet_margin(loss) == margin
    assert triplet_margin(TripletMarginLoss(margin=0.3)) == 0.3
