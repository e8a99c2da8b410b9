"""Untrained networks whose predictions depend on all of their arrays."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax.data.statistics import Statistics
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.inference.loaded_run import TrainedRun
from alexnet_jax.models.alexnet import get_model

CLASSES = ("cat", "dog", "Ærø ship")


def random_run(config: ConfigDict) -> TrainedRun:
    """A run with random parameters, statistics and mean, whose probabilities differ between classes and images."""
    model, random = get_model(config.model, len(CLASSES)), np.random.default_rng(0)
    crop, size = config.data.crop, config.data.image_size
    preprocessing = make_preprocessing(config.data, Statistics.unknown(size))
    mean = random.uniform(90, 150, preprocessing.mean.shape).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, crop, crop, 3), "float32"))

    def draw(path: Any, leaf: Any) -> np.ndarray:
        noise = random.normal(size=leaf.shape)
        of_kernel = noise * (2 / np.prod(leaf.shape[-4:-1])) ** 0.5
        of_name = {"kernel": of_kernel, "var": noise**2 + 0.5, "negative_slope": np.array(0.3)}
        return np.asarray(of_name.get(path[-1].key, 0.1 * noise + (path[-1].key == "scale")), np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes)
    run = TrainedRun(
        path=Path("nowhere"),
        config=config,
        class_names=CLASSES,
        model=model,
        params=jax.device_put(variables["params"]),
        batch_stats=jax.device_put(variables.get("batch_stats", {})),
        preprocessing=dataclasses.replace(preprocessing, mean=mean),
        examples_seen=7,
        content="pictures",
    )
    answers = np.log(np.maximum(run.predict(random.integers(0, 256, (4, size, size, 3), np.uint8)), 1e-30))
    run.params[run.layer_names[-1]]["kernel"] /= max(1.0, answers.std())  # else all were 0 or 1
    del vars(run)["_on_device"]
    return run
