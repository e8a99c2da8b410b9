"""`config.init_from`: a run that starts from the parameters of another."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from alexnet_jax.checkpoint import restore_latest
from alexnet_jax.errors import UserError
from alexnet_jax.train import train_and_evaluate
from alexnet_jax.trained import TrainedRun, load_run, start_from
from tests.pictures import make_folder

MakeConfig = Callable[..., ConfigDict]
PLAIN: dict[str, object] = {"data.mean": (78.0, 78.0, 78.0), "model.hidden_width": 16}


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> Path:
    """A run of ten classes."""
    from configs import alexnet

    config = alexnet.get_config("synthetic,lenet,smoke")
    config.data.prepared_dir = prepared_dir
    config.update_from_flattened_dict({**PLAIN, "seed": 7})
    workdir = tmp_path_factory.mktemp("body")
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture
def two_classes(tmp_path: Path, make_config: MakeConfig) -> Callable[..., ConfigDict]:
    """A config for photographs of two classes."""
    folder = make_folder(tmp_path / "photos", {"train/cat": 20, "train/dog": 20})

    def make(init_from: Path, **changes: object) -> ConfigDict:
        data = {"data.dir": str(folder), "data.prepared_dir": str(tmp_path / "prepared"), "batch_size": 8}
        same = {"init_from": str(init_from), "max_steps": 2}
        config = make_config("folder,lenet", **PLAIN, **data, **same)
        config.update_from_flattened_dict(changes)
        return config

    return make


def layer(run: TrainedRun, name: str) -> np.ndarray:
    return np.asarray(run.params[name]["kernel"])


@pytest.mark.parametrize("of_a_file", [False, True])
def test_new_classes_a_frozen_body_and_a_resumed_run(
    of_a_file: bool, body: Path, two_classes: Callable[..., ConfigDict], tmp_path: Path
) -> None:
    source = tmp_path / "body.safetensors" if of_a_file else tmp_path / "body"
    load_run(body).save(source) if of_a_file else shutil.copytree(body, source)
    rates = (("conv*", 0.0, 0.0), ("fc3/*", 0.0, 0.1))
    config = two_classes(source, **{"optimizer.rate_multipliers": rates})
    train_and_evaluate(config, tmp_path / "run")
    old, new = load_run(body), load_run(tmp_path / "run")
    for name in ("conv1", "conv2"):
        jax.tree.map(np.testing.assert_array_equal, new.params[name], old.params[name])
    assert layer(new, "fc5").shape == (16, 2)
    for name in ("fc3", "fc4"):
        moved = np.abs(layer(new, name) - layer(old, name)).max()
        assert 0 < moved < 0.5 * np.abs(layer(old, name)).max(), name

    source.unlink() if of_a_file else shutil.rmtree(source)
    config.max_steps = 4
    train_and_evaluate(config, tmp_path / "run")
    longer = load_run(tmp_path / "run")
    assert longer.examples_seen == 2 * new.examples_seen
    np.testing.assert_array_equal(layer(longer, "conv1"), layer(old, "conv1"))
    assert not np.array_equal(layer(longer, "fc4"), layer(new, "fc4"))


def test_a_lower_rate_moves_the_body_less(body: Path, two_classes: Callable[..., ConfigDict], tmp_path: Path) -> None:
    moved = {}
    for factor in (1.0, 0.01):
        rates = (("*", 0.0, factor), ("fc5/*", 0.0, 1.0))
        # Without decay and velocity the first step is the rate times the same gradient.
        changes = {"optimizer.rate_multipliers": rates, "optimizer.weight_decay": 0.0, "max_steps": 1}
        train_and_evaluate(two_classes(body, **changes), tmp_path / f"run{factor}")
        run = load_run(tmp_path / f"run{factor}")
        moved[factor] = layer(run, "conv1") - layer(load_run(body), "conv1")
    largest = np.abs(moved[1.0]).max()
    np.testing.assert_allclose(moved[0.01], 0.01 * moved[1.0], atol=0.002 * largest)
    assert largest > 0


def test_the_same_classes_keep_the_last_layer(body: Path, make_config: MakeConfig, tmp_path: Path) -> None:
    frozen = {"optimizer.rate_multipliers": (("*", 0.0, 0.0),), "max_steps": 1}
    config = make_config(**PLAIN, init_from=str(body), **frozen)
    train_and_evaluate(config, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, load_run(tmp_path / "run").params, load_run(body).params)
    restored, _ = restore_latest(tmp_path / "run" / "checkpoints")
    assert restored is not None and restored.metadata["config"]["init_from"] == str(body)


def fresh(run: TrainedRun) -> dict[str, Any]:
    return {"params": jax.tree.map(np.zeros_like, run.params)}


def test_all_differences_in_one_message(body: Path, make_config: MakeConfig) -> None:
    run = load_run(body)
    variables = fresh(run)
    variables["params"]["fc4"]["kernel"] = np.zeros((16, 9), np.float32)
    variables["params"]["fc6"] = variables["params"].pop("fc3")
    config = make_config(**PLAIN, **{"data.std": (1.0, 1.0, 1.0), "data.crop": 26})
    with pytest.raises(UserError) as caught:
        start_from(str(body), config, run.class_names, variables)
    message = str(caught.value)
    assert message.startswith(f"config.init_from={body} does not suit: ") and "\n" not in message
    for part in (
        "config.data.crop: 24 there, 26 here",
        "config.data.std: ",
        "params/fc6/kernel is missing",
        "params/fc3/kernel is unknown",
        "params/fc4/kernel is (16, 16), not (16, 9)",
    ):
        assert part in message


def test_what_is_no_run(make_config: MakeConfig, body: Path, tmp_path: Path) -> None:
    run = load_run(body)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.safetensors").write_bytes(b"what")
    for name, what in {"none": "no such run", "empty": "no checkpoint", "a.safetensors": "no whole"}.items():
        with pytest.raises(UserError, match=what):
            start_from(str(tmp_path / name), make_config(**PLAIN), run.class_names, fresh(run))
