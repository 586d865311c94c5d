"""What an index costs: bytes, time per query, recall, additions; and what it gives against direct search.

Two parts. ``size`` fills an index with synthetic vectors clustered as those of real scenes are (a mixture whose parts
and spread are set below) and asks it; ``scenes`` indexes labelled scenes, and compares what is found through the index,
by vectors alone, by the cells that it keeps and by pixels, with what direct search finds. Each prints a table and
writes it as JSON.

    python benchmarks/index_speed.py size --windows 1000000 --folder /tmp/index
    python benchmarks/index_speed.py scenes --data <folder> --weights <file> [--crop 1280] [--scenes 6]
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from siamese_sat.search.index.schema import fixed_binary, scene_schema, window_schema
from siamese_sat.search.index.store import Probe, Store

DIMENSIONS = 64
# Bytes of a window's own cells, which compress as little as chance.
CELLS = 128
CHUNK = 100_000
# Windows of a synthetic scene, and how they cluster: parts of the mixture per window, and the spread within a part.
SCENE = 20_000
PER_PART = 400
SPREAD = 0.6
TOP = 100


def vectors(count: int, parts: npt.NDArray[np.float32], seed: int) -> npt.NDArray[np.float32]:
    """Unit vectors of a mixture, neighbours in sequence mostly of one part as neighbouring windows are."""
    rng = np.random.default_rng(seed)
    which = np.repeat(rng.integers(0, len(parts), -(-count // 8)), 8)[:count]
    found = parts[which] + SPREAD * rng.normal(size=(count, DIMENSIONS)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def rows(first: int, count: int, found: npt.NDArray[np.float32]) -> pa.Table:
    """Rows of the window table, on a grid of scenes 0.1 degrees apart."""
    number = np.arange(first, first + count)
    scene, place = number // SCENE + 1, number % SCENE
    across = 142
    x, y = (place % across * 32).astype(np.float32), (place // across * 32).astype(np.float32)
    west, north = scene % 100 * 0.1 + x * 5e-6, 60 - scene // 100 * 0.1 - y * 5e-6
    columns = [
        scene, x, y, x + 64, y + 64, np.full(count, 64), np.ones(count),
        west, north - 3e-4, west + 3e-4, north, np.full(count, 19_000),
    ]  # fmt: skip
    schema = window_schema(DIMENSIONS, CELLS)
    arrays = [pa.array(c.astype(f.type.to_pandas_dtype() if f.name != "date" else np.int32), f.type)
              for c, f in zip(columns, schema, strict=False)]  # fmt: skip
    flat = pa.FixedSizeListArray.from_arrays(pa.array(found.astype(np.float16).ravel()), DIMENSIONS)
    cells = fixed_binary(np.random.default_rng(first).integers(0, 256, (count, CELLS), np.uint8))
    return pa.Table.from_arrays([*arrays, flat, cells], schema=schema)


def entries(first: int, last: int, total: int) -> pa.Table:
    """Entries of scenes ``first`` to ``last``."""
    listed = [
        {"scene": n, "path": f"/{n}.tif", "size": 1, "modified": 1, "header": "", "about": "",
         "windows": min(SCENE, total - (n - 1) * SCENE)} for n in range(first, last + 1)
    ]  # fmt: skip
    return pa.Table.from_pylist(listed, schema=scene_schema())


def add(store: Store, first: int, count: int, parts: npt.NDArray[np.float32]) -> None:
    """Adds synthetic windows in commits of 100,000."""
    for start in range(first, first + count, CHUNK):
        some = min(CHUNK, first + count - start)
        store.add_windows(rows(start, some, vectors(some, parts, start)))
    store.enter_scenes(entries(first // SCENE + 1, (first + count - 1) // SCENE + 1, first + count))


# As search.py asks: windows of one scale.
SCALE = "scale = 64"


def ask(
    store: Store, questions: npt.NDArray[np.float32], probe: Probe, where: str = SCALE, narrow: bool = False
) -> tuple[Any, Any]:
    """Answers as sets of (scene, x, y), and milliseconds of each query."""
    answers, taken = [], []
    for question in questions:
        started = time.perf_counter()
        found = store.nearest(question, TOP, where, probe, narrow=narrow)
        taken.append((time.perf_counter() - started) * 1e3)
        answers.append(set(zip(found.scene, found.x_min, found.y_min, strict=True)))
    return answers, np.array(taken)


def cold(folder: Path, question: npt.NDArray[np.float32], probe: Probe) -> float:
    """Milliseconds of the first query of a process, imports left out, with the files dropped from memory."""
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
    code = (
        "import sys, time, json, numpy as np\nfrom siamese_sat.search.index.store import Store, Probe\n"
        "uri, question, probe = json.loads(sys.argv[1])\nimport lancedb, pyarrow, pandas\n"
        "started = time.perf_counter()\n"
        f"Store(uri).nearest(np.array(question), {TOP}, {SCALE!r}, Probe(**probe))\n"
        "print((time.perf_counter() - started) * 1e3)"
    )
    asked = json.dumps([str(folder), question.tolist(), {"partitions": probe.partitions, "refine": probe.refine}])
    return float(subprocess.run([sys.executable, "-c", code, asked], capture_output=True, text=True, check=True).stdout)


def remember(folder: Path) -> None:
    """Reads all files, so that they lie in memory again: a warm query finds them there."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass


