"""The training step and the evaluation steps: pure functions of state and batch, not yet compiled.

`axes` names the mapped axes over devices; there are none on one device. Each device gets its shard of the batch and
returns sums over the whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from alexnet_jax import augment, metrics
from alexnet_jax.augment import Preprocessing
from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.parallel.collectives import ONE_DEVICE, Axes, mean_gradients, sum_over_images
from alexnet_jax.train_state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
GradientsStep = Callable[[TrainState, Batch], tuple[Any, tuple[Metrics, Any]]]
"""(state, batch) -> (gradients of the mean loss, (metric sums, new batch_stats))."""

EvalStep = Callable[[Any, Any, Batch], Metrics]
PredictStep = Callable[[Any, Any, Array], Array]

AUXILIARY_WEIGHT = 0.3
"""Weight of the loss of an auxiliary classifier (Szegedy et al. 2015, "Going deeper with convolutions", section 5)."""

_MIXING = 2
"""The number folded into an example's key for mixing pairs; `jax.random.split` gives those of crops and dropout."""


def example_keys(key: Key[Array, ""], epoch: Int[Array, " batch"], id: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """One random key for each example, derived from the seed's key, the epoch and the example's id alone.

    With balanced sampling, how often the image was drawn before takes the place of the epoch; see `augmented`.
    So crops and dropout masks do not depend on the number of devices, hosts or threads, nor on interruptions.
    """
    return jax.vmap(lambda e, i: jax.random.fold_in(jax.random.fold_in(key, e), i))(epoch, id)


def make_train_step(
    model: AlexNet,
    optimizer: optax.GradientTransformationExtraArgs,
    preprocessing: Preprocessing,
    axes: Axes = ONE_DEVICE,
    micro_batches: int = 1,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
) -> TrainStep:
    """Returns (state, batch) -> (new state, metric sums under the old parameters); see `metrics.classification_sums`.

    The batch has image (uint8), label, id and epoch, with balanced sampling also seen. The loss is the mean
    cross-entropy over the whole batch, in nats. Its gradient may be accumulated over `micro_batches` micro-batches,
    which takes less memory. With `class_weights`, [classes], of mean 1 over the training examples, an example's loss is
    multiplied by the weight of its label, in the metrics, too; the sum is divided by the number of examples.

    With mixup, CutMix or label smoothing the loss in the metrics is the cross-entropy with the mixed labels, not
    smoothed, and an example counts as correct if its own label, the one of larger weight, is predicted. Training
    metrics are then comparable across runs, but worse than those of unmixed images. It is the cross-entropy, too, where
    `model.loss` is another or auxiliary classifiers add their losses.

    Raises UserError for what the network cannot do; see `_check_loss`.
    """
    _check_loss(model, micro_batches, class_weights)

    def gradients_step(state: TrainState, batch: Batch) -> tuple[Any, tuple[Metrics, Any]]:
        images, partner_labels, mixup_weights, dropout_keys = augmented(preprocessing, state.key, batch)
        labels = batch["label"]

        def loss(params: Any) -> tuple[Array, tuple[Metrics, Any]]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            (logits, found), updated = model.apply(variables, images, dropout_keys, axes, mutable=["batch_stats"])
            sums = metrics.classification_sums(logits, labels, jnp.ones_like(labels, dtype=bool))
            mixed = labels, partner_labels, mixup_weights
            weights = None if class_weights is None else jnp.asarray(class_weights)
            minimised = sums["loss_sum"]
            if preprocessing.mixes or label_smoothing or weights is not None:
                minimised = jnp.sum(metrics.mixed_cross_entropy(logits, *mixed, label_smoothing, weights))
                sums["loss_sum"] = jnp.sum(metrics.mixed_cross_entropy(logits, *mixed, 0.0, weights))
            if model.loss == "squared_error":
                minimised = jnp.sum(metrics.squared_error(logits, *mixed, label_smoothing))
            for outputs in (found[name].astype(jnp.float32) for name in model.auxiliary_logits):
                losses = metrics.mixed_cross_entropy(outputs, *mixed, label_smoothing, weights)
                minimised += AUXILIARY_WEIGHT * jnp.sum(losses)
            return minimised / len(logits), (sums, updated.get("batch_stats", {}))

        return jax.grad(loss, has_aux=True)(state.params)

    accumulated = gradients_step if micro_batches == 1 else _accumulate(gradients_step, micro_batches)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        gradients, (sums, batch_stats) = accumulated(state, batch)
        gradients, sums = mean_gradients(gradients, axes, model.is_split), sum_over_images(sums, axes)
        return _update(optimizer, state, gradients, batch_stats), sums

    return train_step


@jax.named_scope("optimizer")
def _update(
    optimizer: optax.GradientTransformationExtraArgs, state: TrainState, gradients: Any, batch_stats: Any
) -> TrainState:
    updates, opt_state = optimizer.update(
        gradients, state.opt_state, state.params, learning_rates=state.learning_rates, batch_stats=batch_stats
    )
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, batch_stats=batch_stats, opt_state=opt_state)


