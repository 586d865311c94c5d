"""One search: a config in; detections, their files and their evaluation out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from siamese_sat.data.datamodule import cut_to
from siamese_sat.data.radiometry import Radiometry, band_names, estimate, for_imagenet_weights
from siamese_sat.data.remote import S3, check_bucket, fetched
from siamese_sat.data.scene import Scene, SceneReader, guess_bands, open_scene
from siamese_sat.data.source import list_scenes, scene_keys
from siamese_sat.device import pick_device, pick_precision
from siamese_sat.errors import InputError
from siamese_sat.model.calibration import Calibration
from siamese_sat.model.checkpoint import TrainedModel, load_model
from siamese_sat.model.deploy import DeployedEmbedder
from siamese_sat.model.embedder import Embedder
from siamese_sat.outcome import SearchResult, conclude
from siamese_sat.question import Asked
from siamese_sat.report.destination import destined, named
from siamese_sat.scaleout.choose import open_pool
from siamese_sat.search.engine import Engine
from siamese_sat.search.exemplar import Exemplar
from siamese_sat.search.expansion import expand
from siamese_sat.search.index.lance import lancedb_module
from siamese_sat.search.method import RadiometryOf, SearchMethod
from siamese_sat.search.pooled import WindowSearch
from siamese_sat.search.run import Workers
from siamese_sat.search.unlike import Unlike
from siamese_sat.settings import check_search
from siamese_sat.shown import read_shown

__all__ = ["SearchResult", "search"]

log = logging.getLogger(__name__)

# Further from the training scenes than this, in their standard deviations, and the embedder sees another world.
FAR = 2.0


def search(cfg: DictConfig) -> SearchResult:
    """Searches scenes for exemplars and writes what it finds.

    Args:
        cfg: as ``conf/search.yaml`` composes it.

    Raises:
        InputError: a setting, the checkpoint or the exemplars cannot be used. A scene that cannot be read is reported
            in the result instead, and the others are searched.
    """
    check_search(cfg)
    if cfg.radiometry not in ("model", "per_scene"):
        raise InputError(f"radiometry={cfg.radiometry!r} is neither model nor per_scene.")
    target = str(cfg.paths.output_dir)
    with destined(target) as folder, _workers(cfg) as workers:
        if cfg.index is not None:
            lancedb_module()  # says what to install
            if str(cfg.index).startswith(S3):
                check_bucket(str(cfg.index))
            from siamese_sat.archive import ask_archive  # it is made of what stands here

            result = ask_archive(cfg, folder, workers)
        else:
            result = _search_scenes(cfg, folder, workers)
    if not target.startswith(S3):
        return result
    return replace(result, folder=target, files=[named(Path(f), folder, target) for f in result.files])


@contextmanager
def _workers(cfg: DictConfig) -> Iterator[Workers | None]:
    if cfg.mode not in ("search", "index"):
        yield None  # nothing to share out
        return
    with open_pool(cfg.engine, str(cfg.search.device)) as pool:
        yield Workers(pool, float(cfg.engine.split_mpx)) if pool is not None else None


def trained(cfg: DictConfig) -> TrainedModel | None:
    """The model of ``ckpt_path``, which may lie in an object store; None where none is named."""
    if cfg.ckpt_path is None:
        return None
    with fetched(cfg.ckpt_path) as file:
        return replace(load_model(file), path=str(cfg.ckpt_path))


def _search_scenes(cfg: DictConfig, folder: Path, workers: Workers | None) -> SearchResult:
    model = trained(cfg)
    bands = find_bands(cfg, model)
    scenes, failed = _open_all(cfg, bands)
    if not (str(cfg.search.method._target_).endswith("WindowSearch") and _of_training(cfg, model)):
        # All scenes say what is ordinary before one is searched: those that cannot be read leave first.
        for name, reason in unreadable(scenes).items():
            failed[scenes.pop(name).path] = reason
        if not scenes:
            raise InputError(next(iter(failed.values())))
    # Before weights are looked for: what is missing here is told at once.
    chip = model.chip if model is not None else instantiate(cfg.chip)
    exemplars, negatives = read_shown(cfg, bands, chip, _scene_of(cfg, scenes))
    if model is None:
        model = untrained(cfg, bands, list(scenes.values()))
    elif not model.prototypes:
        log.warning(
            "%s is of a run that did not end: it has no calibration, so window scores are learned from the exemplars. "
            "best.ckpt of a finished run has all.", cfg.ckpt_path,
        )  # fmt: skip
    if cfg.ckpt_path is not None and cfg.radiometry == "model":
        _warn_of_strange_scenes(scenes, model.radiometry)
    engine = make_engine(cfg, model)
    method = make_method(cfg)
    if negatives:
        method = Unlike(method, negatives)
    rule = radiometry_rule(cfg.radiometry, model)

    def prepare(shown: Sequence[Exemplar]) -> None:
        method.prepare(model, engine, shown, rule, list(scenes.values()))

    prepare(exemplars)
    # Its own searches keep nothing: they look for other scores, and what joins decides what the last one is.
    shown = expand(method, prepare, exemplars, scenes, cfg.search.nms_iou, workers, **cfg.search.expansion)
    asked = Asked(model, engine, shown, negatives)
    return conclude(cfg, folder, method, scenes, failed, model.radiometry.names, model.thresholds, workers, asked)


def _scene_of(cfg: DictConfig, scenes: Mapping[str, Scene]) -> Callable[[str], Scene]:
    """Finds the scenes of an earlier search's rows among those of this one."""

    def find(name: str) -> Scene:
        if name not in scenes:
            raise InputError(f"{cfg.feedback.detections}: {name} is not among the scenes; search the same ones again.")
        return scenes[name]

    return find


