"""How often a search claims what is not there: exemplars of one class, scenes of another, where it is absent.

Draws of exemplars, each a class of its own, are searched in crops of the other class's test scenes, round its densest
labels as in `accuracy.py --quick`: not any ground, but ground where something is. Every place that reaches the
threshold is a mistake. The same candidates are counted by their scores before re-ranking and after it. Writes absent.md
and absent.csv.

    python benchmarks/absent.py --data <folder> --weights <file>
"""

from __future__ import annotations

import siamese_sat  # noqa: F401  # isort: skip - says how PyTorch's threads wait, before it is imported

import argparse
import json
import logging

import numpy as np
import pandas as pd
from bench import markdown
from imagery import COCO, arguments, draws, load, prepared, settings_of

from siamese_sat.progress import track
from siamese_sat.search.detect import Candidates
from siamese_sat.search.method import rerank_of, sizes_of
from siamese_sat.search.rerank import Gathered
from siamese_sat.search.run import SceneItem, Search

# What is sought, and in whose scenes it is not: airports without turbines and pools, sea without aircraft, suburbs
# without ships.
PAIRS = (("turbines", "aircraft"), ("pools", "aircraft"), ("aircraft", "ships"), ("ships", "pools"))


def pair(text: str) -> tuple[str, str]:
    """What is sought, and in whose scenes; both of three bands."""
    name, _, other = text.partition(":")
    if name == other or not {name, other} <= set(COCO):
        raise argparse.ArgumentTypeError(f"{text!r} is not two of {', '.join(COCO)} with a colon between them")
    return name, other


def claims(args: argparse.Namespace, name: str, other: str) -> list[dict[str, object]]:
    """False places per megapixel of every draw."""
    train, labels, _, _ = load(args.data, name, quick=False)
    _, _, scenes, _ = load(args.data, other, quick=True)
    megapixels = sum(s.megapixels for s in scenes)
    method, _, _ = prepared(args, settings_of("template", args.set), scenes, draws(args, labels, train))
    work = Search(method, dict.fromkeys(method.classes, 0.0), args.nms_iou)
    gathered = Gathered(rerank_of(method), sizes_of(method))
    plain: dict[str, Candidates] = {}
    for scene in track(scenes, "Searching", unit="scenes", total=len(scenes)):
        plain[scene.path] = work(SceneItem(scene))
        gathered.add(scene.path, plain[scene.path], scene.megapixels * 1e6)
    before, after = (
        np.bincount(found.classes[found.scores >= args.threshold], minlength=len(method.classes)) / megapixels
        for found in (Candidates.join([*each.values()]) for each in (plain, gathered.conclude([*plain])))
    )
    return [
        {"class": name, "in scenes of": other, "Mpx": megapixels, "drawn": drawn, "before": b, "after": a}
        for drawn, b, a in zip(method.classes, before, after, strict=True)
    ]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over draws, a row a pair; the last row is the mean over pairs."""
    lines = []
    for (name, other), part in rows.groupby(["class", "in scenes of"], sort=False):
        cells = [f"{part[side].mean():.2f} ± {part[side].std(ddof=0):.2f}" for side in ("before", "after")]
        lines.append([name, other, f"{part.Mpx.iloc[0]:.1f}", *cells])
    lines.append(["mean", "", "", f"{rows.before.mean():.2f}", f"{rows.after.mean():.2f}"])
    return pd.DataFrame(lines, columns=["class", "in scenes of", "Mpx", "before", "after"])


def main() -> None:
    """Runs the table."""
    parser = arguments(str(__doc__), "outputs/benchmarks/absent")
    parser.add_argument("--exemplars", type=int, default=5)
    parser.add_argument("--pairs", nargs="+", type=pair, default=PAIRS, metavar="SOUGHT:IN", help="turbines:pools")
    args = parser.parse_args()
    args.exemplars = [args.exemplars]
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("siamese_sat").setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for name, other in args.pairs:
        rows += claims(args, name, other)
        print(pd.DataFrame(rows[-args.draws :]).round(2).to_string(index=False), flush=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(args.out / "absent.csv", index=False)
    text = markdown(summary(frame).set_index("class"))
    head = f"false places of at least {args.threshold} per Mpx, before re-ranking and after, mean ± spread of draws; "
    head += f"crops; {args.exemplars[0]} exemplars; {json.dumps(args.set)}"
    (args.out / "absent.md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