def _check_loss(model: AlexNet, micro_batches: int, class_weights: np.ndarray | None) -> None:
    """Raises UserError for micro-batches of a network with batch normalisation and for weights of other losses."""
    if micro_batches > 1 and any("bn" in layer.then for layer in model.layers):
        raise UserError(
            f"config.parallel.micro_batches={micro_batches}: batch normalisation averages over the whole batch"
        )
    if class_weights is not None and model.loss != "cross_entropy":
        raise UserError(f"config.data.class_weights weigh the cross-entropy; this network's loss is {model.loss}")


def augmented(preprocessing: Preprocessing, key: Key[Array, ""], batch: Batch) -> tuple[Array, Array, Array, Array]:
    """Returns augmented images, labels of partners in mixing, weights of own labels and dropout keys.

    Where an epoch may have an image several times, the batch's "seen", by which they differ, takes the epoch's place.
    """
    keys = example_keys(key, batch.get("seen", batch["epoch"]), batch["id"])
    augment_keys, dropout_keys = jax.vmap(lambda key: jax.random.split(key), out_axes=1)(keys)
    images = augment.training_images(preprocessing, batch["image"], augment_keys, batch["epoch"])
    labels = batch["label"]
    if not preprocessing.mixes:
        return images, labels, jnp.ones(labels.shape), dropout_keys
    images, weights = augment.mix(preprocessing, images, augment.fold_in(keys, _MIXING))
    return images, augment.partners(labels), weights, dropout_keys


def _accumulate(gradients_step: GradientsStep, micro_batches: int) -> GradientsStep:
    """Gradient accumulation over micro-batches in turn: averages the gradients and sums the metrics."""

    def accumulated(state: TrainState, batch: Batch) -> tuple[Any, tuple[Metrics, Any]]:
        split = jax.tree.map(lambda values: values.reshape(micro_batches, -1, *values.shape[1:]), batch)

        def add(total: Any, micro_batch: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients_step(state, micro_batch)), None

        shapes = jax.eval_shape(gradients_step, state, jax.tree.map(lambda values: values[0], split))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (gradients, rest), _ = jax.lax.scan(add, zeros, split)
        return jax.tree.map(lambda gradient: gradient / micro_batches, gradients), rest

    return accumulated


def make_predict_step(
    model: AlexNet, preprocessing: Preprocessing, views: int = 1, axes: Axes = ONE_DEVICE
) -> PredictStep:
    """Returns (params, batch_stats, resized images) -> log probabilities, [batch, classes].

    A prediction is the mean of the softmax probabilities over the views of an image (paper section 4.1).
    """

    def predict_step(params: Any, batch_stats: Any, images: Array) -> Array:
        def log_probabilities(crops: Array) -> Array:
            variables = {"params": params, "batch_stats": batch_stats}
            return jax.nn.log_softmax(model.apply(variables, crops, axes=axes)[0])

        by_view = jax.lax.map(log_probabilities, augment.testing_images(preprocessing, images, views))
        return jax.nn.logsumexp(by_view, axis=0) - jnp.log(views)

    return predict_step


def make_eval_step(model: AlexNet, preprocessing: Preprocessing, views: int = 1, axes: Axes = ONE_DEVICE) -> EvalStep:
    """Returns (params, batch_stats, batch) -> metric sums over the images whose mask is true.

    The loss of an image is minus the log probability of its label, as `make_predict_step` predicts it.
    """
    predict = make_predict_step(model, preprocessing, views, axes)

    def eval_step(params: Any, batch_stats: Any, batch: Batch) -> dict[str, Array]:
        predicted = predict(params, batch_stats, batch["image"])
        return sum_over_images(metrics.classification_sums(predicted, batch["label"], batch["mask"]), axes)

    return eval_step


def make_predictions_step(
    model: AlexNet, preprocessing: Preprocessing, views: int = 1, axes: Axes = ONE_DEVICE
) -> EvalStep:
    """Returns (params, batch_stats, batch) -> the most likely classes of each image.

    The result has "prediction" (int32) and "probability", both [batch, min(5, classes)], most likely first, of equal
    ones the lower class; the predictions of an image with a NaN are -1. "loss", [batch], is that of `make_eval_step`.
    """
    predict = make_predict_step(model, preprocessing, views, axes)

    def predictions_step(params: Any, batch_stats: Any, batch: Batch) -> dict[str, Array]:
        predicted = predict(params, batch_stats, batch["image"])
        top, prediction = jax.lax.top_k(predicted, min(5, predicted.shape[1]))
        is_nan = jnp.isnan(predicted).any(axis=1, keepdims=True)
        loss = -jnp.take_along_axis(predicted, batch["label"][:, None], axis=1)[:, 0]
        return {"prediction": jnp.where(is_nan, -1, prediction), "probability": jnp.exp(top), "loss": loss}

    return predictions_step