def size(options: argparse.Namespace) -> dict[str, Any]:
    """The part about size and speed."""
    folder, count = Path(options.folder), int(options.windows)
    probe = Probe(options.partitions, options.refine)
    parts = np.random.default_rng(1).normal(size=(max(16, count // PER_PART), DIMENSIONS)).astype(np.float32)
    parts /= np.linalg.norm(parts, axis=1, keepdims=True) / np.sqrt(DIMENSIONS)
    result: dict[str, Any] = {
        "windows": count,
        "cores": len(os.sched_getaffinity(0)),
        "partitions_probed": probe.partitions_of(count),
    }
    if not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    store = Store(str(folder))
    with store.writing():
        if not store.exists:
            store.create({}, b"", DIMENSIONS, CELLS)
            started = time.perf_counter()
            add(store, 0, count, parts)
            result["fill_s"] = time.perf_counter() - started
            plain = store.tables.bytes() or 0
            started = time.perf_counter()
            result["finish"] = store.finish(options.exact_below)
            result["finish_s"] = time.perf_counter() - started
            result["bytes_per_window"] = (store.tables.bytes() or 0) / count
            result["of_which_vectors_and_columns"] = plain / count
    rng = np.random.default_rng(2)
    base = vectors(options.queries, parts, 12345)
    questions = base + 0.3 / np.sqrt(DIMENSIONS) * rng.normal(size=base.shape).astype(np.float32)
    result["cold_ms"] = cold(folder, questions[0], probe)
    remember(folder)
    store = Store(str(folder))
    ask(store, questions[:3], probe)
    found, taken = ask(store, questions, probe)
    result |= {"warm_ms_median": float(np.median(taken)), "warm_ms_95": float(np.percentile(taken, 95))}
    exact, slow = ask(store, questions[: options.exact], Probe(exact=True))
    result["exact_ms_median"] = float(np.median(slow))
    result[f"recall_at_{TOP}"] = float(np.mean([len(a & b) / TOP for a, b in zip(found, exact, strict=False)]))
    part = f"{SCALE} AND map_x_min < 1.0 AND map_x_max > 0.5"
    ask(store, questions[:2], probe, part, narrow=True)
    found, taken = ask(store, questions[:20], probe, part, narrow=True)
    exact, _ = ask(store, questions[:20], Probe(exact=True), part)
    result["filtered_recall"] = float(np.mean([len(a & b) / max(1, len(b)) for a, b in zip(found, exact, strict=True)]))
    result["filtered_ms_median"] = float(np.median(taken))
    if options.keep:
        return result
    more = max(1, count // 100)
    with store.writing():
        started = time.perf_counter()
        add(store, -(-count // SCENE) * SCENE, more, parts)
        result["added"] = more
        result["add_s"] = time.perf_counter() - started
        started = time.perf_counter()
        result["then"] = store.finish(options.exact_below)
        result["and_finish_s"] = time.perf_counter() - started
    return result


def scenes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The part about detections: direct search and search by the index, on the aircraft test scenes."""
    from hydra import compose, initialize_config_dir

    from siamese_sat.searching import search

    root = Path(__file__).resolve().parent.parent / "conf"
    data, folder = Path(options.data) / "aircraft", Path(options.folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    truth, chosen = test_scenes(data, folder, options.scenes, options.crop)
    common = [
        f"model.weights={options.weights}", "model.variant=v1", f"exemplars.labels={data / options.train}",
        "exemplars.classes=[aircraft]", f"exemplars.per_class={options.exemplars}", "output.overlays=0",
        "output.page=false", "output.vector=[]", "output.coco=false", "output.verdicts=0", f"truth={truth}",
    ]  # fmt: skip

    def run(name: str, *settings: str) -> dict[str, Any]:
        with initialize_config_dir(str(root), version_base="1.3"):
            cfg = compose("search", [*common, f"paths.output_dir={folder / name}", *settings])
        started = time.perf_counter()
        result = search(cfg)
        taken = time.perf_counter() - started
        table = result.evaluation.table().iloc[0] if result.evaluation is not None else {}
        return {"run": name, "seconds": taken, **{k: float(table[k]) for k in ("ap50", "ap_centre") if k in table}}

    listing = folder / "scenes.txt"
    listing.write_text("\n".join(map(str, chosen)))
    index = f"index={folder / 'index'}"
    seed = f"exemplars.seed={options.seed}"
    if not options.skip_direct:
        yield run("direct", f"scenes={listing}", seed)
    yield run("index", f"scenes={listing}", index, "mode=index")
    for verify, counts in (("false", [5000]), ("cells", options.candidates), ("pixels", options.pixels)):
        for count in counts:
            name = f"{'vectors' if verify == 'false' else verify}_{count}"
            yield run(name, index, f"query.verify={verify}", f"query.candidates={count}", seed)


def test_scenes(data: Path, folder: Path, count: int, crop: int | None) -> tuple[Path, list[Path]]:
    """Labels and paths of test scenes, cut round their densest labels where ``crop`` says so."""
    import rasterio
    from rasterio.windows import Window

    file = next(iter(sorted(data.glob("*test*.json"))))
    coco = json.loads(file.read_text())
    shown, kept, paths = [], [], []
    for image in coco["images"][:count]:
        boxes = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        source = next(data.rglob(image["file_name"].rsplit("/", 1)[-1]))
        side = crop or max(image["width"], image["height"])
        middle = np.median([[a["bbox"][0], a["bbox"][1]] for a in boxes], axis=0) if boxes else np.zeros(2)
        left, top = (int(np.clip(m - side / 2, 0, max(0, n - side)))
                     for m, n in zip(middle, (image["width"], image["height"]), strict=True))  # fmt: skip
        target = folder / "scenes" / f"{source.stem}.tif"
        target.parent.mkdir(exist_ok=True)
        with rasterio.open(source) as scene:
            pixels = scene.read([1, 2, 3], window=Window(left, top, min(side, scene.width), min(side, scene.height)))
        profile = {"driver": "GTiff", "count": 3, "dtype": pixels.dtype, "photometric": "RGB"}
        with rasterio.open(target, "w", height=pixels.shape[1], width=pixels.shape[2], **profile) as out:
            out.write(pixels)
        paths.append(target)
        shown.append({**image, "file_name": target.name, "width": pixels.shape[2], "height": pixels.shape[1]})
        for a in boxes:
            x, y, w, h = a["bbox"]
            if 0 <= x + w / 2 - left < side and 0 <= y + h / 2 - top < side:
                kept.append({**a, "bbox": [x - left, y - top, w, h]})
    labels = folder / "truth.json"
    labels.write_text(json.dumps({**coco, "images": shown, "annotations": [{**a, "segmentation": []} for a in kept]}))
    return labels, paths


def main() -> None:
    """Runs one part and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("size", "scenes"))
    parser.add_argument("--folder", default="index_speed", help="for the index; emptied first")
    parser.add_argument("--windows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--exact", type=int, default=20, help="queries that a scan answers too")
    parser.add_argument("--exact-below", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, help="probed; as the product does unless it is given")
    parser.add_argument("--refine", type=int, default=Probe.refine)
    parser.add_argument("--keep", action="store_true", help="ask the index that is there")
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--train", default="train.json", help="labels that exemplars are drawn from, within aircraft/")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--crop", type=int, default=None)
    parser.add_argument("--exemplars", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--candidates", type=int, nargs="*", default=[1000, 5000, 20000], help="verified by cells")
    parser.add_argument("--pixels", type=int, nargs="*", default=[2000], help="candidates verified by pixels")
    parser.add_argument("--skip-direct", action="store_true")
    options = parser.parse_args()
    found: Any = size(options) if options.part == "size" else []
    for one in scenes(options) if options.part == "scenes" else ():
        print(one, flush=True)
        found.append(one)
    Path(f"index_{options.part}.json").write_text(json.dumps(found, indent=1))
    if isinstance(found, dict):
        for name, value in found.items():
            print(f"{name:32} {value:,.3f}" if isinstance(value, float) else f"{name:32} {value}")
    else:
        print(pd.DataFrame(found).to_string(index=False, float_format="{:,.3f}".format))


if __name__ == "__main__":
    main()
