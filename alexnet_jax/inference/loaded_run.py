"""A trained network by itself: what a run folder or an exported file holds, ready to answer without a data set."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
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
from alexnet_jax.config import check, complete, decisive
from alexnet_jax.data.images import resize_image
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.errors import UserError, reason
from alexnet_jax.experiment import make_preprocessing
from alexnet_jax.inference.weight_files import compare, read_safetensors, write_safetensors
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.summary import trace_shapes
from alexnet_jax.ops.platforms import fast_compilation
from alexnet_jax.parallel.compilation import compiler_options
from alexnet_jax.steps import make_predict_step
from alexnet_jax.system import console

Image = str | Path | bytes | np.ndarray
"""A file, the content of one, or pixels: uint8, [height, width] or [height, width, 1 or 3], RGB."""

Images = Image | Sequence[Image]
"""One, several, or pixels of several in one array, [images, height, width, 1 or 3]."""


_CHANNELS = ((), (1,), (3,))

FEW_IMAGES = 8
"""That are answered sooner by a program that is slower, but soon compiled."""


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The network of a checkpoint with all that its answers depend on.

    Attributes:
      path: where it was loaded from.
      config: of the run.
      class_names: by label.
      model: the Flax module.
      params: {layer: {"kernel", "bias", ...}}, float32; the moving average where the run kept one.
      batch_stats: running means and variances of batch normalisation; empty without.
      preprocessing: how a square of pixels becomes the network's input.
      examples_seen: training images up to this checkpoint.
      content: a digest of the run's images, labels and splits; "" if there were none.
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

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def outputs(self) -> tuple[str, ...]:
        """A name for each unit of the last layer, which may have more than the data have classes."""
        unused = range(len(self.class_names), self.model.num_classes)
        return (*self.class_names, *(f"unused {number}" for number in unused))

    @property
    def folder(self) -> Path:
        """The run's folder, or that of the file."""
        return self.path if self.path.is_dir() else self.path.parent

    def name_of(self, guess: int) -> str:
        """What a class is called; nothing for -1, which is no answer."""
        return self.outputs[guess] if guess >= 0 else ""

    def square(self, image: Image) -> np.ndarray:
        """The image as training had it: shorter side to `config.data.image_size`, central square, RGB, upright.

        Returns uint8, [size, size, 3]. Raises UserError that names a file which cannot be read.
        """
        data = self.config.data
        try:
            content = Path(image).read_bytes() if isinstance(image, str | Path) else image
            if isinstance(content, np.ndarray) and (content.dtype != np.uint8 or content.shape[2:] not in _CHANNELS):
                raise ValueError(f"{content.dtype} of shape {content.shape} is not uint8, [height, width, 1 or 3]")
            return resize_image(content, data.image_size, data.max_megapixels * 1e6).pixels
        except Exception as error:  # decoders raise anything on broken data
            name = str(image) if isinstance(image, str | Path) else "the image"
            raise UserError(f"{name} cannot be read: {reason(error)}") from error

    def predict(self, images: Images, views: int | None = None) -> np.ndarray:
        """The probability of each class.

        Args:
          images: see `Images`.
          views: that a prediction is averaged over; see `augment.VIEWS`. None for those of the run's tests.

        Returns float32, [images, classes]; rows add up to 1.
        """
        views = self.config.test_views if views is None else views
        return self.in_batches(functools.partial(self._predict, views=views), images)

    def features(self, images: Images, layer: str = "fc7") -> np.ndarray:
        """What a layer makes of the central view of each image, float32, [images, ...].

        `layer` is a name in the network's table: "conv1", "pool5", "act7" is fc7 after its ReLU. Raises UserError for
        one that does not exist.
        """
        if layer not in self.layer_names:
            raise UserError(f"no layer is named {layer!r}; there are: {', '.join(self.layer_names)}")
        return self.in_batches(functools.partial(self._features, layer=layer), images)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Of every intermediate result, in order."""
        return tuple(self.layer_shapes)

    @property
    def layer_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every intermediate result of one image, in order."""
        return trace_shapes(self.model, self.preprocessing.crop)[1]

    @functools.cached_property
    def _predict(self) -> Any:
        def predict(variables: Any, squares: jax.Array, views: int) -> jax.Array:
            step = make_predict_step(self.model, self.preprocessing, views)
            with fast_compilation(len(squares) <= FEW_IMAGES):
                return jnp.exp(step(variables["params"], variables["batch_stats"], squares))

        return jax.jit(predict, static_argnames="views", compiler_options=compiler_options())

    @functools.cached_property
    def _features(self) -> Any:
        def features(variables: Any, squares: jax.Array, layer: str) -> jax.Array:
            return self.activations(variables, squares)[layer].astype(jnp.float32)

        return jax.jit(features, static_argnames="layer", compiler_options=compiler_options())

    def activations(self, variables: Any, squares: jax.Array) -> Any:
        """Every intermediate result of the central views of squares, by name; to be compiled, see `in_batches`."""
        (crops,) = augment.testing_images(self.preprocessing, squares, views=1)
        with fast_compilation(len(squares) <= FEW_IMAGES):
            return self.model.apply(variables, crops)[1]

    def in_batches(self, function: Callable[[Any, Any], Any], images: Images) -> Any:
        """A function of the variables and of the squares of images, a batch at a time.

        The sizes of batches are few: for each the function is compiled. Returns its tree of arrays, [images, ...].
        """
        if isinstance(images, str | Path | bytes) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        if len(images) == 0:
            raise UserError("no images were given")
        most, parts = self.config.eval_batch_size, []
        for first in range(0, len(images), most):
            squares = np.stack([self.square(image) for image in images[first : first + most]])
            size = min(1 << (len(squares) - 1).bit_length(), most)
            padded = np.pad(squares, [(0, size - len(squares)), (0, 0), (0, 0), (0, 0)])
            parts.append(jax.device_get(function(self._on_device, padded)))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(images)], *parts)

    @functools.cached_property
    def _on_device(self) -> Any:
        return jax.device_put(self.variables)

    def save(self, path: Path) -> None:
        """Writes all of it to a .safetensors file, which `load_run` reads. Raises UserError if it cannot."""
        tree = {**self.variables, "preprocessing": self.preprocessing.measured}
        header = {"class_names": self.class_names, "examples_seen": self.examples_seen, "data": self.content}
        about = json.loads(json.dumps({"config": self.config.to_dict(), **header}))
        write_safetensors(path, tree, {**about, "digest": digest(tree, about)})


