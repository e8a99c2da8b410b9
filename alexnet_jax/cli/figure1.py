"""`python -m alexnet_jax figure1 --config=configs/cifar10_figure1.py:folder`: ReLU against tanh, as in Figure 1.

For each network and activation, a short run at each rate finds the best one, by the training loss at its end; at that
rate each seed then trains until the training error is down to 25 %. The training error of an epoch is that of its
batches, as they were trained on. Ends with a table, a JSON file and the figure as PNG. Finished runs are not repeated.
"""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax.cli import flags as flags_lib
from alexnet_jax.errors import UserError
from alexnet_jax.experiments import workers
from alexnet_jax.experiments.figure1_plot import draw_figure1
from alexnet_jax.experiments.results import Spread, describe_data, public, write_results
from alexnet_jax.experiments.search_space import apply, flags
from alexnet_jax.experiments.trials import Outcome, Trial, run_trials
from alexnet_jax.run.run_folder import training_program
from alexnet_jax.system import console

ACTIVATIONS = ("relu", "tanh")
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
PAPER = "the paper: six times"

Contender = tuple[str, str]
"""Network and activation."""


@dataclasses.dataclass(frozen=True)
class Race:
    """What came of a contender.

    Attributes:
      rate: its best learning rate.
      losses: of training, at the end of the run that tried each rate; infinite for one that diverged.
      epochs: that each seed took to the bound; None where the end of the run came first.
      errors: of training, after each epoch, by seed, in [0, 1].
      cap: epochs after which a run ends.
    """

    rate: float
    losses: Mapping[float, float]
    epochs: tuple[int | None, ...]
    errors: tuple[tuple[float, ...], ...]
    cap: int

    @property
    def is_over(self) -> bool:
        """Whether all seeds came to the bound."""
        return None not in self.epochs

    @property
    def spread(self) -> Spread:
        """Of the epochs, of which those that the end of a run cut short are the least possible."""
        return Spread.of([float(self.cap if epochs is None else epochs) for epochs in self.epochs])

    def text(self) -> str:
        """Mean ± standard deviation, or how many it takes at least."""
        if self.is_over:
            return self.spread.text(".1f")
        reached = sum(epochs is not None for epochs in self.epochs)
        return f"more than {self.spread.mean:.1f} ({reached} of {len(self.epochs)} seeds within {self.cap})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax figure1", description=__doc__, allow_abbrev=False)
    parser.add_argument("--networks", nargs="+", default=["cifar_19pct"], help="presets: cifar_19pct, cifar_13pct")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="that are tried")
    parser.add_argument("--probe-epochs", type=float, default=1.0, help="length of a run that tries a rate")
    parser.add_argument("--seeds", type=flags_lib.seeds, default=(0, 1, 2), help="0,1,2")
    parser.add_argument("--workdir", type=Path, default=Path("runs/figure1"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("results/figure1.json"), help="the figure lies beside it")
    parser.add_argument("--processes", type=int, help="that share the runs; by default one a core")
    parser.add_argument("--train-only", action="store_true", help="show and write nothing: another process does")
    return parser


def main(argv: list[str]) -> None:
    """Does the runs that are missing, on all cores, and shows what came of them."""
    options, words = _parser().parse_known_args(argv)
    configs = {network: _config(words, network) for network in options.networks}
    processes = options.processes or workers.default_count(parameters=0)
    if processes > 1:
        workers.run_on_each_core(["figure1", *argv, "--processes=1", "--train-only"], processes)
    contenders = [(network, activation) for network in options.networks for activation in ACTIVATIONS]
    with console.muted() if processes > 1 else contextlib.nullcontext():  # a worker has shown it
        losses = _try_rates(options, words, contenders, configs)
        races, trial = _race(options, words, losses, configs)
    if not options.train_only:
        _show(options, words, races, configs, trial)


def _try_rates(
    options: argparse.Namespace,
    words: Sequence[str],
    contenders: Sequence[Contender],
    configs: Mapping[str, ConfigDict],
) -> dict[Contender, dict[float, float]]:
    losses: dict[Contender, dict[float, float]] = {contender: {} for contender in contenders}
    length = {"epochs": options.probe_epochs, "eval_every_epochs": options.probe_epochs, "seed": options.seeds[0]}
    names = {}
    trials = []
    for contender in contenders:
        for rate in options.rates:
            workdir = options.workdir.joinpath(*contender, f"rate-{rate:g}", "probe")
            names[workdir] = contender, rate
            trials.append(_trial(words, configs, contender, workdir, {"optimizer.learning_rate": rate, **length}))
    for outcome in run_trials(trials):
        contender, rate = names[outcome.trial.workdir]
        losses[contender][rate] = final_loss(outcome)
        loss = f"training loss {losses[contender][rate]:.4f}"
        console.show(f"{' '.join(contender)}, rate {rate:g}: {outcome.failure or loss}")
    return losses


def final_loss(outcome: Outcome) -> float:
    """The training loss at the end of a run, infinite if it diverged. Raises UserError if the run could not be done."""
    if outcome.is_its_fault:
        return math.inf
    if outcome.test is None:
        raise UserError(str(outcome.failure))
    return outcome.epochs[-1]["train_loss"]


def best_rate(losses: Mapping[float, float], who: str) -> float:
    """The rate of the lowest loss. Raises UserError if all are infinite."""
    best = min(losses, key=lambda rate: losses[rate])
    if math.isinf(losses[best]):
        raise UserError(f"{who} diverged at each of --rates; give smaller ones")
    return best


def is_at_the_edge(losses: Mapping[float, float], rate: float) -> bool:
    """Whether the rate is the smallest or largest of several: one beyond it, which was not tried, may be better."""
    return len(losses) > 1 and rate in (min(losses), max(losses))


def _race(
    options: argparse.Namespace,
    words: Sequence[str],
    losses: Mapping[Contender, Mapping[float, float]],
    configs: Mapping[str, ConfigDict],
) -> tuple[dict[Contender, Race], Trial]:
    rates = {contender: best_rate(of_rates, " ".join(contender)) for contender, of_rates in losses.items()}
    names = {}
    trials = []
    for contender, rate in reversed(rates.items()):  # tanh first: where the longest runs come last, cores are idle
        for seed in options.seeds:
            workdir = options.workdir.joinpath(*contender, f"rate-{rate:g}", f"seed-{seed}")
            names[workdir] = contender
            trials.append(_trial(words, configs, contender, workdir, {"optimizer.learning_rate": rate, "seed": seed}))
    curves: dict[Contender, dict[int, tuple[float, ...]]] = {contender: {} for contender in rates}
    for outcome in run_trials(trials):
        contender = names[outcome.trial.workdir]
        if outcome.test is None:
            raise UserError(f"{' '.join(contender)}, seed {outcome.trial.config.seed}: {outcome.failure}")
        errors = tuple(record["train_top1_error"] for record in outcome.epochs)
        curves[contender][outcome.trial.config.seed] = errors
        bound = outcome.trial.config.stop_at_train_error
        console.show(f"{' '.join(contender)}, seed {outcome.trial.config.seed}: {_reached(errors, bound)}")
    races = {}
    for contender, by_seed in curves.items():
        config, errors_by_seed = configs[contender[0]], tuple(by_seed[seed] for seed in options.seeds)
        epochs = tuple(epochs_to(errors, config.stop_at_train_error) for errors in errors_by_seed)
        rate = rates[contender]
        races[contender] = Race(rate, losses[contender], epochs, errors_by_seed, round(config.epochs))
    return races, trials[0]


def epochs_to(errors: Sequence[float], bound: float) -> int | None:
    """Epochs until the error is at most the bound."""
    return next((number for number, error in enumerate(errors, 1) if error <= bound), None)


def _reached(errors: Sequence[float], bound: float) -> str:
    epochs = epochs_to(errors, bound)
    if epochs is None:
        return f"{errors[-1]:.2%} training error after {len(errors)} epochs"
    return f"{bound:.0%} training error after {epochs} epochs"


def ratio(races: Mapping[Contender, Race], network: str) -> tuple[str, float | None]:
    """How many times the epochs of ReLU tanh takes: "exactly", "more than" or "less than" so many, or "unknown"."""
    relu, tanh = (races[network, activation] for activation in ACTIVATIONS)
    if not (relu.is_over or tanh.is_over):
        return "unknown", None
    sense = "less than" if not relu.is_over else "exactly" if tanh.is_over else "more than"
    return sense, tanh.spread.mean / relu.spread.mean


def ratio_at_the_last(relu: Sequence[float], tanh: Sequence[float]) -> float | None:
    """How many times the epochs of ReLU tanh takes to the error that it ends with; None if ReLU does not come to it.

    Errors after epochs 1, 2, ...; between two epochs they are taken to fall evenly.
    """
    epochs = epochs_to(relu, tanh[-1])
    if epochs is None:
        return None
    if epochs == 1:
        return float(len(tanh))
    before, after = relu[epochs - 2 : epochs]
    return len(tanh) / (epochs - 1 + (before - tanh[-1]) / (before - after))


def ratio_text(sense: str, factor: float | None) -> str:
    """A ratio in words."""
    return sense if factor is None else f"{sense} {factor:.1f} times".removeprefix("exactly ")


def _show(
    options: argparse.Namespace,
    words: Sequence[str],
    races: Mapping[Contender, Race],
    configs: Mapping[str, ConfigDict],
    trial: Trial,
) -> None:
    data = describe_data(trial.config, trial.workdir)
    bound = trial.config.stop_at_train_error
    to_bound = f"epochs to {bound:.0%} training error"
    header = ["network", "activation", "best rate", to_bound, "tanh : ReLU", "to the last error of tanh"]
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for (network, activation), race in races.items():
        sense, factor = ratio(races, network)
        compared = ratio_text(sense, factor) if activation == "tanh" else ""
        pairs = zip(races[network, "relu"].errors, races[network, "tanh"].errors, strict=True)
        at_the_last = [times for pair in pairs if (times := ratio_at_the_last(*pair)) is not None]
        last = f"{Spread.of(at_the_last).text('.1f')} times" if at_the_last and activation == "tanh" else ""
        rows.append([network, activation, f"{race.rate:g}", race.text(), compared, last])
        about = {"ratio": factor, "ratio_is": sense, "ratios_at_the_last_error_of_tanh": at_the_last}
        results.setdefault(network, {"batch_size": configs[network].batch_size, **about})
        losses = {f"{rate:g}": None if math.isinf(loss) else loss for rate, loss in race.losses.items()}
        results[network][activation] = {**dataclasses.asdict(race), "losses": losses}
    console.show_table(header, rows)
    console.show(f"{PAPER}. Measured on {data}")
    for (network, activation), race in races.items():
        if is_at_the_edge(race.losses, race.rate):
            console.warn(f"{network} {activation}: {race.rate:g} is at the edge of --rates; one beyond may be better")
    write_results(options.output, _command(options, words), data, options.seeds, results)
    picture = options.output.with_suffix(".png")
    curves: dict[str, dict[str, Any]] = {}
    for (network, activation), race in races.items():
        curves.setdefault(network, {})[activation] = race.errors
    draw_figure1(picture, curves, bound, f"Training error on {data.partition(':')[0]}, {len(options.seeds)} seeds")
    console.show(f"The figure lies in {picture}, the numbers in {options.output}")


def _command(options: argparse.Namespace, words: Sequence[str]) -> list[str]:
    """The words after "python" that decide the results, without those that are so by default."""
    command = ["-m", "alexnet_jax", "figure1", *public(words)]
    if options.seeds != _parser().get_default("seeds"):
        command.append(f"--seeds={','.join(map(str, options.seeds))}")
    for name in ("networks", "rates"):
        if list(getattr(options, name)) != list(_parser().get_default(name)):
            command += [f"--{name}", *map(str, getattr(options, name))]
    if options.probe_epochs != _parser().get_default("probe_epochs"):
        command.append(f"--probe-epochs={options.probe_epochs:g}")
    return command


def _config(words: Sequence[str], network: str) -> ConfigDict:
    return flags_lib.config_from_flags("figure1", flags_lib.with_choice(words, network))


def _trial(
    words: Sequence[str],
    configs: Mapping[str, ConfigDict],
    contender: Contender,
    workdir: Path,
    settings: Mapping[str, Any],
) -> Trial:
    network, activation = contender
    values = {"model.activation": activation, **settings}
    words = [*flags_lib.with_choice(words, network), *flags(values), f"--workdir={workdir}"]
    return Trial(apply(values, configs[network]), workdir, [*training_program(), *words])
