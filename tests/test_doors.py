from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from siamese_sat.door import explain
from siamese_sat.errors import InputError
from tests.model.conftest import ROOT, make_labelled, settings

# Imports take longer than a door's answer: one process imports, and a child of it answers each case.
DRIVER = """
import json, os, sys, tempfile, traceback
sys.path.insert(0, {root!r})
import siamese_sat.searching, siamese_sat.training, tests.model.conftest
import search, train
for door, arguments in json.load(sys.stdin):
    out, err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
    child = os.fork()
    if child == 0:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        sys.argv = [door + ".py", *arguments]
        code = 0
        try:
            dict(train=train, search=search)[door].main()
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out.seek(0), err.seek(0)
    print(json.dumps([code, out.read(), err.read()]), flush=True)
"""


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labelled(tmp_path_factory.mktemp("doors") / "scenes")


TRAIN = {  # a wrong setting: what the sentence must name
    "data.scens=x": "data.scens",
    "nonsense=1": "nonsense",
    "+data.nonsense=1": "nonsense",
    "+trainer.nonsense=1": "nonsense",
    "data.scenes=[": "name=value",
    "model=resnet99": "available options in 'model': resnet18, resnet50",
    "data.scenes=/no/such/folder": "/no/such/folder",
    "data.scenes=null": "data.scenes",
    "data.labels=/no/such/labels.json": "/no/such/labels.json",
    "ckpt_path=/no/such.ckpt": "/no/such.ckpt",
    "model.weights=/no/such.pth": "/no/such.pth",
    "data.bands=[1,2,9]": "bands 1 to 4",
    "data.bands=abc": "data.bands",
    "data.val_fraction=2": "data.val_fraction=2",
    "data.classes=[zebra]": "zebra",
    "data.chip.shape=round": "round",
    "model.backbone=vgg16": "vgg16",
    "model.embedding_dim=0": "model.embedding_dim=0",
    "sampler.classes_per_batch=1": "sampler",
    "optimizer.lr=-1": "optimizer.lr=-1",
    "seed=abc": "seed='abc'",
    "callbacks.finetune.stages=[conv5]": "conv5",
    "monitor.metric=val/nonsense": "val/nonsense",
    "optimized_metric=nonsense": "optimized_metric='nonsense'",
    "trainer.precision=banana": "banana",
    "trainer.accelerator=banana": "banana",
    "trainer.max_epochs=0": "trainer.max_epochs",
    "paths.output_dir=/proc/nowhere": "/proc/nowhere",
    "logger.csv=null": "logger",
}
SEARCH = {
    "scens=x": "scens",
    "search=banana": "available options in 'search'",
    "ckpt_path=/no/such.ckpt": "/no/such.ckpt",
    "ckpt_path={damaged}": "damaged.ckpt",
    "ckpt_path={foreign}": "foreign.ckpt",
}


@pytest.fixture(scope="module")
def answers(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    place = tmp_path_factory.mktemp("answers")
    files = {"damaged": place / "damaged.ckpt", "foreign": place / "foreign.ckpt"}
    files["damaged"].write_bytes(b"PK\x03\x04 half a file")
    torch.save({"state_dict": {}}, files["foreign"])
    here = f"hydra.run.dir={place}/run"
    base = settings(scenes, place / "out", place / "cache", here, "logger.tensorboard=null", "trainer.max_epochs=1")
    cases = {f"train {wrong}": ("train", [*base, wrong]) for wrong in TRAIN}
    found = [f"scenes={scenes}", f"paths.output_dir={place}/found", here]
    cases |= {f"search {wrong}": ("search", [*found, wrong.format(**files)]) for wrong in SEARCH}
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(root=str(ROOT))],
        input=json.dumps(list(cases.values())), capture_output=True, text=True, cwd=place, env=environment, check=True,
    )  # fmt: skip
    lines = [Answer(*json.loads(line)) for line in done.stdout.splitlines()]
    return dict(zip(cases, lines, strict=True))


def one_sentence(answer: Answer) -> str:
    assert answer.code == 1, answer
    assert "Traceback" not in answer.err + answer.out
    errors = [line for line in answer.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, answer.err
    return errors[0]


@pytest.mark.parametrize("wrong", TRAIN)
def test_train_ends_in_one_sentence(wrong: str, answers: dict[str, Answer]) -> None:
    assert TRAIN[wrong] in one_sentence(answers[f"train {wrong}"])


@pytest.mark.parametrize("wrong", SEARCH)
def test_search_ends_in_one_sentence(wrong: str, answers: dict[str, Answer]) -> None:
    assert SEARCH[wrong] in one_sentence(answers[f"search {wrong}"])


def test_faults_of_our_own_are_not_explained_away() -> None:
    assert explain(ZeroDivisionError("division by zero")) is None
    assert explain(KeyError("x")) is None
    assert explain(MemoryError()) is not None


def test_an_input_error_is_found_beneath_others() -> None:
    try:
        try:
            raise InputError("the folder is empty; fill it.")
        except InputError as error:
            raise RuntimeError("a library's view") from error
    except RuntimeError as error:
        assert explain(error) == "the folder is empty; fill it."


def door(name: str, place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A real run of a door."""
    kept = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, str(ROOT / f"{name}.py"), *arguments],
        cwd=place, capture_output=True, text=True, env={**kept, **environment}, check=False, timeout=300,
    )  # fmt: skip


def test_a_door_run_from_anywhere_answers(tmp_path: Path) -> None:
    done = door("train", tmp_path, f"hydra.run.dir={tmp_path}/run", "data.scenes=nowhere")
    assert one_sentence(Answer(done.returncode, done.stdout, done.stderr)).startswith("error: nowhere")


@pytest.mark.slow
def test_the_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    done = door("train", tmp_path, f"hydra.run.dir={tmp_path}/run", "data.scenes=nowhere", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "InputError" in done.stderr


def multirun(scenes: Path, place: Path, *more: str) -> subprocess.CompletedProcess[str]:
    base = [s for s in settings(scenes, place, place / "cache") if not s.startswith(("paths.output_dir", "model."))]
    tiny = ["model=resnet18", "model.weights=null", "trainer.max_epochs=1", "logger.tensorboard=null"]
    return door("train", place, "-m", *base, *tiny, f"hydra.sweep.dir={place}/sweep", *more)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_multirun_makes_a_folder_per_job_and_says_where(launcher: str, scenes: Path, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = multirun(scenes, tmp_path, "model.embedding_dim=16,32", f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    for number, size in enumerate((16, 32)):
        best = tmp_path / "sweep" / str(number) / "checkpoints" / "best.ckpt"
        carried = torch.load(best, weights_only=True)["siamese_sat"]
        assert carried["spec"]["embedding_dim"] == size
        assert carried["prototypes"]["tennis court"].shape == (size,)
        assert (best.parent.parent / "curves.png").is_file()
        said = done.stdout + done.stderr + (best.parent.parent / "train.log").read_text()
        assert str(best) in said.replace("\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_failed_trainings_of_a_sweep_have_a_sentence_each(launcher: str, scenes: Path, tmp_path: Path) -> None:
    done = multirun(scenes, tmp_path, "data.val_fraction=2,3", f"hydra/launcher={launcher}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [f"job {i} (data.val_fraction={i + 2})" in line for i, line in enumerate(errors)] == [True, True]
