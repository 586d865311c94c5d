from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_metric_learning.losses import MultiSimilarityLoss, ProxyAnchorLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor, nn

from siamese_sat.data.chip import ChipSpec
from siamese_sat.errors import InputError
from siamese_sat.model.module import MetricLearner
from tests.model.conftest import RADIOMETRY, ROOT, tiny_embedder

LOSSES = sorted(f.stem for f in (ROOT / "conf" / "loss").glob("*.yaml"))


def learner(
    loss: nn.Module | None = None, miner: nn.Module | None = None, loss_lr_factor: float = 1.0
) -> MetricLearner:
    return MetricLearner(
        embedder=tiny_embedder(),
        loss=loss or TripletMarginLoss(margin=0.5, smooth_loss=True),
        miner=miner,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-4),
        radiometry=RADIOMETRY,
        classes=["a", "b", "background"],
        chip={"size": 32, "padding": 0.15, "shape": "stretched"},
        bands=[1, 2, 3, 4],
        loss_lr_factor=loss_lr_factor,
    )


def test_every_parameter_is_in_one_group_once() -> None:
    # By identity: by value, two BatchNorm weights of ones would count as one.
    module = learner()
    module.backbone_lr_factor = 0.1
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    head, backbone = optimizer.param_groups
    ids = [id(p) for group in (head, backbone) for p in group["params"]]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in module.parameters()}
    assert {id(p) for p in backbone["params"]} == {id(p) for p in module.embedder.backbone.parameters()}
    assert head["lr"] == pytest.approx(1e-3)
    assert backbone["lr"] == pytest.approx(1e-4)


def test_a_losss_own_parameters_learn_at_their_own_rate() -> None:
    loss = ProxyAnchorLoss(num_classes=3, embedding_size=16)
    module = learner(loss, loss_lr_factor=100)
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == pytest.approx(
        {"head": 1e-3, "backbone": 1e-3, "loss": 1e-1}
    )
    own = optimizer.param_groups[-1]["params"]
    assert len(own) == 1
    assert own[0] is loss.proxies
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted({id(p) for p in module.parameters()})
    for wrong in (0, "much"):
        with pytest.raises(InputError, match=rf"loss\.lr_factor={wrong!r} must be a number above 0"):
            learner(loss, loss_lr_factor=wrong)  # type: ignore[arg-type]


def test_the_loss_is_of_full_precision_under_autocast() -> None:
    embeddings = nn.functional.normalize(torch.randn(12, 16), dim=1)
    module = learner(MultiSimilarityLoss())
    expected = module.criterion(embeddings, torch.arange(12) % 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.criterion(embeddings, torch.arange(12) % 3), expected)


def test_the_criterion_is_the_originals_by_hand() -> None:
    # softplus(d(a, p) - d(a, n) + 0.5) of each anchor's farthest positive and nearest negative, then the mean.
    module = learner(miner=BatchHardMiner())
    angle = torch.deg2rad(torch.tensor([0.0, 30.0, 50.0, 170.0]))
    embeddings = torch.stack([angle.cos(), angle.sin()], 1)

    def distance(i: int, j: int) -> float:
        return float((embeddings[i] - embeddings[j]).norm())

    picks = [(0, 1, 2), (1, 0, 2), (2, 3, 1), (3, 2, 1)]
    expected = [math.log1p(math.exp(distance(a, p) - distance(a, n) + 0.5)) for a, p, n in picks]
    found = module.criterion(embeddings, torch.tensor([0, 0, 1, 1]))
    assert float(found) == pytest.approx(sum(expected) / 4, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_group_learns(name: str) -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [f"loss={name}"]).loss
    loss = instantiate(cfg.loss)
    if isinstance(loss, partial):
        loss = loss(num_classes=8, embedding_size=16)
    module = learner(loss, instantiate(cfg.miner) if cfg.miner is not None else None)
    labels = torch.arange(24) % 8
    value = module.criterion(module(torch.randn(24, 4, 32, 32)), labels)
    assert value.ndim == 0
    assert math.isfinite(value.item())
    assert value.item() > 0
    value.backward()
    for name_, parameter in module.embedder.named_parameters():
        assert parameter.grad is not None, name_
        assert parameter.grad.isfinite().all(), name_
    for parameter in (module.embedder.projection[0].weight, *loss.parameters()):
        assert parameter.grad.abs().sum() > 0


