"""A trained network loaded from a run folder or an exported file, ready to predict without its data set."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from alexnet_jax import augment
from alexnet_jax.augment import Preprocessing
from alexnet_jax.checkpoint import Restored, checkpoint_names, digest, restore, restore_latest
from alexnet_jax.config import check, complete_here
from alexnet_jax.data.images import resize_image
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.errors import UserError, reason
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.inference.image_inputs import Image, Images, content_of, one_by_one
from alexnet_jax.inference.weight_files import compare, read_safetensors, write_safetensors
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.summary import trace_shapes
from alexnet_jax.ops.platforms import fast_compilation
from alexnet_jax.parallel.compilation import compiler_options
from alexnet_jax.run.metrics_log import read_metrics
from alexnet_jax.steps import make_predict_step
from alexnet_jax.system import console
from alexnet_jax.system.files import expand_home

FEW_IMAGES = 8
"""Up to this batch size, compile time outweighs run time: a slower program that compiles faster answers sooner."""


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedRun:
    """The network of a checkpoint with everything that its predictions depend on.

    Attributes:
      path: the run folder or file that it was loaded from.
      config: the config of the run, with the default folders and threads of this machine; see `complete_here`.
      class_names: names of the classes, by label.
      model: the Flax module.
      params: {layer: {"kernel", "bias", ...}}, float32; their moving average if the run kept one.
      batch_stats: running means and variances of batch normalisation, averaged like `params`; empty without it.
      preprocessing: converts resized images to the network's input.
      examples_seen: training images seen up to this checkpoint.
      content: digest of the data set's images, labels and splits; "" for a network that was converted.
    """

    path: Path
    config: ConfigDict
    class_names: tuple[str, ...]
    model: AlexNet
    params: Any
    batch_stats: Any
    preprocessing: Preprocessing
    examples_seen: int
    content: str

    def __repr__(self) -> str:
        """Name, network, data, length, errors and place, a line each."""
        shown = ", ".join(self.class_names[:8]) + (", ..." if len(self.class_names) > 8 else "")
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        facts = {
            "network": f"{self.config.model.preset}, {parameters:,} parameters",
            "data set": f"{self.config.data.name}; {len(self.class_names):,} classes: {shown}",
            **recorded(self.path, self.examples_seen),
            "folder" if self.path.is_dir() else "file": str(self.path.resolve()),
        }
        lines = [f"TrainedRun {self.path.name}", *(f"  {name:<10}{value}" for name, value in facts.items())]
        return console.printable("\n".join(lines), keep="\n")

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of `model.apply`: params and batch_stats."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def outputs(self) -> tuple[str, ...]:
        """A name for each output of the network, which may have more outputs than the data have classes."""
        unused = range(len(self.class_names), self.model.num_classes)
        return (*self.class_names, *(f"unused {number}" for number in unused))

    @property
    def folder(self) -> Path:
        """The run's folder, or the folder that holds the file."""
        return self.path if self.path.is_dir() else self.path.parent

    def name_of(self, label: int) -> str:
        """The name of a class; "" for -1, which stands for no prediction."""
        return self.outputs[label] if label >= 0 else ""

    def resize(self, image: Image, name: str = "the image") -> np.ndarray:
        """Resizes an image as for training: upright, RGB, shorter side to `config.data.image_size`, central square.

        Args:
          image: see `Image`.
          name: how an error calls it if it is no path.

        Returns:
          The resized image, uint8, [size, size, 3].

        Raises UserError that names the file if it cannot be read.
        """
        data, max_pixels = self.config.data, self.config.data.max_megapixels * 1e6
        try:
            return resize_image(content_of(image, max_pixels), data.image_size, max_pixels).pixels
        except Exception as error:  # decoders raise anything on broken data
            called = str(image) if isinstance(image, str | Path) else name
            raise UserError(f"{called} cannot be read: {reason(error)}") from error

    def predict(self, images: Images, views: int | None = None) -> np.ndarray:
        """Predicts the probability of each class.

        Args:
          images: see `Images`.
          views: number of views to average over, one of `augment.VIEWS`; None for `config.test_views`.

        Returns:
          Probabilities, float32, [images, classes]; each row sums to 1.
        """
        views = self.config.test_views if views is None else views
        return self.in_batches(functools.partial(self._predict, views=views), images)

    def features(self, images: Images, layer: str = "fc7") -> np.ndarray:
        """Computes an activation of the network for the central crop of each image.

        Args:
          images: see `Images`.
          layer: one of `layer_names`, like "conv1", "pool5", or "act7" for fc7 after its ReLU.

        Returns:
          Activations, float32, [images, ...].

        Raises UserError if the network has no such layer.
        """
        if layer not in self.layer_names:
            raise UserError(f"the network has no layer {layer!r}; it has: {', '.join(self.layer_names)}")
        return self.in_batches(functools.partial(self._features, layer=layer), images)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all activations, in order."""
        return tuple(self.layer_shapes)

    @property
    def layer_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all activations by name, in order, for one image."""
        return trace_shapes(self.model, self.preprocessing.crop)[1]

    @functools.cached_property
    def _predict(self) -> Any:
        def predict(variables: Any, images: jax.Array, views: int) -> jax.Array:
            step = make_predict_step(self.model, self.preprocessing, views)
            with fast_compilation(len(images) <= FEW_IMAGES):
                return jnp.exp(step(variables["params"], variables["batch_stats"], images))

        return jax.jit(predict, static_argnames="views", compiler_options=compiler_options())

    @functools.cached_property
    def _features(self) -> Any:
        def features(variables: Any, images: jax.Array, layer: str) -> jax.Array:
            return self.activations(variables, images)[layer].astype(jnp.float32)

        return jax.jit(features, static_argnames="layer", compiler_options=compiler_options())

    def activations(self, variables: Any, images: jax.Array) -> Any:
        """All activations by name for the central crops of resized images; to be compiled, see `in_batches`."""
        (crops,) = augment.testing_images(self.preprocessing, images, views=1)
        with fast_compilation(len(images) <= FEW_IMAGES):
            return self.model.apply(variables, crops)[1]

    def in_batches(self, function: Callable[[Any, Any], Any], images: Images) -> Any:
        """Applies a compiled function to images in batches of few different sizes, as it is compiled for each size.

        Args:
          function: (variables, resized images, uint8, [batch, size, size, 3]) -> a tree of arrays, [batch, ...].
          images: see `Images`.

        Returns:
          The tree of arrays for all images, on the host, [images, ...].

        Raises UserError if there are no images, or if one cannot be read.
        """
        numbered = enumerate(one_by_one(images), start=1)
        most, count, results = self.config.eval_batch_size, 0, []
        while some := list(itertools.islice(numbered, most)):
            batch = np.stack([self.resize(image, f"image {number}") for number, image in some])
            count += len(batch)
            size = min(1 << (len(batch) - 1).bit_length(), most)
            padded = np.pad(batch, [(0, size - len(batch)), (0, 0), (0, 0), (0, 0)])
            results.append(jax.device_get(function(self._on_device, padded)))
        if not results:
            raise UserError("no images were given")
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *results)

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    def save(self, path: Path) -> None:
        """Writes the run to a .safetensors file that `load_run` reads. Raises UserError if it cannot be written."""
        tree = {**self.variables, "preprocessing": self.preprocessing.measured}
        header = {"class_names": self.class_names, "examples_seen": self.examples_seen, "data": self.content}
        about = json.loads(json.dumps({"config": self.config.to_dict(), **header}))
        write_safetensors(path, tree, {**about, "digest": digest(tree, about)})


