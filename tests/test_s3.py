"""Against a server of S3's in this process."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from siamese_sat.data import remote
from siamese_sat.data.remote import matching, need_credentials
from siamese_sat.data.source import list_scenes
from siamese_sat.errors import InputError
from siamese_sat.model import checkpoint
from siamese_sat.report import destination
from siamese_sat.report.destination import destined
from siamese_sat.search.detect import Candidates
from siamese_sat.search.parts import Parts
from siamese_sat.searching import SearchResult, search
from tests.conftest import NORTH_UP, UTM33, write_scene
from tests.search.conftest import Correlation, ground, plant, thing, write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
SECRET = "nobody-should-ever-read-this"
BUCKET = "pictures"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def store(server: str) -> Iterator[Any]:
    """A client of an empty bucket; of the environment nothing but the usual names is set, and nothing is left."""
    before = dict(os.environ)
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update(
        AWS_ENDPOINT_URL=server, AWS_ACCESS_KEY_ID="someone", AWS_SECRET_ACCESS_KEY=SECRET, AWS_REGION="us-east-1",
        AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
    )  # fmt: skip
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    client.delete_bucket(Bucket=BUCKET)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run(tmp_path: Path, store: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SearchResult]:  # noqa: ANN401
    """A search of two scenes in the store, with a boat each."""
    monkeypatch.setattr(checkpoint, "Embedder", Correlation)
    boat = thing(1, 40, 40)
    for number, name in enumerate(("port", "town")):
        land = ground(208, 208)
        plant(land, boat, 6 + 26 * (2 + number), 6 + 26)
        path = write_scene(tmp_path / "scenes" / f"{name}.tif", land, crs=UTM33, transform=NORTH_UP)
        store.upload_file(path, BUCKET, f"scenes/{name}.tif")
    model = write_checkpoint(tmp_path / "model.ckpt")
    store.upload_file(model, BUCKET, "model.ckpt")
    shown = ground(208, 208)
    box = plant(shown, boat, 30, 30)
    shown_path = write_scene(tmp_path / "shown.tif", shown)

    def search_them(*settings: str) -> SearchResult:
        overrides = [
            f"ckpt_path={model}", f"scenes={tmp_path / 'scenes'}", f"paths.output_dir={tmp_path / 'out'}",
            "search/method=window", "search.method.calibration=training",
            "search.device=cpu", "search.precision=fp32", "search.threshold=0.9",
            f"exemplars.boxes=[[{shown_path},{','.join(map(str, box))},boat]]",
        ]  # fmt: skip
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return search(compose("search", [*overrides, *settings]))

    return search_them


def keys(store: Any) -> set[str]:  # noqa: ANN401
    return {entry["Key"] for entry in store.list_objects_v2(Bucket=BUCKET)["Contents"]}


def test_scenes_checkpoint_and_results_in_the_store(
    run: Callable[..., SearchResult], store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture  # noqa: ANN401
) -> None:  # fmt: skip
    run()
    with caplog.at_level(logging.DEBUG, logger="siamese_sat"):
        result = run(
            f"scenes=s3://{BUCKET}/scenes/", f"ckpt_path=s3://{BUCKET}/model.ckpt",
            f"paths.output_dir=s3://{BUCKET}/found/here",
        )  # fmt: skip
    assert not result.failed
    assert len(result.detections) == 2
    assert result.folder == f"s3://{BUCKET}/found/here"
    assert {str(f).removeprefix(f"s3://{BUCKET}/") for f in result.files} <= keys(store)
    assert keys(store) >= {f"found/here/{n}" for n in ("report.html", "detections.gpkg", "overlays/town.png")}
    store.download_file(BUCKET, "found/here/detections.csv", str(tmp_path / "remote.csv"))
    assert (tmp_path / "remote.csv").read_bytes() == (tmp_path / "out" / "detections.csv").read_bytes()
    said = [r.getMessage() for r in caplog.records]
    assert any(f"s3://{BUCKET}/found/here/detections.csv" in line for line in said)
    assert not any("siamese-sat-" in line for line in said), "the local folder on the way is nobody's business"


def test_an_index_in_the_store_is_that_of_a_folder(run: Callable[..., SearchResult], tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    settings = (
        "ckpt_path=null", "model=resnet18", "model.weights=null", "indexing.windows=[64]", "query.verify=false",
        "output=ranking", "output.overlays=0", "output.page=false",
    )  # fmt: skip
    here = run(f"index={tmp_path / 'index'}", *settings)
    there = run(f"index=s3://{BUCKET}/index", *settings)
    assert len(here.detections) > 0
    pd.testing.assert_frame_equal(here.detections, there.detections)
    assert len(run(f"index=s3://{BUCKET}/index", "scenes=null", *settings).detections) == len(here.detections)


def test_no_credential_is_written_or_said(
    run: Callable[..., SearchResult], store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture  # noqa: ANN401
) -> None:  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        run(f"scenes=s3://{BUCKET}/scenes/", f"paths.output_dir=s3://{BUCKET}/found")
        run(f"scenes=s3://{BUCKET}/scenes/")
        with pytest.raises(InputError) as refused:
            run("paths.output_dir=s3://no-such-bucket/found")
        told = [str(refused.value)]
        address = f"s3://someone:{SECRET}/{SECRET}@{BUCKET}/scenes"
        for setting in (f"scenes={address}/", f"scenes={address}/a.tif", f"ckpt_path={address}", f"index={address}"):
            with pytest.raises(InputError, match="takes no credentials") as refused:
                run(setting)
            told.append(str(refused.value))
    mine = [r for r in caplog.records if r.name.startswith("siamese_sat")]
    assert mine
    assert not any(SECRET in r.getMessage() for r in mine)
    assert not any(SECRET in sentence for sentence in told)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    for key in keys(store):
        assert SECRET.encode() not in store.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def test_folders_and_globs(store: Any, tmp_path: Path) -> None:  # noqa: ANN401
    for key in ("a/2.tif", "a/1.tif", "a/notes.md", "a/deep/3.tif", "b/4.jp2"):
        store.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    at = f"s3://{BUCKET}/"
    assert list_scenes(f"{at}a/") == list_scenes(f"{at}a") == [f"{at}a/1.tif", f"{at}a/2.tif"]
    assert list_scenes(f"{at}a/[1]*") == [f"{at}a/1.tif"]
    assert list_scenes(f"{at}**/*.tif") == [f"{at}a/1.tif", f"{at}a/2.tif", f"{at}a/deep/3.tif"]
    assert list_scenes(f"{at}*/*.jp2") == [f"{at}b/4.jp2"]
    assert list_scenes(f"{at}c/gone.tif") == [f"{at}c/gone.tif"], "told when it is opened"
    assert matching(f"{at}a/d*/*") == [f"{at}a/deep/3.tif"]
    with pytest.raises(InputError, match="no raster in this folder"):
        list_scenes(f"{at}c/")
    with pytest.raises(InputError, match="glob matches no raster"):
        list_scenes(f"{at}a/*.png")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("scenes=s3://no-such-bucket/scenes/", "there is no bucket no-such-bucket"),
        ("scenes=s3://no-such-bucket/a.tif", "bucket does not exist"),
        (f"scenes=s3://{BUCKET}/none.tif", "none.tif"),
        (f"ckpt_path=s3://{BUCKET}/none.ckpt", "there is no such object"),
        ("paths.output_dir=s3://no-such-bucket/found", "there is no bucket no-such-bucket"),
        ("index=s3://no-such-bucket/index", "there is no bucket no-such-bucket"),
        ("paths.output_dir=s3://someone:word@pictures/found", "takes no credentials"),
        ("paths.output_dir=s3://someone:wo/rd@pictures/found", "takes no credentials"),
    ],
)
def test_what_is_not_there_is_one_sentence(run: Callable[..., SearchResult], setting: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as told:
        run(setting)
    assert "\n" not in str(told.value)


def test_without_credentials(run: Callable[..., SearchResult], tmp_path: Path) -> None:
    del os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.environ["AWS_CONFIG_FILE"] = str(tmp_path / "none")
    for setting in (f"scenes=s3://{BUCKET}/scenes/town.tif", f"paths.output_dir=s3://{BUCKET}/found"):
        with pytest.raises(InputError, match="there are no credentials"):
            run(setting)


def test_a_store_that_does_not_answer(run: Callable[..., SearchResult]) -> None:
    os.environ.update(AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    with pytest.raises(InputError, match="cannot be reached"):
        run(f"paths.output_dir=s3://{BUCKET}/found")


def test_a_store_that_says_nothing_is_asked_twice(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr(remote, "ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(0.1)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(InputError, match="cannot be reached"):
            remote.check_bucket(f"s3://{BUCKET}/found")
        asked = [silent.accept()[0] for _ in range(2)]
        with pytest.raises(TimeoutError):
            silent.accept()
    for connection in asked:
        connection.close()


def test_results_that_cannot_be_uploaded_stay_here(
    run: Callable[..., SearchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Path, uri: str) -> None:
        raise InputError(f"{uri}: the object store refused (AccessDenied); check the credentials' rights.")

    monkeypatch.setattr(destination, "upload", refused)
    with pytest.raises(InputError, match="all results lie in ") as told:
        run(f"paths.output_dir=s3://{BUCKET}/found")
    left = Path(str(told.value).split("all results lie in ")[1].rstrip("."))
    assert (left / "detections.csv").is_file()
    shutil.rmtree(left)


def test_results_stay_here_when_the_upload_is_stopped(
    store: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture  # noqa: ANN401
) -> None:  # fmt: skip
    def stopped(file: Path, uri: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(destination, "upload", stopped)
    with pytest.raises(KeyboardInterrupt), destined(f"s3://{BUCKET}/found") as folder:
        (folder / "detections.csv").write_text("x")
    assert (folder / "detections.csv").is_file()
    assert str(folder) in caplog.text
    shutil.rmtree(folder)


def test_a_profile_that_is_not_there_is_one_sentence(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match="AWS_PROFILE"):
        need_credentials(f"s3://{BUCKET}/a.tif")


def test_what_was_written_before_a_failure_is_kept_and_named(store: Any, caplog: pytest.LogCaptureFixture) -> None:  # noqa: ANN401
    with pytest.raises(KeyboardInterrupt), destined(f"s3://{BUCKET}/found") as folder:
        (folder / "detections.csv").write_text("x")
        raise KeyboardInterrupt
    assert (folder / "detections.csv").read_text() == "x"
    assert str(folder) in caplog.text
    shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt), destined(f"s3://{BUCKET}/found") as folder:
        raise KeyboardInterrupt
    assert not folder.exists()


def test_what_is_kept_for_an_interrupted_search_stays_here(
    run: Callable[..., SearchResult], store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture,  # noqa: ANN401
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    written: list[Path] = []
    keep = Parts.keep

    def told(parts: Parts, name: str, found: Candidates) -> None:
        keep(parts, name, found)
        written.extend(parts.folder.glob("*/*"))

    monkeypatch.setattr(Parts, "keep", told)
    with caplog.at_level(logging.INFO):
        run(f"paths.output_dir=s3://{BUCKET}/found")
    assert not written
    assert "if search.parts_dir is a folder here" in caplog.text
    run(f"paths.output_dir=s3://{BUCKET}/found", f"search.parts_dir={tmp_path / 'kept'}")
    assert written
    assert not (tmp_path / "kept").exists()
    assert not [key for key in keys(store) if ".part" in key]
