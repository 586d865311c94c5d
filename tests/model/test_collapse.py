from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from siamese_sat import training
from siamese_sat.errors import InputError
from siamese_sat.model import collapse
from siamese_sat.model.collapse import CollapseWatch
from siamese_sat.model.embedder import Embedder
from siamese_sat.training import train
from tests.model.conftest import config

QUICK = ("logger.tensorboard=null", "data.background=0.5", "trainer.max_epochs=3", "callbacks.collapse.window=3")


def warnings(
    scenes: Path, out: Path, patch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *more: str
) -> list[str]:
    """What the watch said during a real training of nine steps."""
    patch.setattr(training, "_draw", lambda *a: None)
    patch.setattr(training, "complete_checkpoint", lambda *a: None)
    with caplog.at_level(logging.WARNING, "siamese_sat.model.collapse"):
        train(config(scenes, out, *QUICK, *more))
    return [r.getMessage() for r in caplog.records if r.name == "siamese_sat.model.collapse"]


def constant(self: Embedder, x: Tensor) -> Tensor:
    """Nearly the same embedding for every chip, and a gradient."""
    out = self.head[3].bias.expand(len(x), -1).clone()
    out[:, 0] = 10 + 0.01 * torch.randn(len(x))
    return torch.nn.functional.normalize(out, dim=1)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (("loss=triplet",), "with the loss at 0.97"),
        (("loss=triplet", "loss.loss.smooth_loss=false"), "with the loss at 0.50"),
        (("loss=supcon",), "Try another loss"),
    ],
)
def test_constant_embeddings_warn_once_and_at_the_end(
    loss: tuple[str, ...],
    says: str,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Embedder, "forward", constant)
    said = warnings(labelled, tmp_path, monkeypatch, caplog, *loss)
    assert len(said) == 2
    assert said[0].startswith("The embeddings have collapsed: the mean cosine of a batch was 1.000 over the last 3 ste")
    assert said[1].startswith("The training ended with collapsed embeddings")
    for sentence in said:
        assert says in sentence
        assert "loss=supcon" in sentence
        assert "loss=multi_similarity" in sentence


@pytest.mark.parametrize("loss", ["triplet", "supcon"])
def test_a_healthy_training_is_not_warned_of(
    loss: str, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings(labelled, tmp_path, monkeypatch, caplog, f"loss={loss}") == []


def test_a_training_that_recovers_is_not_warned_of_at_its_end(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, steps = Embedder.forward, []

    def at_first(self: Embedder, x: Tensor) -> Tensor:
        steps.extend([None] * self.training)
        return constant(self, x) if self.training and len(steps) <= 4 else whole(self, x)

    monkeypatch.setattr(Embedder, "forward", at_first)
    said = warnings(labelled, tmp_path, monkeypatch, caplog, "loss=supcon")
    assert len(said) == 1
    assert said[0].startswith("The embeddings have collapsed")


def test_alike_embeddings_with_a_loss_that_still_moves_are_no_collapse(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Embedder, "forward", constant)
    monkeypatch.setattr(collapse, "plateau", lambda loss: 2.0)
    assert warnings(labelled, tmp_path, monkeypatch, caplog, "loss=triplet") == []


def test_accumulated_gradients_do_not_hide_the_plateau(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Embedder, "forward", constant)
    more = ("loss=triplet", "+trainer.accumulate_grad_batches=3")
    assert len(warnings(labelled, tmp_path, monkeypatch, caplog, *more)) == 2


def test_impossible_windows_are_refused() -> None:
    for options in ({"window": 0}, {"cosine": 1.0}, {"cosine": 0.0}, {"tolerance": -0.1}):
        with pytest.raises(InputError, match=r"callbacks\.collapse"):
            CollapseWatch(**options)  # type: ignore[arg-type]