def load_run(path: str | Path, checkpoint: str = "tested") -> TrainedRun:
    """Loads a trained network from a run folder, or from a .safetensors file written by `TrainedRun.save`.

    Args:
      path: the folder or file; it may have been moved.
      checkpoint: "latest", "best" (lowest validation error), "tested" (the best with early stopping, else the latest),
        or a number of examples seen. A file holds only one.

    Raises UserError if it does not exist, is damaged, or was written by an incompatible version.
    """
    path = Path(expand_home(path))
    jax.devices()  # if JAX has none, that is not a fault of the checkpoint
    if path.is_dir():
        restored = restore_named(path / "checkpoints", checkpoint)
        tree, about = restored.tree, {**restored.metadata, "examples_seen": restored.examples_seen}
    elif path.exists():
        if checkpoint not in ("latest", "tested"):
            raise UserError(f"--checkpoint={checkpoint}: {path} is a file, which holds one checkpoint; leave it out")
        tree, about = read_safetensors(path)
        if "digest" not in about or digest(tree, about) != about["digest"]:
            raise UserError(f"{path} is damaged: its content does not match its digest")
    else:
        raise UserError(f"{path}: no such run folder or file")
    try:
        return _assemble(path, tree, about)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # anything may be missing or of the wrong type
        raise UserError(f"{path} holds no run of alexnet_jax ({type(error).__name__}: {reason(error)})") from error