def logged(module: MetricLearner, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def log(name: str, value: Any, **options: Any) -> None:  # noqa: ANN401
        found[name] = value

    monkeypatch.setattr(module, "log", log)
    return found


def test_validation_is_of_the_whole_set_and_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner(miner=BatchHardMiner()).eval()
    found = logged(module, monkeypatch)
    chips, labels = torch.randn(20, 4, 32, 32), torch.arange(20) % 3

    def validate(parts: Iterator[Tensor]) -> dict[str, float]:
        with torch.no_grad():
            for i, part in enumerate(parts):
                module.validation_step((chips[part], labels[part]), i)
            module.on_validation_epoch_end()
        return dict(found)

    whole = validate(iter([torch.arange(20)]))
    assert set(whole) == {
        "val/loss", "val/mean_cosine", "val/recall_at_1", "val/map_at_r", "val/prototype_accuracy",
        "val/active_triplets", "val/positive_distance", "val/negative_distance",
    }  # fmt: skip
    assert all(math.isfinite(v) for v in whole.values())
    assert validate(iter(torch.arange(20).split(7))) == pytest.approx(whole, abs=1e-5)


def test_held_out_chips_change_only_their_own_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner(miner=BatchHardMiner()).eval()
    found = logged(module, monkeypatch)
    chips, labels = torch.randn(30, 4, 32, 32), torch.arange(30) % 5  # 3 and 4 are of no trained class
    with torch.no_grad():
        module.validation_step((chips[labels < 3], labels[labels < 3]), 0)
        module.on_validation_epoch_end()
        without = dict(found)
        found.clear()
        module.validation_step((chips, labels), 0)
        module.on_validation_epoch_end()
    assert set(found) - set(without) == {"val/novel_ap", "val/novel_recall_at_1"}
    assert 0 < found.pop("val/novel_ap") < 1
    assert 0 <= found.pop("val/novel_recall_at_1") < 1
    assert found == pytest.approx(without, abs=1e-5)


def test_what_cannot_be_said_is_not_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner().eval()
    found = logged(module, monkeypatch)
    with torch.no_grad():
        module.validation_step((torch.randn(2, 4, 32, 32), torch.tensor([0, 1])), 0)
        module.on_validation_epoch_end()
    assert not any(math.isnan(v) for v in found.values())
    assert "val/recall_at_1" not in found


def test_training_step_gives_the_loss_it_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = learner(miner=BatchHardMiner())
    found = logged(module, monkeypatch)
    given = module.training_step((torch.randn(12, 4, 32, 32), torch.arange(12) % 3), 0)
    assert given["loss"].requires_grad
    assert found["train/loss"] is given["loss"]
    assert found["train/mean_cosine"] is given["mean_cosine"]
    assert -1 <= float(given["mean_cosine"]) <= 1
    assert 0 <= float(found["train/active_triplets"]) <= 1
    assert 0 < float(found["train/positive_distance"]) <= 2
    assert 0 < float(found["train/negative_distance"]) <= 2


def test_triplets_are_active_up_to_the_losss_own_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two classes 0.3 rad apart: beyond a margin of 0.2, within one of 0.5.
    embeddings = nn.functional.normalize(torch.tensor([[1, 0.0], [1, 0], [1, 0.31], [1, 0.31]]), dim=1)
    for margin, active in ((0.2, 0), (0.5, 1)):
        module = learner(TripletMarginLoss(margin=margin))
        monkeypatch.setattr(module, "forward", lambda x: embeddings.clone().requires_grad_())
        found = logged(module, monkeypatch)
        module.training_step((torch.zeros(4, 4, 32, 32), torch.tensor([0, 0, 1, 1])), 0)
        assert float(found["train/active_triplets"]) == active


def test_a_checkpoint_carries_plain_values(tmp_path: Path) -> None:
    module, content = learner(), {}
    module.on_save_checkpoint(content)
    torch.save(content, tmp_path / "c.ckpt")
    carried = torch.load(tmp_path / "c.ckpt", weights_only=True)["siamese_sat"]
    assert carried["classes"] == ["a", "b", "background"]
    assert carried["bands"] == [1, 2, 3, 4]
    assert carried["radiometry"] == RADIOMETRY.to_dict()
    assert ChipSpec(**carried["chip"]).size == 32
