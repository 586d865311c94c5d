from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from siamese_sat.data.chip import ChipSpec
from siamese_sat.errors import InputError
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import KEY, add_to_checkpoint, load_model, read_checkpoint
from siamese_sat.model.embedder import Embedder
from tests.model.conftest import RADIOMETRY, tiny_embedder


@pytest.fixture
def embedder() -> Embedder:
    """With BatchNorm statistics that are not the initial ones."""
    net = tiny_embedder(seed=4)
    net.train()(torch.randn(8, 4, 32, 32) + 1)
    return net.eval()


@pytest.fixture
def saved(embedder: Embedder, tmp_path: Path) -> Path:
    path = tmp_path / "best.ckpt"
    carried = {
        "spec": embedder.spec.to_dict(),
        "radiometry": RADIOMETRY.to_dict(),
        "classes": ["boat", "background"],
        "chip": {"size": 32, "padding": 0.2, "shape": "square"},
        "bands": [3, 2, 1, 4],
    }
    state = {f"embedder.{k}": v for k, v in embedder.state_dict().items()}
    torch.save({"state_dict": {**state, "loss.proxies": torch.ones(3)}, "epoch": 7, KEY: carried}, path)
    return path


def test_round_trip_gives_identical_embeddings(embedder: Embedder, saved: Path) -> None:
    model = load_model(saved)
    x = torch.randn(6, 4, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model.embedder(x), embedder(x))
    assert not model.embedder.training
    assert not any(p.requires_grad for p in model.embedder.parameters())
    assert model.embedder.spec == embedder.spec
    assert model.radiometry == RADIOMETRY
    assert model.chip == ChipSpec(32, 0.2, "square")
    assert model.bands == (3, 2, 1, 4)
    assert model.classes == ("boat", "background")
    assert model.path == str(saved)


def test_an_unfinished_training_scores_by_cosine(saved: Path) -> None:
    model = load_model(saved)
    assert model.calibration == Calibration(0.5, 0.5, "linear")
    assert (model.thresholds, model.prototypes, model.extents) == ({}, {}, {})


def test_additions_are_taken_up_and_the_rest_kept(saved: Path) -> None:
    before = read_checkpoint(saved)
    prototype = torch.nn.functional.normalize(torch.randn(16), dim=0)
    additions = {
        "calibration": Calibration(9.0, -4.0, "logistic").to_dict(),
        "thresholds": {"boat": 0.4},
        "prototypes": {"boat": prototype},
        "extents": {"boat": [12.5, 40.0]},
    }
    add_to_checkpoint(saved, additions)
    add_to_checkpoint(saved, {"thresholds": {"boat": 0.6}})
    model, after = load_model(saved), read_checkpoint(saved)
    assert model.calibration == Calibration(9.0, -4.0, "logistic")
    assert model.thresholds == {"boat": 0.6}
    assert torch.equal(model.prototypes["boat"], prototype)
    assert model.extents == {"boat": (12.5, 40.0)}
    assert after["epoch"] == 7
    assert all(torch.equal(after["state_dict"][k], v) for k, v in before["state_dict"].items())
    assert {k: after[KEY][k] for k in before[KEY]} == before[KEY]
    assert [p.name for p in saved.parent.iterdir()] == ["best.ckpt"]


def test_a_failed_addition_leaves_the_file_as_it_was(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(content: Any, file: Any) -> NoReturn:  # noqa: ANN401
        Path(file).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        add_to_checkpoint(saved, {"thresholds": {}})
    assert saved.read_bytes() == before


def test_loads_with_weights_only(saved: Path) -> None:
    add_to_checkpoint(saved, {"calibration": Calibration(9.0, -4.0, "logistic").to_dict()})
    assert torch.load(saved, weights_only=True)[KEY]["calibration"]["kind"] == "logistic"


@pytest.mark.parametrize("read", [read_checkpoint, load_model])
def test_missing_damaged_and_foreign_files_are_named(read: Any, saved: Path, tmp_path: Path) -> None:  # noqa: ANN401
    with pytest.raises(InputError, match=r"none\.ckpt: no such checkpoint"):
        read(tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="no such checkpoint"):
        read(tmp_path)
    for name, content in {
        "empty.ckpt": b"",
        "text.ckpt": b"hello",
        "cut.ckpt": saved.read_bytes()[: saved.stat().st_size // 2],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} cannot be read as a checkpoint") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)
    for name, foreign in {"other.ckpt": {"state_dict": {}}, "list.ckpt": [1, 2]}.items():
        torch.save(foreign, tmp_path / name)
        with pytest.raises(InputError, match=rf"{name} is no checkpoint of siamese_sat"):
            read(tmp_path / name)


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, tuple[Path, str]]:
        return Path.write_text, (self.proof, "was here")


def test_a_malicious_checkpoint_is_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "was_here"
    torch.save({KEY: Evil(proof), "state_dict": {}}, tmp_path / "evil.ckpt")
    with pytest.raises(InputError, match=r"evil\.ckpt cannot be read"):
        load_model(tmp_path / "evil.ckpt")
    assert not proof.exists()
    pickle.loads(pickle.dumps(Evil(proof)))
    assert proof.exists(), "and it would have bitten"
