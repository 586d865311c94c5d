"""Boxes by hand and by the hundred, for the tests of evaluations."""

from __future__ import annotations

import numpy as np
import pandas as pd

from siamese_sat.evaluation.tables import BOX, DETECTIONS, TRUTH

Box = tuple[float, float, float, float]


def truth_of(*boxes: Box, name: str = "ship", file: str = "a.tif") -> pd.DataFrame:
    return pd.DataFrame([[*box, name, file] for box in boxes], columns=TRUTH)


def found(*rows: tuple[Box, float], name: str = "ship", file: str = "a.tif") -> pd.DataFrame:
    return pd.DataFrame([[*box, name, file, score] for box, score in rows], columns=DETECTIONS)


def square(x: float, y: float = 0, side: float = 10) -> Box:
    return (x, y, x + side, y + side)


def crowd(n: int, objects: int, images: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Objects at random, detections jittered round them, scores with many ties."""
    rng = np.random.default_rng(seed)
    corner, side = rng.integers(0, 900, (objects, 2)), rng.integers(8, 30, (objects, 1))
    truth = pd.DataFrame(np.hstack([corner, corner + side]).astype(float), columns=BOX)
    truth["class_name"] = rng.choice(["car", "ship"], objects)
    truth["filename"] = [f"{i}.tif" for i in rng.integers(0, images, objects)]
    detections = truth.iloc[rng.integers(0, objects, n)].reset_index(drop=True)
    detections[BOX] += rng.integers(-4, 5, (n, 4))
    detections["score"] = rng.integers(0, 50, n) / 50
    return detections, truth
