"""Tensor parallelism as in 2012 and in 2014: the same training, and the expected collectives."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.models.summary import summarize
from alexnet_jax.parallel.devices import Devices, data_parallel, mesh_parallel
from benchmarks.mesh import FLOAT_BYTES, collectives, describe, received_bytes
from tests.conftest import REPOSITORY
from tests.helpers import hlo
from tests.helpers.mesh_run import BATCH, batches, largest_errors, outcome, start, thin


@pytest.fixture(scope="module")
def source_alone() -> dict[str, np.ndarray]:
    return outcome(data_parallel(1), "source,smoke", 20)


@pytest.mark.parametrize(("devices", "towers"), [pytest.param(2, 1, marks=pytest.mark.slow), (2, 2)])
def test_the_scheme_of_2012_on_two_devices(devices: int, towers: int, source_alone: dict[str, np.ndarray]) -> None:
    mesh = mesh_parallel(devices, towers, thin("source,smoke")[1])
    errors = largest_errors(source_alone, outcome(mesh, "source,smoke", 20))
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize(
    ("choices", "steps", "devices"),
    [
        pytest.param("paper,smoke", 20, 1, marks=pytest.mark.slow),  # a normalisation window that crosses the towers
        pytest.param(
            "owt,smoke", 20, 1, marks=pytest.mark.slow
        ),  # fully connected layers alone divided, images put together for them
        # Batch normalisation of such a layer. The rounding of its averages, 5e-5 between one device and two in either
        # way, grows tenfold a step.
        pytest.param("bn,smoke", 2, 2, marks=pytest.mark.slow),
    ],
)
def test_other_networks_on_two_devices(choices: str, steps: int, devices: int) -> None:
    mesh = mesh_parallel(2, 2, thin(choices)[1])
    errors = largest_errors(outcome(data_parallel(devices), choices, steps), outcome(mesh, choices, steps))
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.slow
def test_four_and_eight_devices() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.helpers.mesh_run"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, errors in json.loads(done.stdout).items():
        assert max(errors.values()) <= (1e-4 if "pmap" in name else 1e-5), (name, errors)


def program(devices: Devices, choices: str) -> jax.stages.Compiled:
    """The compiled training step of a narrow network."""
    step, state = start(devices, choices)
    return step.compile(state, devices.shard(batches(1, thin(choices)[0].data.image_size)[0]))


def sizes(choices: str) -> dict[str, int]:
    """Activations of an image after each layer of the network, all towers together."""
    config, model, _, _ = thin(choices)
    return {row.name: int(np.prod(row.shape)) for row in summarize(model, config.data.crop)}


def test_towers_exchange_activations_into_conv3_and_the_fully_connected_layers_alone() -> None:
    mesh = mesh_parallel(2, 2, thin("source,smoke")[1])
    moves = collectives(program(mesh, "source,smoke"))
    size = sizes("source,smoke")
    exchanged = [size["pool2"], size["pool5"], size["fc6"], size["fc7"], size["fc8"]]  # into conv3, fc6, fc7, fc8, loss
    gathered = [np.prod(shape) // BATCH for operation, shape in moves if operation == "all-gather"]
    scattered = [2 * np.prod(shape) // BATCH for operation, shape in moves if operation == "reduce-scatter"]
    assert sorted(gathered) == sorted(scattered) == sorted(exchanged)
    assert len(moves) == 2 * len(exchanged)
    assert (
        received_bytes(moves, towers=2) / BATCH == 2 * FLOAT_BYTES * sum(exchanged) / 2
    )  # forward and back, the other tower's half
    sums = hlo.sums(program(mesh, "source,smoke"))
    assert sums and all(map(hlo.sends_nothing, sums))  # over images: both devices see the same ones


def test_the_window_of_the_printed_normalisation_needs_two_channels_of_the_other_tower() -> None:
    mesh = mesh_parallel(2, 2, thin("paper,smoke")[1])
    permuted = [shape for operation, shape in collectives(program(mesh, "paper,smoke")) if "permute" in operation]
    size = sizes("paper,smoke")
    pixels = size["conv1"] // 6 + size["conv2"] // 16  # where an activation is normalised
    # two channels to either side (zeros to that where no tower is), and their gradients back
    assert sum(np.prod(shape) for shape in permuted) == BATCH * pixels * 2 * 2 * 2


def test_in_the_scheme_of_2014_images_meet_before_the_fully_connected_layers() -> None:
    mesh = mesh_parallel(2, 2, thin("owt,smoke")[1])
    moves = collectives(program(mesh, "owt,smoke"))
    size = sizes("owt,smoke")
    gathered = [np.prod(shape) // BATCH for operation, shape in moves if operation == "all-gather"]
    assert sorted(gathered) == sorted([size["pool5"], size["fc6"], size["fc7"]])
    returned = sum(np.prod(shape) for operation, shape in moves if operation == "all-to-all")
    assert returned == 2 * BATCH // 2 * size["fc8"]  # logits there, their gradients back
    (reduced,) = hlo.sums(program(mesh, "owt,smoke"), (11, 11, 3))
    assert not hlo.sends_nothing(reduced)


@pytest.mark.parametrize("choices", ["source,smoke", "owt,smoke"])
def test_each_device_holds_its_part_of_the_network(choices: str) -> None:
    model = thin(choices)[1]
    mesh, alone = mesh_parallel(2, 2, model), data_parallel(1)
    _, state = start(mesh, choices)
    for name, parameters in state.params.items():
        for array in parameters.values():
            parts = 2 if model.is_split(name) else 1
            assert {part.data.shape for part in array.addressable_shards} == {
                (*array.shape[:-1], array.shape[-1] // parts)
            }
    divided = program(mesh, choices).memory_analysis()
    whole = program(alone, choices).memory_analysis()
    split = sum(array.nbytes for name, part in state.params.items() if model.is_split(name) for array in part.values())
    images = batches(1)[0]["image"].nbytes // (2 if choices.startswith("owt") else 1)
    saved = whole.argument_size_in_bytes - divided.argument_size_in_bytes
    assert abs(saved - 2 * split / 2 - (batches(1)[0]["image"].nbytes - images)) < 1000  # parameters and velocity; ids
    assert divided.temp_size_in_bytes < whole.temp_size_in_bytes


@pytest.mark.parametrize(
    ("choices", "devices", "towers", "message"),
    [
        ("source,smoke", 2, 3, r"config\.parallel\.towers=3.* 2 devices"),
        ("lenet,smoke", 3, 1, r"num_devices=3.* 2"),
    ],
)
def test_meshes_that_cannot_be(choices: str, devices: int, towers: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        mesh_parallel(devices, towers, thin(choices)[1])


def test_networks_that_do_not_divide() -> None:
    model = thin("source,smoke")[1]
    with pytest.raises(UserError, match=r"2 towers.* 1 or 2"):
        model.check_split(4)
    with pytest.raises(UserError, match=r"7 features of fc8.*config\.model\.num_classes=8 "):
        model.clone(num_classes=7).check_split(2)


@pytest.mark.slow
def test_the_table_of_meshes() -> None:
    """Cells are numbers, and a single device receives nothing."""
    alone, shared = (describe("synthetic,lenet,smoke", 1, towers).split(" | ") for towers in (1, 2))
    assert alone[0] == "0.0" and float(shared[0]) > 0
    assert float(shared[1].replace(",", "")) < float(alone[1].replace(",", ""))