def _of_training(cfg: DictConfig, model: TrainedModel | None) -> bool:
    """Whether a training alone says what scores of windows mean."""
    if model is None or not model.calibration.fitted:
        return False
    return bool(cfg.search.threshold == "per_class" or cfg.search.method.calibration == "training")


def make_method(cfg: DictConfig) -> SearchMethod:
    """The method of ``search.method``, not yet prepared."""
    method: SearchMethod = instantiate(cfg.search.method, _convert_="all")
    if cfg.search.threshold == "per_class" and isinstance(method, WindowSearch):
        # Those thresholds are on that scale.
        method.calibration = "training"
    return method


def make_engine(cfg: DictConfig, model: TrainedModel) -> Engine:
    """The model's embedder, ready to run where ``search.device`` says."""
    device = pick_device(cfg.search.device)
    dtype = pick_precision(cfg.search.precision, device)
    deployed = DeployedEmbedder(model.embedder, device, dtype, cfg.search.runtime)
    log.info("The network runs with runtime=%s.", deployed.runtime)
    return Engine(deployed, device, dtype, cfg.search.batch_size, cfg.search.min_valid)


def find_bands(cfg: DictConfig, model: TrainedModel | None) -> list[int]:
    """Band numbers of the searched scenes: as set, or as in training, or as the first scene suggests."""
    if cfg.bands is not None:
        bands = [int(b) for b in cfg.bands]
    elif model is not None:
        bands = list(model.bands)
    else:
        bands = _guessed(list_scenes(plain(cfg.scenes)))
    if model is not None and len(bands) != len(model.bands):
        raise InputError(
            f"{cfg.ckpt_path} was trained on {len(model.bands)} band(s) ({', '.join(model.radiometry.names)}), but "
            f"bands={bands} names {len(bands)}; name as many, in that order."
        )
    return bands


def _guessed(paths: Sequence[str]) -> list[int]:
    """Bands as the first scene that opens suggests."""
    for path in paths[:-1]:
        try:
            return guess_bands(path)
        except InputError:
            continue  # reported when the scenes are opened
    return guess_bands(paths[-1])


def unreadable(scenes: Mapping[str, Scene]) -> dict[str, str]:
    """Scenes whose pixels cannot be read at their first or last block, with the reason."""
    found = {}
    for name, scene in scenes.items():
        x0, y0, x1, y1 = scene.aoi
        try:
            with SceneReader(scene) as reader:
                reader.read(x0, y0, 1, 1)
                reader.read(x1 - 1, y1 - 1, 1, 1)
        except InputError as error:
            found[name] = str(error)
    return found


