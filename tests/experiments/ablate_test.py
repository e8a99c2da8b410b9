"""Ablation tables: their rows, and a table measured on a few images."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.cli import ablate
from alexnet_jax.cli.flags import config_from_flags
from alexnet_jax.errors import UserError
from alexnet_jax.experiments.ablations import TABLES, Ablation, Cost, RowResult
from alexnet_jax.experiments.trials import Outcome, Trial
from alexnet_jax.models.alexnet import AlexNet, get_model
from alexnet_jax.models.summary import summarize
from alexnet_jax.run.metrics_log import read_metrics
from configs import alexnet
from tests.conftest import REPOSITORY

SMALL = ["--config=configs/alexnet.py:folder,small"]


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def rows_of(table: str) -> list[Ablation]:
    return [row for row in TABLES[table] if row.views is None]


@pytest.mark.parametrize("words", [SMALL, ["--config=configs/alexnet.py:imagenet2012"]], ids=["small", "full"])
def test_each_row_changes_what_it_says_and_nothing_else(words: Sequence[str], tmp_path: Path) -> None:
    rows = rows_of("paper")
    trials = ablate.make_trials(rows, words, [3, 4], tmp_path)
    base = trials["baseline", 3].config
    assert list(trials) == [(row.name, seed) for seed in (3, 4) for row in rows]
    for row in rows:
        for seed in (3, 4):
            trial = trials[row.name, seed]
            differences = config_lib.differences(base.to_dict(), trial.config.to_dict())
            changed = {line.removeprefix("config.").partition(":")[0] for line in differences}
            own = {"optimizer.learning_rate"} if row.learning_rate_factor != 1 else set()
            assert changed - {"seed"} == set(row.changes) | own
            assert trial.config.seed == seed
            config_lib.check(trial.config.to_dict())
            if row.changes:
                parsed = config_from_flags("x", [w for w in trial.command[1:] if "workdir" not in w])
                assert parsed.to_dict() == trial.config.to_dict()
    learns_at = trials["tanh-faster", 3].config.optimizer.learning_rate
    assert learns_at == pytest.approx(10 * base.optimizer.learning_rate)


def test_the_rows_of_presets_are_the_presets(tmp_path: Path) -> None:
    trials = ablate.make_trials(rows_of("presets"), ["--config=configs/alexnet.py:digits"], [0], tmp_path)
    assert len(trials) == 7
    for (preset, _), trial in trials.items():
        expected = alexnet.get_config(f"digits,{preset}")
        assert trial.config.to_dict() == expected.to_dict()


def model_of(**changes: Any) -> AlexNet:
    config = alexnet.get_config("folder,small")
    config.model.update(changes)
    return get_model(config.model, 10)


@pytest.mark.parametrize("row", rows_of("paper")[1:], ids=lambda row: row.name)
def test_each_network_has_the_shapes_that_it_should(row: Ablation) -> None:
    changes = {key.removeprefix("model."): value for key, value in row.changes.items() if key.startswith("model.")}
    before, after = (summarize(model, 28) for model in (model_of(), model_of(**changes)))
    names = {layer.name for layer in after}
    parameters = [sum(layer.parameters for layer in layers) for layers in (before, after)]
    if row.name == "no-lrn":
        assert not any("norm" in name or "lrn" in name for name in names)
    if row.name.startswith("without-"):
        assert len([name for name in names if name[:2] in ("co", "fc")]) == 7
    if row.name == "one-tower":
        assert parameters[1] > parameters[0]
    elif row.name.startswith("without-") or row.name == "no-cross-tower":
        assert parameters[1] < parameters[0]
    else:
        assert parameters[1] == parameters[0]


@pytest.mark.parametrize("lrn", ["source", "paper"])  # the paper's windows cross the towers
def test_towers_do_not_meet_before_the_first_fully_connected_layer(lrn: str) -> None:
    images = 60 * jax.random.normal(jax.random.key(0), (2, 28, 28, 3))
    for cross_tower in (True, False):
        model = model_of(cross_tower=cross_tower, lrn=lrn)
        variables = jax.jit(model.init)(jax.random.key(1), images)

        def second_tower(params: Any, model: AlexNet = model) -> jax.Array:
            return model.apply({"params": params}, images)[1]["pool5"][..., 16:].sum()

        gradient = jax.jit(jax.grad(second_tower))(variables["params"])
        for layer in ("conv1", "conv2"):
            first, second = np.split(gradient[layer]["kernel"], 2, axis=-1)
            assert np.any(first) == cross_tower and np.any(second)


# The next layer sees what the one left out saw; conv4 and conv5 the half of it that is their tower's.
@pytest.mark.parametrize(
    ("layers", "parameters"),
    [
        (("conv3",), 60_965_224 - 885_120 - 9 * (192 - 128) * 384),
        (("conv4",), 60_965_224 - 663_936),
        (("conv5",), 60_965_224 - 442_624 + 36 * (384 - 256) * 4096),
        (("fc6",), 60_965_224 - 37_752_832 + (9216 - 4096) * 4096),
        (("conv4", "fc7"), 60_965_224 - 663_936 - 16_781_312),
    ],
)
def test_a_layer_left_out_leaves_maps_as_large(layers: tuple[str, ...], parameters: int) -> None:
    config = alexnet.get_config("imagenet2012")
    config.model.without_layers = layers
    rows = {row.name: row for row in summarize(get_model(config.model, 1000), 224)}
    assert sum(row.parameters for row in rows.values()) == parameters
    weights = [name for name in rows if name.startswith(("conv", "fc"))]
    assert len(weights) == 8 - len(layers) and rows[weights[-1]].shape == (1000,)
    assert [row.shape[0] for name, row in rows.items() if name.startswith("pool")] == [27, 13, 6]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"without_layers": ("conv9",)}, "'conv9' is unknown; there are: conv2, conv3"),
        ({"without_layers": ("fc8",)}, "'fc8' is unknown"),
        ({"without_layers": ("conv1",)}, "'conv1' is unknown"),
        ({"without_layers": ("conv2",)}, "its pooling would follow another"),
        ({"cross_tower": False, "towers": 1}, "needs two towers"),
        ({"cross_tower": False, "towers": 2, "preset": "cifar_13pct"}, "without local layers"),
    ],
)
def test_layers_that_cannot_be_left_out(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason.replace("'", ".")):
        model_of(**changes)


def test_names_of_layers_must_be_names() -> None:
    config = alexnet.get_config()
    for wrong in ("conv3", (3,)):
        plain = config.to_dict()
        plain["model"]["without_layers"] = wrong
        with pytest.raises(UserError, match="without_layers"):
            config_lib.check(plain)


def test_rows_of_a_ladder_share_a_recipe_but_for_their_learning_rates(tmp_path: Path) -> None:
    for table, schedule in (("ladder_2012", "dexp"), ("ladder_modern", "cosine")):
        trials = ablate.make_trials(rows_of(table), ["--config=configs/alexnet.py:fashion_mnist"], [0], tmp_path)
        configs = {name: trial.config for (name, _), trial in trials.items()}
        assert all(config.model.preset == name for name, config in configs.items())
        recipes = [
            {
                **c.optimizer.to_dict(),
                "learning_rate": 0.0,
                "of_data": (c.data.mixup, c.data.mirror, c.data.color_noise),
            }
            | {"of_all": (c.batch_size, c.label_smoothing, c.test_views, c.data.cropping)}
            for c in configs.values()
        ]
        assert recipes == [{**recipes[0], "schedule": schedule}] * len(recipes)
        assert configs["linear"].optimizer.learning_rate * 10 == pytest.approx(configs["mlp"].optimizer.learning_rate)


def test_rows_of_equal_computation_have_epochs_by_their_macs(tmp_path: Path) -> None:
    words = ["--config=configs/alexnet.py:fashion_mnist"]
    for table in ("ladder_2012", "ladder_modern"):
        trials = ablate.make_trials(rows_of(table), words, [0], tmp_path, macs_per_image=1e6, num_classes=10)
        for trial in trials.values():
            config_lib.check(trial.config.to_dict())  # warm-ups are shorter than runs
        epochs = {name: trial.config.epochs for (name, _), trial in trials.items()}
        assert epochs["vgg_small"] == pytest.approx(1e6 / 29_743_872, rel=1e-3)
        assert epochs["mlp"] == pytest.approx(1e6 / 636_160, rel=1e-3) and epochs["linear"] == pytest.approx(42.52)
    with pytest.raises(UserError, match="--macs-per-image=0"):
        ablate.main([*words, "--macs-per-image=0"])


def test_the_cost_of_a_row_is_that_of_its_fastest_run() -> None:
    slow, fast = Cost(10, 20, 6000, 50.0), Cost(10, 20, 6000, 100.0)
    row = RowResult()
    for cost in (slow, fast, slow):
        row = row.with_seed({"top1_error": 0.5, "top5_error": None}, None, cost)
    assert row.cost == fast and fast.texts() == ["10", "20", "100", "1.0"]


def test_differences_are_in_points_and_failures_are_told() -> None:
    first, worse = RowResult((0.2, 0.3)), RowResult((0.3, 0.4), (), "seed 2 diverged")
    failed = RowResult((), (), "diverged")
    assert worse.difference(first) == "+10.00" and first.difference(first) == "-"
    assert failed.difference(first) == "-"
    assert failed.text() == "failed: diverged"
    assert worse.text() == "35.00% ± 7.07% (one failed: seed 2 diverged)"


@pytest.mark.slow
def test_a_table_of_a_few_images(tmp_path: Path, prepared_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config=configs/alexnet.py:synthetic,small", "--config.epochs=0.5", "--config.batch_size=16"]
    words += [f"--config.data.prepared_dir={prepared_dir}", "--config.data.synthetic_examples=64"]
    words += ["--rows", "tanh", "ten-views", "centre-view", "no-decay", "--seeds=5,6", "--processes=1"]
    words += [f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'table.json'}"]
    failing = tmp_path / "runs" / "no-decay" / "seed-6"
    failing.parent.mkdir(parents=True)
    failing.touch()  # where a folder should be
    ablate.main(words)
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    assert list(table["results"]["rows"]) == ["baseline", "tanh", "ten-views", "no-decay"]
    assert table["seeds"] == [5, 6] and "64 training" in table["data"]
    for number, seed in enumerate((5, 6)):
        test = read_metrics(tmp_path / "runs" / "baseline" / f"seed-{seed}")[-1]
        assert table["results"]["rows"]["baseline"]["errors"][number] == test["top1_error"]
    cost = table["results"]["rows"]["baseline"]["cost"]
    assert cost["images"] == 32 and cost["images_per_second"] > 0
    assert cost["parameters"] == sum(layer.parameters for layer in summarize(model_of(), 28)) and cost["macs"] > 10**6
    assert len(table["results"]["rows"]["no-decay"]["errors"]) == 1 and table["results"]["rows"]["no-decay"]["failure"]
    assert "ImageNet, 90 epochs" in printed and "Test top-1 error on synthetic: 64 training" in printed
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("runs/*/*/timing.jsonl"))]
    ablate.main(words)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("runs/*/*/timing.jsonl"))] == times
    with pytest.raises(UserError, match="tanh"):
        ablate.main([*words, "--rows", "nonsense"])
    ten_views = ["baseline", "seed-5", "views-10.json"]
    before = tmp_path.joinpath("runs", *ten_views).read_bytes()
    ablate.main([*words, "--config.epochs=2.5", "--rows", "ten-views", "--seeds=5"])  # the same runs, longer
    assert tmp_path.joinpath("runs", *ten_views).read_bytes() != before


@pytest.mark.slow
def test_a_network_that_is_tested_with_ten_views_is_compared_with_one(
    tmp_path: Path, prepared_dir: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config=configs/alexnet.py:synthetic,small,smoke", "--config.test_views=10"]
    words += [f"--config.data.prepared_dir={prepared_dir}", "--processes=1", f"--workdir={tmp_path / 'runs'}"]
    words += ["--rows", "ten-views", "centre-view", "--seeds=0,1", f"--output={tmp_path / 'table.json'}"]
    failing = tmp_path / "runs" / "baseline" / "seed-0"
    failing.parent.mkdir(parents=True)
    failing.touch()  # where a folder should be
    ablate.main(words)
    rows = json.loads((tmp_path / "table.json").read_text())["results"]["rows"]
    assert list(rows) == ["baseline", "centre-view"]
    assert len(rows["centre-view"]["errors"]) == 1 and rows["centre-view"]["failure"] == "the baseline failed"
    kept = json.loads((tmp_path / "runs" / "baseline" / "seed-1" / "views-1.json").read_text())
    assert rows["centre-view"]["errors"] == [kept["top1_error"]]
    assert "on synthetic: 32 training" in capsys.readouterr().out


@pytest.mark.slow
def test_numbers_are_kept_after_each_run(tmp_path: Path, prepared_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config=configs/alexnet.py:synthetic,small,smoke", f"--config.data.prepared_dir={prepared_dir}"]
    words += ["--processes=1", f"--workdir={tmp_path / 'runs'}"]
    do = ablate.run_named_trials

    def killed(trials: Mapping[Any, Trial]) -> Iterator[tuple[Any, Outcome]]:
        yield next(do(trials))
        raise KeyboardInterrupt

    monkeypatch.setattr(ablate, "run_named_trials", killed)
    with pytest.raises(KeyboardInterrupt):
        ablate.main([*words, "--rows", "tanh", "--seeds=0"])
    rows = json.loads((tmp_path / "runs" / "ablations_paper.json").read_text())["results"]["rows"]
    assert len(rows["baseline"]["errors"]) == 1 and not rows["tanh"]["errors"]


def test_without_images_there_is_a_line_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config\.data\.dir=DIR"):
        ablate.main(["--processes=1", f"--workdir={tmp_path / 'runs'}", f"--output={tmp_path / 'table.json'}"])
    assert not list(tmp_path.iterdir())


def test_every_row_that_claims_says_where() -> None:
    for rows in TABLES.values():
        assert all(row.where for row in rows if (row.paper, row.source) != ("-", "-"))
        assert len({row.name for row in rows}) == len(rows)
