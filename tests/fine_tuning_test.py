"""Fine-tuning: a run that starts from the parameters of another run or of a weight file."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from alexnet_jax.checkpoint import checkpoint_names
from alexnet_jax.cli import convert
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_experiment
from alexnet_jax.inference.fine_tuning import start_from
from alexnet_jax.inference.layouts import to_layout
from alexnet_jax.inference.loaded_run import TrainedRun, load_run
from alexnet_jax.inference.weight_files import write_arrays
from alexnet_jax.models.alexnet import get_model
from alexnet_jax.models.presets import PRESETS
from alexnet_jax.run import display
from alexnet_jax.train import train_and_evaluate
from alexnet_jax.train_state import init_variables
from configs import alexnet
from tests.conftest import REPOSITORY
from tests.helpers.narrow import NARROW

MakeConfig = Callable[..., ConfigDict]
FROZEN = {"optimizer.learning_rate_multipliers": (("*", 0.0, 0.0),)}
"""Settings with which training does not change the parameters."""

CHOICES = "synthetic,lenet,smoke"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared_dir: str) -> TrainedRun:
    """The folder of a run with ten classes, trained with a seed that the tests do not use."""
    config = alexnet.get_config(CHOICES)
    config.data.prepared_dir, config.seed = prepared_dir, 5
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train_and_evaluate(config, workdir)
    return load_run(workdir)


def of_seven_classes(trained: TrainedRun, path: Path) -> Path:
    """A weight file of the network with other names of classes."""
    last = {"kernel": np.ones((84, 7), np.float32), "bias": np.ones(7, np.float32)}
    run = dataclasses.replace(
        trained,
        class_names=tuple("abcdefg"),
        model=trained.model.clone(num_classes=7),
        params={**trained.params, "fc5": last},
    )
    run.save(path)
    return path


@pytest.mark.slow
def test_auxiliary_classifiers_start_afresh_for_other_classes(
    trained: TrainedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PRESETS, "lenet", NARROW["googlenet"])
    config = alexnet.get_config(CHOICES)
    new, old = (get_model(config.model, classes) for classes in (10, 7))
    variables = init_variables(old, 24, seed=0)
    changes = {"model": old, "params": variables["params"], "batch_stats": variables["batch_stats"]}
    dataclasses.replace(trained, class_names=tuple("abcdefg"), **changes).save(tmp_path / "old.safetensors")
    config.init_from = str(tmp_path / "old.safetensors")
    _, fresh = start_from(config, trained.class_names, init_variables(new, 24, seed=1))
    assert len(fresh) == 2 and set(fresh) > set(new.auxiliary_logits)


def fine_tuned(config: ConfigDict, workdir: Path) -> dict[str, np.ndarray]:
    """The final parameters of a run, by names like "conv1/kernel"."""
    train_and_evaluate(config, workdir)
    return flat(load_run(workdir).params)


def flat(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in traverse_util.flatten_dict(params, sep="/").items()}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, strict=True, err_msg=name)


def drawn(config: ConfigDict) -> dict[str, np.ndarray]:
    """The initial parameters that a run draws from its seed."""
    return flat(init_variables(get_model(config.model, 10), config.data.crop, config.seed)["params"])


@pytest.mark.parametrize("form", ["folder", "file"])
def test_the_same_classes_keep_the_last_layer(
    form: str, trained: TrainedRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    source = trained.path if form == "folder" else tmp_path / "trained.safetensors"
    if form == "file":
        trained.save(source)
    config = make_config(init_from=str(source), **FROZEN)
    assert_same(fine_tuned(config, tmp_path / "run"), flat(trained.params))
    checkpoints = tmp_path / "run" / "checkpoints"
    assert checkpoint_names(checkpoints)[-1] == 3 * 16  # the images of this run alone


def test_other_classes_get_a_fresh_last_layer(
    trained: TrainedRun, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = of_seven_classes(trained, tmp_path / "seven.safetensors")
    config = make_config(init_from=str(source), **FROZEN)
    fresh = {name: array for name, array in drawn(config).items() if name.startswith("fc5/")}
    assert_same(fine_tuned(config, tmp_path / "run"), {**flat(trained.params), **fresh})
    assert "fc5 starts afresh" in capsys.readouterr().out


def test_classes_of_other_names_get_a_fresh_last_layer(
    trained: TrainedRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    trained.save(tmp_path / "trained.safetensors")
    zeros = {"params": jax.tree.map(np.zeros_like, trained.params)}
    config = make_config(init_from=str(tmp_path / "trained.safetensors"))
    for names, is_fresh in ((trained.class_names, False), (trained.class_names[::-1], True)):
        start = flat(start_from(config, names, zeros)[0]["params"])
        for name, array in flat(trained.params).items():
            expected = np.zeros_like(array) if is_fresh and name.startswith("fc5/") else array
            np.testing.assert_array_equal(start[name], expected)


def test_statistics_of_batch_normalisation_come_along(
    trained: TrainedRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("synthetic,small_modern,smoke")
    model = get_model(config.model, 10)
    fresh = init_variables(model, config.data.crop, seed=1)
    fresh = jax.tree.map(np.asarray, {"params": fresh["params"], "batch_stats": fresh["batch_stats"]})
    known = jax.tree.map(lambda array: array + 1, fresh)
    dataclasses.replace(trained, config=config, model=model, **known).save(tmp_path / "bn.safetensors")
    config.init_from = str(tmp_path / "bn.safetensors")
    start, _ = start_from(config, trained.class_names, fresh)
    assert {"bn1/mean", "bn1/var"} <= flat(start["batch_stats"]).keys()
    assert_same(flat(start), flat(known))


def test_frozen_layers_stay_as_they_were_to_the_bit(
    trained: TrainedRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    rules = {"optimizer.learning_rate_multipliers": (("conv*", 0.0, 0.0),)}
    tuned = fine_tuned(make_config(init_from=str(trained.path), **rules), tmp_path / "run")
    for name, before in flat(trained.params).items():
        assert np.array_equal(tuned[name], before) == name.startswith("conv"), name


def test_lower_rates_for_the_body(trained: TrainedRun, make_config: MakeConfig, tmp_path: Path) -> None:
    """After one step the body has moved by a tenth of what it would have, the last layer as far."""
    start, common = flat(trained.params), {"init_from": str(trained.path), "max_steps": 1}
    lower = {"optimizer.learning_rate_multipliers": (("*", 0.0, 0.1), ("fc5/*", 0.0, 1.0))}
    whole = fine_tuned(make_config(**common), tmp_path / "whole")
    less = fine_tuned(make_config(**common, **lower), tmp_path / "less")
    for name, before in start.items():
        share = 1.0 if name.startswith("fc5/") else 0.1
        moved, rounding = whole[name] - before, 2e-7 * float(np.abs(before).max())
        assert np.abs(moved).max() > 20 * rounding, name
        np.testing.assert_allclose(less[name] - before, share * moved, rtol=1e-4, atol=rounding, err_msg=name)


def test_a_resumed_run_no_longer_needs_the_file(trained: TrainedRun, make_config: MakeConfig, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(trained.path, source)
    changes = {"init_from": str(source), "data.mirror": False}
    whole = fine_tuned(make_config(max_steps=4, **changes), tmp_path / "whole")
    train_and_evaluate(make_config(max_steps=2, **changes), tmp_path / "halves")
    shutil.rmtree(source)
    assert_same(fine_tuned(make_config(max_steps=4, **changes), tmp_path / "halves"), whole)


def test_all_differences_are_told_at_once(trained: TrainedRun, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(init_from=str(trained.path), **{"model.hidden_width": 50, "data.std": (1.0, 2.0, 3.0)})
    with pytest.raises(UserError) as caught:
        train_and_evaluate(config, tmp_path / "run")
    message = str(caught.value)
    assert message.startswith(f"config.init_from={trained.path} does not fit this run: ") and "\n" not in message
    for part in (
        "64.0] there, [1.0, 2.0, 3.0] here",
        "params/fc3/kernel is (256, 120), not (256, 50)",
        "params/fc4/kernel is (120, 84), not (50, 50)",
        "params/fc5/kernel is (84, 10), not (50, 10)",
    ):
        assert part in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_network_is_told_by_its_layers(trained: TrainedRun, make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("synthetic,small,smoke", init_from=str(trained.path))
    with pytest.raises(UserError, match=r"params/conv3/kernel.*params/fc3/kernel"):
        train_and_evaluate(config, tmp_path / "run")


def damaged(folder: Path) -> Path:
    path = folder / "damaged.safetensors"
    path.write_bytes(b"not a file of arrays")
    return path


def without_checkpoint(folder: Path) -> Path:
    path = folder / "empty"
    path.mkdir()
    return path


def of_arrays_alone(folder: Path) -> Path:
    path = folder / "arrays.safetensors"
    write_arrays(path, {"conv1/kernel": np.zeros(3, np.float32)})
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "nowhere", "no such run"),
        (without_checkpoint, "holds no checkpoint"),
        (damaged, "not a complete .safetensors file"),
        (of_arrays_alone, "holds only arrays"),
    ],
)
def test_what_is_no_run_is_refused(
    make: Callable[[Path], Path], reason: str, make_config: MakeConfig, tmp_path: Path
) -> None:
    source = make(tmp_path)
    with pytest.raises(UserError) as caught:
        train_and_evaluate(make_config(init_from=str(source)), tmp_path / "run")
    message = str(caught.value)
    assert str(source) in message and reason in message and "\n" not in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_of_another_program_become_a_start(
    trained: TrainedRun, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of names and arrays, converted to a run without data, then tuned; its classes are 0, 1, ... 9."""
    monkeypatch.chdir(REPOSITORY)
    params = jax.tree.map(np.asarray, trained.params)
    weights, source = tmp_path / "weights.npz", tmp_path / "converted"
    write_arrays(weights, to_layout("caffe", trained.model, trained.preprocessing.crop, {"params": params}))
    words = [f"--config=configs/alexnet.py:{CHOICES}", "--config.data.mean=(120.0, 120.0, 120.0)"]
    convert.main([str(weights), "--layout=caffe", f"--workdir={source}", *words])
    config = make_config(init_from=str(source), **{"optimizer.learning_rate_multipliers": (("conv*", 0.0, 0.0),)})
    tuned, before = fine_tuned(config, tmp_path / "run"), flat(params)
    for name in ("conv1/kernel", "conv1/bias", "conv2/kernel", "conv2/bias"):
        np.testing.assert_array_equal(tuned[name], before[name])
    assert 0 < np.abs(tuned["fc3/kernel"] - before["fc3/kernel"]).max() < 0.1


