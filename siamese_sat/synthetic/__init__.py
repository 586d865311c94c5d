"""Makes labelled 4-band scenes for the demo and the tests: python -m siamese_sat.synthetic FOLDER."""

from siamese_sat.synthetic.dataset import NOVEL, DatasetPaths, make_dataset, write_labels, write_scene
from siamese_sat.synthetic.objects import CLASSES
from siamese_sat.synthetic.scene import SceneObject, make_scene

__all__ = [
    "CLASSES",
    "NOVEL",
    "DatasetPaths",
    "SceneObject",
    "make_dataset",
    "make_scene",
    "write_labels",
    "write_scene",
]