def load_run(path: str | Path, checkpoint: str = "latest") -> TrainedRun:
    """Loads a network from the folder of a run or from a .safetensors file that `TrainedRun.save` wrote.

    Args:
      path: wherever the folder or file lies now.
      checkpoint: "latest", "best" (on the validation split), or a number of examples seen; a file holds one.

    Raises UserError for what is not there, is damaged, or needs another version of the code.
    """
    path = Path(path)
    if path.is_dir():
        restored = _restore(path / "checkpoints", checkpoint)
        tree, about = restored.tree, {**restored.metadata, "examples_seen": restored.examples_seen}
    elif path.exists():
        if checkpoint != "latest":
            raise UserError(f"--checkpoint={checkpoint}: {path} is a file, which holds one")
        tree, about = read_safetensors(path)
        if "digest" not in about or digest(tree, about) != about["digest"]:
            raise UserError(f"{path} is damaged: its content does not match its digest")
    else:
        raise UserError(f"{path}: no such run")
    try:
        return _assemble(path, tree, about)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # whatever is missing, or of another kind
        raise UserError(f"{path} is no run of this code: {type(error).__name__}, {reason(error)}") from error


def _assemble(path: Path, tree: dict[str, Any], about: dict[str, Any]) -> TrainedRun:
    """Raises UserError if the parts do not fit each other, or anything for parts that are missing."""
    plain = complete(about["config"])
    check(plain)
    config, class_names = ConfigDict(plain), tuple(about["class_names"])
    preprocessing = make_preprocessing(config.data, Statistics.unknown(config.data.image_size))
    run = TrainedRun(
        path=path,
        config=config,
        class_names=class_names,
        model=get_model(config.model, len(class_names)),
        params=tree["average"] if "average" in tree else tree["params"],
        batch_stats=tree.get("batch_stats", {}),
        preprocessing=dataclasses.replace(preprocessing, **tree["preprocessing"]),
        examples_seen=about["examples_seen"],
        content=about["data"],
    )
    if differences := compare(_by_name(run.variables), _by_name(trace_shapes(run.model, run.preprocessing.crop)[0])):
        raise UserError(f"its arrays are not those of its network: {'; '.join(differences)}")
    return run


DECISIVE = ("data.image_size", "data.crop", "data.mean_form", "data.std", "data.mean")
"""What images must have in common for kernels to be of use to others; means, where both configs give them."""


def start_from(config: ConfigDict, class_names: Sequence[str], variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the network at `config.init_from`, to begin another training with (fine-tuning).

    The last layer is taken along only if the classes are the same; otherwise it stays as in `variables`.

    Args:
      config: of the new run.
      class_names: of its data.
      variables: freshly drawn, {"params", "batch_stats"}.

    Raises UserError that lists all differences in names, shapes and preprocessing, if there are any.
    """
    try:
        run = load_run(config.init_from)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    theirs, ours = decisive(run.config.to_dict()), decisive(config.to_dict())
    differences = [
        f"config.{key}: {theirs[key]} there, {ours[key]} here"
        for key in DECISIVE
        if None not in (theirs[key], ours[key]) and theirs[key] != ours[key]
    ]
    if run.model.activation != (activation := get_model(config.model, 1).activation):
        differences.append(f"config.model.activation: {run.model.activation} there, {activation} here")
    old, fresh = _by_name(run.variables), _by_name(variables)
    if run.class_names != tuple(class_names):
        last = f"params/{run.layer_names[-1]}/"
        old = {name: array for name, array in old.items() if not name.startswith(last)}
        old |= {name: array for name, array in fresh.items() if name.startswith(last)}
    differences += compare(old, fresh)
    if differences:
        raise UserError(f"config.init_from={config.init_from} does not suit: {'; '.join(differences)}")
    return traverse_util.unflatten_dict(old, sep="/")


def _by_name(variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a network consists of, named like "params/conv1/kernel"."""
    whole = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    return traverse_util.flatten_dict(whole, sep="/")


def _restore(directory: Path, name: str) -> Restored:
    """The checkpoint that is meant."""
    if name not in ("latest", "best"):
        names = checkpoint_names(directory)
        if not name.isdecimal() or int(name) not in names:
            raise UserError(f"--checkpoint={name}: {directory} has {', '.join(map(str, names)) or 'none'}")
        return restore(directory, int(name))
    latest, warnings = restore_latest(directory)
    if latest is None:
        raise UserError(f"{directory} holds no checkpoint")
    for warning in warnings:
        console.warn(f"{warning}; the one before is used")
    best = latest.metadata["best"]
    return latest if name == "latest" or best in (None, latest.examples_seen) else restore(directory, best)