def untrained(
    cfg: DictConfig, bands: Sequence[int], scenes: Sequence[Scene], known: Radiometry | None = None
) -> TrainedModel:
    """The backbone's own weights and the searched scenes' statistics, or known ones, where no training has been."""
    if cfg.model.weights is None:
        log.warning(
            "model.weights=null: features of random weights find half of what ImageNet's do, or next to nothing; give "
            "model.weights=<file> or a training's best.ckpt as ckpt_path."
        )
    with torch.random.fork_rng(devices=[]):
        # What no file has weights for, such as the head, is random: the same in every search.
        torch.default_generator.manual_seed(0)
        embedder: Embedder = instantiate(cfg.model, band_names=list(band_names(len(bands))))
    if known is None:
        found = estimate(scenes[:: max(1, len(scenes) // 64)], max_blocks=4)
        known = for_imagenet_weights(found, scenes[0].dtype)
    return TrainedModel(
        embedder=embedder.eval().requires_grad_(False),
        radiometry=known,
        chip=instantiate(cfg.chip),
        bands=tuple(bands),
        classes=(),
        calibration=Calibration(),
    )


def _plain_or_none(value: Any) -> Any:  # noqa: ANN401 - a window, or windows by file name
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def plain(spec: Any) -> Any:  # noqa: ANN401 - a path, or a list of them
    """The setting ``scenes`` without its config clothes."""
    if spec is None:
        raise InputError("No scenes are given; set scenes to a raster, a folder, a glob or a list of them.")
    return OmegaConf.to_object(spec) if OmegaConf.is_list(spec) else spec


def _open_all(cfg: DictConfig, bands: Sequence[int]) -> tuple[dict[str, Scene], dict[str, str]]:
    """The scenes to search by the name that their detections carry, and those that cannot be opened."""
    opened: dict[str, Scene] = {}
    failed: dict[str, str] = {}
    for name, path in scene_keys(list_scenes(plain(cfg.scenes))).items():
        try:
            opened[name] = cut_to(open_scene(path, bands, cfg.alpha), _plain_or_none(cfg.aoi))
        except InputError as error:
            failed[path] = str(error)
    if not opened:
        raise InputError(next(iter(failed.values())))
    return opened, failed


def radiometry_rule(rule: str, model: TrainedModel) -> RadiometryOf:
    """How scenes are normalised, by ``radiometry``: all by the model's statistics, or each by its own."""
    return OneForAll(model.radiometry) if rule == "model" else PerScene(model.radiometry.names)


@dataclass(frozen=True)
class OneForAll:
    """The same radiometry for every scene; unlike a lambda it can be sent to other processes."""

    radiometry: Radiometry

    def __call__(self, scene: Scene) -> Radiometry:
        """That of all."""
        return self.radiometry


@dataclass(frozen=True)
class PerScene:
    """Each scene's own radiometry, estimated when it is first asked for."""

    names: Sequence[str]
    known: dict[str, Radiometry] = field(default_factory=dict)

    def __call__(self, scene: Scene) -> Radiometry:
        """That of the scene."""
        if scene.path not in self.known:
            self.known[scene.path] = estimate([scene], self.names, max_blocks=64, quiet=True)
        return self.known[scene.path]


def _warn_of_strange_scenes(scenes: Mapping[str, Scene], radiometry: Radiometry) -> None:
    far = []
    for name, scene in scenes.items():
        try:
            found = estimate([scene], radiometry.names, max_blocks=9, quiet=True)
        except InputError:
            continue  # a scene without valid pixels, or one that the search itself will report
        if radiometry.distance(found) > FAR:
            far.append(name)
    if far:
        log.warning(
            "The values of %d scene(s) lie far from the training scenes' (%s): try radiometry=per_scene, and check "
            "the band order and units.", len(far), ", ".join(far[:3]) + (", ..." if len(far) > 3 else ""),
        )  # fmt: skip