@pytest.mark.parametrize("name", ["weights.npz", "weights.pth.tar"])
def test_a_file_of_another_program_is_a_start_itself(
    name: str, trained: TrainedRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    params = jax.tree.map(np.asarray, trained.params)
    write_arrays(tmp_path / "a.npz", to_layout("caffe", trained.model, trained.preprocessing.crop, {"params": params}))
    config = make_config(init_from=str((tmp_path / "a.npz").rename(tmp_path / name)))
    zeros = {"params": jax.tree.map(np.zeros_like, params)}
    numbers = [str(number) for number in range(10)]
    for class_names, afresh in ((numbers, []), ("abcdefghij", ["fc5"])):
        start, fresh_layers = start_from(config, class_names, zeros)
        assert fresh_layers == afresh
        for layer in params:
            expected = zeros["params"] if layer in afresh else params
            jax.tree.map(np.testing.assert_array_equal, start["params"][layer], expected[layer])


def test_the_header_shows_how_each_layer_starts(make_config: MakeConfig, capsys: pytest.CaptureFixture[str]) -> None:
    rules = (("conv*", 0.0, 0.0), ("fc3/*", 0.0, 0.1), ("fc4/kernel", 0.0, 0.0))
    changes = {"learning_rate": 0.01, "bias_learning_rate_multiplier": 2.0, "learning_rate_multipliers": rules}
    config = make_config(init_from="a", **{f"optimizer.{key}": value for key, value in changes.items()})
    display.show_header(open_experiment(config), Path("runs/a"), "python main.py", fresh_layers=["fc5"])
    shown = capsys.readouterr().out
    assert "fc5 starts afresh, as the classes differ; parameters of a " in shown
    table = {cells[0]: cells for cells in map(str.split, shown.splitlines()) if cells}
    assert table["conv1"][-2:] == table["conv2"][-2:] == ["loaded", "frozen"]
    assert table["fc3"][-2:] == ["loaded", "0.001/0.002"]
    assert table["fc4"][-2:] == ["loaded", "0/0.02"]
    assert table["fc5"][-2:] == ["afresh", "0.01/0.02"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model.activation": "tanh"}, "config.model.activation: relu there, tanh here"),
        ({"data.mean": (9.0, 9.0, 9.0)}, r"config.data.mean: \[1.0, 2.0, 3.0\] there, \[9.0, 9.0, 9.0\] here"),
    ],
)
def test_other_inputs_or_activations_are_told(
    changes: dict[str, Any], text: str, trained: TrainedRun, make_config: MakeConfig, tmp_path: Path
) -> None:
    theirs = trained.config.copy_and_resolve_references()
    theirs.data.mean = (1.0, 2.0, 3.0)
    dataclasses.replace(trained, config=theirs).save(tmp_path / "a.safetensors")
    config = make_config(init_from=str(tmp_path / "a.safetensors"), **changes)
    with pytest.raises(UserError, match=text):
        train_and_evaluate(config, tmp_path / "run")