def _assemble(path: Path, tree: dict[str, Any], about: dict[str, Any]) -> TrainedRun:
    """Builds the run. Raises UserError if arrays and config do not match, other exceptions for missing entries."""
    plain = complete_here(about["config"])
    check(plain)
    config, class_names = ConfigDict(plain), tuple(about["class_names"])
    preprocessing = make_preprocessing(config.data, Statistics.unknown(config.data.image_size))
    run = TrainedRun(
        path=path,
        config=config,
        class_names=class_names,
        model=get_model(config.model, len(class_names)),
        params=tree["average"] if "average" in tree else tree["params"],
        batch_stats=tree.get("average_stats", tree.get("batch_stats", {})),
        preprocessing=dataclasses.replace(preprocessing, **tree["preprocessing"]),
        examples_seen=about["examples_seen"],
        content=about["data"],
    )
    if differences := compare(by_name(run.variables), by_name(trace_shapes(run.model, run.preprocessing.crop)[0])):
        raise UserError(f"its arrays do not match its network: {'; '.join(differences)}")
    return run


def recorded(path: Path, examples_seen: int) -> dict[str, str]:
    """How long a network was trained, and its errors, as far as the records in its folder tell; a file has none."""
    seen, epochs, errors = f"{examples_seen:,} images", "", list[str]()
    try:
        for record in read_metrics(path) if path.is_dir() else []:
            position = record.get("checkpoint", record["examples_seen"])
            if record["kind"] == "start":
                epochs = f"{examples_seen / record['train_examples']:.4g} epochs, "
            elif record["kind"] == "epoch" and position == examples_seen:
                errors = [f"validation {console.percent(record['validation_top1_error'])}"]
            elif record["kind"] == "test" and position == examples_seen:
                errors = [*errors[:1], f"{record['split']} {console.percent(record['top1_error'])}"]
    except (UserError, KeyError, TypeError, ValueError, ZeroDivisionError):  # records are damaged
        errors = []
    return {"trained": f"{epochs}{seen}", "errors": ", ".join(errors) or "not recorded"}


def by_name(variables: Mapping[str, Any]) -> dict[str, Any]:
    """All arrays of a network, by names like "params/conv1/kernel"."""
    whole = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return traverse_util.flatten_dict(whole, sep="/")


def restore_named(directory: Path, name: str) -> Restored:
    """Restores a checkpoint by one of the names that `load_run` takes. Raises UserError if there is none."""
    if name not in ("latest", "best", "tested"):
        names = checkpoint_names(directory)
        if not name.isdecimal() or int(name) not in names:
            raise UserError(f"--checkpoint={name}: {directory} holds {', '.join(map(str, names)) or 'none'}")
        return restore(directory, int(name))
    latest, warnings = restore_latest(directory)
    if latest is None:
        raise UserError(f"{directory} holds no checkpoint")
    for warning in warnings:
        console.warn(f"{warning}; using the previous checkpoint")
    if name == "tested":
        name = "best" if latest.metadata["config"].get("early_stopping_patience") else "latest"
    best = latest.metadata["best"]
    return latest if name == "latest" or best in (None, latest.examples_seen) else restore(directory, best)
