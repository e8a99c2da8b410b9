"""One and two devices: the same images, the same dropout masks, the same training."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.data.loader import load_into_memory, train_batches, training_order
from alexnet_jax.data.storage import InMemoryRecords
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import make_evaluate, open_dataset
from alexnet_jax.ops.platforms import fast_compilation
from alexnet_jax.parallel.collectives import Axes
from alexnet_jax.parallel.devices import Devices, _tell_of_unused_gpu, data_parallel
from alexnet_jax.parallel.memory import USABLE_FRACTION
from alexnet_jax.parallel.program import Program
from alexnet_jax.steps import make_eval_step, make_train_step
from alexnet_jax.train_state import TrainState, create_train_state, init_variables
from tests.helpers.mesh_run import BATCH, Batch, batches, draws, largest_errors, outcome, relative_to_layers, thin
from tests.helpers.training_setup import setup


@pytest.mark.parametrize("mean_form", ["image_centre", "image_crop"])
def test_crops_and_masks_are_equal_to_the_bit(mean_form: str) -> None:
    one, two = (draws(data_parallel(devices), mean_form) for devices in (1, 2))
    for of_one, of_two in zip(one, two, strict=True):
        np.testing.assert_array_equal(of_one, of_two)
        assert len(np.unique(of_one, axis=0)) == BATCH  # each example has its own


@pytest.mark.slow
def test_distortions_are_equal_to_the_bit() -> None:
    factors = {"rotation": 20.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
    changes = {**factors, "trivial_augment": True, "random_erasing": 0.5, "cropping": "resized"}
    with fast_compilation(False):  # crops as a CPU computes them, not as a GPU
        one, two = (draws(data_parallel(devices), "image_centre", **changes)[0] for devices in (1, 2))
    np.testing.assert_array_equal(one, two)


def trained(
    parallel: Devices, choices: str, rate: float, stream: Iterable[Batch], resident: Batch | None = None
) -> tuple[TrainState, list[dict[str, jax.Array]]]:
    """The state after some steps of a narrow network, and the metrics of each step."""
    config, model, optimizer, preprocessing = thin(choices)
    step = parallel.compile_train_step(make_train_step(model, optimizer, preprocessing, Axes(("data",))), resident)
    state = parallel.place(create_train_state(init_variables(model, config.data.crop, 0), optimizer, 0))
    rates = jax.tree.map(lambda _: np.float32(rate), state.params)
    state = state.replace(learning_rates=parallel.place(rates))
    sums = []
    for batch in stream:
        state, of_batch = step(state, parallel.shard(batch))
        assert int(of_batch["count"]) == BATCH
        sums.append(of_batch)
    return state, sums


def losses(devices: int, choices: str, rate: float, steps: int) -> list[float]:
    image_size = setup(choices)[0].data.image_size
    _, sums = trained(data_parallel(devices), choices, rate, batches(steps, image_size))
    return [float(of_batch["loss_sum"]) for of_batch in sums]


# Batch normalisation over 16 noise images is chaotic: at a rate of 0.01 any rounding grows tenfold a step.
@pytest.mark.parametrize(
    ("choices", "rate"),
    [
        ("source,smoke", 0.01),
        pytest.param("lenet,smoke", 0.01, marks=pytest.mark.slow),
        pytest.param("bn,smoke", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_losses_over_20_steps(choices: str, rate: float) -> None:
    one, two = losses(1, choices, rate, 20), losses(2, choices, rate, 20)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert one[0] != one[-1]


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_images_on_the_device_train_as_those_of_the_host_to_the_bit(devices: int) -> None:
    choices = "synthetic,source,smoke"  # crops, reflections, colour noise, dropout
    size = setup(choices)[0].data.image_size
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (37, size, size, 3), dtype=np.uint8)
    records = InMemoryRecords(images, generator.integers(0, 10, 37, dtype=np.int32))
    stream = {"batch_size": BATCH, "seed": 0, "start_example": 30}  # each batch but the second straddles epochs
    host = train_batches(records, **stream, num_threads=2)
    order = training_order(37, **stream)
    parallel = data_parallel(devices)
    resident = {"image": records.images, "label": records.labels}
    of_host = trained(parallel, choices, 0.01, itertools.islice(host, 5))
    of_device = trained(parallel, choices, 0.01, itertools.islice(order, 5), resident)
    host.close()
    for one, other in zip(jax.tree.leaves(of_host), jax.tree.leaves(of_device), strict=True):
        np.testing.assert_array_equal(raw(one), raw(other))


def raw(leaf: jax.Array) -> np.ndarray:
    """The bits of an array or of random keys."""
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@pytest.mark.parametrize("devices", [1, 2])
def test_every_device_holds_the_whole_split_once(devices: int) -> None:
    parallel = data_parallel(devices)
    held = parallel.place({"image": np.arange(48, dtype=np.uint8).reshape(4, 2, 2, 3)})["image"]
    assert [shard.data.shape for shard in held.addressable_shards] == [(4, 2, 2, 3)] * devices
    assert {shard.device for shard in held.addressable_shards} == set(parallel.devices)


@pytest.mark.parametrize("cache", ["host", "device"])
def test_the_step_compiles_once_and_consumes_its_state(cache: str) -> None:
    config, model, optimizer, preprocessing = setup("lenet,smoke")
    parallel = data_parallel(2)
    traces = []
    step = make_train_step(model, optimizer, preprocessing, Axes(("data",)))

    def counted(state: Any, batch: Any) -> Any:
        traces.append(1)
        return step(state, batch)

    stream, resident = batches(3, config.data.image_size), None
    if cache == "device":
        resident = {name: np.concatenate([batch[name] for batch in stream]) for name in ("image", "label")}
        stream = [{name: batch[name] for name in ("id", "epoch")} for batch in stream]
    compiled = parallel.compile_train_step(counted, resident)
    state = parallel.place(create_train_state(init_variables(model, config.data.crop, 0), optimizer, 0))
    first = jax.tree.leaves(state.params)[0]
    for batch in stream:
        state, _ = compiled(state, parallel.shard(batch))
    assert len(traces) == 1
    assert first.is_deleted()


@pytest.mark.parametrize(
    ("devices", "batch_size", "views"), [(1, 1, 1), (1, 7, 1), (1, 64, 10), (2, 1, 1), (2, 7, 10), (2, 64, 1)]
)
def test_evaluation_counts_every_image_once_whatever_the_batch(
    devices: int, batch_size: int, views: int, make_config: Callable[..., ConfigDict]
) -> None:
    config = make_config(eval_batch_size=batch_size, **{"data.synthetic_examples": 1048})
    _, model, _, preprocessing = setup("synthetic,lenet,smoke")
    dataset = open_dataset(config.data)  # 131 images to validate on, a prime number
    variables = init_variables(model, config.data.crop, 0)
    parallel = data_parallel(devices)
    evaluate = make_evaluate(config, model, dataset, preprocessing, parallel, views)
    *_, totals = evaluate(parallel.place(variables["params"]), {}, "validation")
    reference = jax.jit(make_eval_step(model, preprocessing, views))
    records = load_into_memory(dataset.splits["validation"], num_threads=1)
    everything = {
        "image": jnp.asarray(records.images),
        "label": jnp.asarray(records.labels),
        "mask": jnp.ones(131, bool),
    }
    expected = reference(variables["params"], {}, everything)
    for name in ("count", "top1_correct", "top5_correct"):
        assert totals[name] == int(expected[name])
    assert totals["count"] == 131


def test_micro_batches_train_as_the_whole_batch() -> None:
    whole, parts = (outcome(data_parallel(1), "source,smoke", 4, micro_batches=count) for count in (1, 4))
    errors = largest_errors(whole, parts)
    assert errors["values"] == 0 and errors["losses"] <= 1e-6 and errors["gradients"] <= 5e-6
    assert relative_to_layers(whole["params"], parts["params"]) <= 1e-6


def test_batch_normalisation_has_no_micro_batches() -> None:
    _, model, optimizer, preprocessing = setup("bn,smoke")
    with pytest.raises(UserError, match=r"config\.parallel\.micro_batches=2"):
        make_train_step(model, optimizer, preprocessing, micro_batches=2)


def test_more_devices_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"num_devices=3.* 2"):
        data_parallel(3)


def test_a_gpu_that_this_jax_cannot_use_is_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alexnet_jax.parallel.devices.has_nvidia_gpu", lambda: True)
    data_parallel(1)
    assert capsys.readouterr().out == ""  # JAX_PLATFORMS=cpu is what was asked for
    monkeypatch.delenv("JAX_PLATFORMS")
    _tell_of_unused_gpu.cache_clear()
    data_parallel(1)
    data_parallel(2)
    out = capsys.readouterr().out
    assert out.count("an NVIDIA GPU is here, but this JAX is for CPUs") == out.count("pip install") == 1


class OutOfMemory(Program):
    """A program that fails because it is out of memory."""

    def _run(self, *args: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_exhausted_memory_names_the_batch_that_fits(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model, optimizer, preprocessing = setup("lenet,smoke")
    parallel = data_parallel(devices)
    state = parallel.place(create_train_state(init_variables(model, config.data.crop, 0), optimizer, 0))
    step = parallel.compile_train_step(make_train_step(model, optimizer, preprocessing, parallel.axes))

    def batch(images: int) -> Batch:
        first = batches(1, config.data.image_size)[0]
        return {name: np.resize(values, (images * devices, *values.shape[1:])) for name, values in first.items()}

    memory = step.compile(state, parallel.shard(batch(96))).memory_analysis()
    needed = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    monkeypatch.setattr(Devices, "free_memory_bytes", int(needed / USABLE_FRACTION))
    monkeypatch.setattr("alexnet_jax.parallel.devices.Program", OutOfMemory)
    step = parallel.compile_train_step(make_train_step(model, optimizer, preprocessing, parallel.axes))
    with pytest.raises(UserError, match=r"256 images.*\d+") as raised:
        step(state, parallel.shard(batch(256)))
    fitting = int(str(raised.value).split("config.batch_size=")[1].split()[0])
    assert fitting % devices == 0 and abs(fitting / devices - 96) <= 5
    with pytest.raises(UserError, match=r" 1 images"):
        parallel.compile_train_step(make_train_step(model, optimizer, preprocessing, parallel.axes))(
            state, parallel.shard(batch(1))
        )


def test_deterministic_steps_tell_xla_and_change_nothing_on_a_cpu() -> None:
    outcomes = []
    for deterministic in (False, True):
        devices = dataclasses.replace(data_parallel(1), deterministic=deterministic)
        assert devices.compiler_options["xla_gpu_deterministic_ops"] is deterministic
        state, _ = trained(devices, "lenet,smoke", 0.01, batches(2, 32))
        outcomes.append(devices.on_host(state.params))
    jax.tree.map(np.testing.assert_array_equal, *outcomes)
