"""`python -m alexnet_jax figure1 --config=configs/cifar10_figure1.py:folder`: ReLU against tanh, as in Figure 1.

For each network and activation, a short run at each learning rate finds the best one, by the training loss at its end;
at that learning rate each seed then trains until the training error is down to 25 %. The training error of an epoch is
that of its batches under the parameters of their time. Ends with a table, a JSON file and, beside it, the figure as
PNG. Finished runs are not repeated.
"""

import argparse
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet_jax.cli import arguments, flags, workers
from alexnet_jax.errors import UserError
from alexnet_jax.experiments import figure1
from alexnet_jax.experiments.figure1 import Race, epochs_to
from alexnet_jax.experiments.results import Spread, describe_data, results_command, write_results
from alexnet_jax.experiments.trials import Outcome, Trial, run_named_trials
from alexnet_jax.system import console

ACTIVATIONS = ("relu", "tanh")
PAPER = "the paper: six times"
RATES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]
DEFAULTS: dict[str, Any] = {"seeds": (0, 1, 2), "networks": ["cifar_19pct"], "rates": RATES, "probe_epochs": 1.0}
"""The defaults of the options that decide the results."""

Contender = tuple[str, str]
"""Network and activation."""


def main(argv: list[str]) -> None:
    """Trains the runs that are missing, on all cores, and prints the results."""
    parser = arguments.config_parser(arguments.program("figure1"), __doc__, arguments.CONFIG, "[OPTION ...]")
    parser.add_argument("--networks", nargs="+", help="presets: cifar_19pct, cifar_13pct")
    parser.add_argument("--rates", nargs="+", type=float, help="learning rates to try")
    parser.add_argument("--probe-epochs", type=float, help="epochs of a run that tries a learning rate")
    parser.add_argument("--workdir", type=Path, default=Path("runs/figure1"), help="folder of the runs")
    parser.add_argument("--output", type=Path, help="JSON file of the results; by default WORKDIR/figure1.json")
    workers.add_flags(parser, seeds=DEFAULTS["seeds"])
    parser.set_defaults(**DEFAULTS)
    options, words = arguments.parse(parser, argv)
    runs = Runs(options, words)
    with workers.share_out("figure1", argv, options.processes, runs.configs[options.networks[0]]):
        races = runs.race(runs.try_rates())
    if not options.train_only:
        command = results_command("figure1", options, DEFAULTS, words)
        _show(races, runs, options.output or options.workdir / "figure1.json", command, options.seeds)


class Runs:
    """The runs of each contender: one at each learning rate, then one a seed at the best of them."""

    def __init__(self, options: argparse.Namespace, words: Sequence[str]):
        self._options = options
        self._words = {network: flags.with_choice(words, network) for network in options.networks}
        self.configs = {name: flags.config_from_flags("figure1", own) for name, own in self._words.items()}

    def try_rates(self) -> dict[Contender, dict[float, float]]:
        """The training loss at the end of a short run, by contender and learning rate; see Race."""
        options = self._options
        length = {"epochs": options.probe_epochs, "eval_every_epochs": options.probe_epochs, "seed": options.seeds[0]}
        contenders = list(itertools.product(options.networks, ACTIVATIONS))
        names = itertools.product(contenders, options.rates)
        trials = {(contender, rate): self._trial(contender, rate, "probe", length) for contender, rate in names}
        losses: dict[Contender, dict[float, float]] = {contender: {} for contender in contenders}
        for (contender, rate), outcome in run_named_trials(trials):
            losses[contender][rate] = _final_loss(outcome)
            loss = f"training loss {losses[contender][rate]:.4f}"
            console.show(f"{' '.join(contender)}, learning rate {rate:g}: {outcome.failure or loss}")
        return losses

    def race(self, losses: Mapping[Contender, Mapping[float, float]]) -> dict[Contender, Race]:
        """Trains each contender with each seed at the learning rate that had the lowest loss."""
        seeds = self._options.seeds
        rates = {who: figure1.best_learning_rate(by_rate, " ".join(who)) for who, by_rate in losses.items()}
        slow_first = reversed(rates.items())  # tanh first: where the longest runs come last, cores are idle
        trials = {
            (contender, seed): self._trial(contender, rate, f"seed-{seed}", {"seed": seed})
            for (contender, rate), seed in itertools.product(slow_first, seeds)
        }
        errors: dict[tuple[Contender, int], tuple[float, ...]] = {}
        for (contender, seed), outcome in run_named_trials(trials):
            who = f"{' '.join(contender)}, seed {seed}"
            if outcome.test is None:
                raise UserError(f"{who}: {outcome.failure}")
            errors[contender, seed] = tuple(record["train_top1_error"] for record in outcome.epochs)
            console.show(f"{who}: {_reached(errors[contender, seed], outcome.trial.config.stop_at_train_error)}")
        races = {}
        for contender, rate in rates.items():
            config, by_seed = self.configs[contender[0]], tuple(errors[contender, seed] for seed in seeds)
            epochs = tuple(epochs_to(of_seed, config.stop_at_train_error) for of_seed in by_seed)
            races[contender] = Race(rate, losses[contender], epochs, by_seed, round(config.epochs))
        return races

    def folder(self, contender: Contender, rate: float, name: str) -> Path:
        """The folder of a run."""
        return self._options.workdir.joinpath(*contender, f"rate-{rate:g}", name)

    def _trial(self, contender: Contender, rate: float, name: str, settings: Mapping[str, Any]) -> Trial:
        network, activation = contender
        values = {"model.activation": activation, "optimizer.learning_rate": rate, **settings}
        folder = self.folder(contender, rate, name)
        return workers.make_trial(self._words[network], self.configs[network], values, folder)


def _final_loss(outcome: Outcome) -> float:
    """The training loss at the end of a run, infinite if it diverged. Raises UserError if the run could not be done."""
    if outcome.cannot_train:
        return math.inf
    if outcome.test is None:
        raise UserError(str(outcome.failure))
    return outcome.epochs[-1]["train_loss"]


def _reached(errors: Sequence[float], bound: float) -> str:
    """After how many epochs the training error came down to the bound, or where it ended."""
    epochs = epochs_to(errors, bound)
    if epochs is None:
        return f"{errors[-1]:.2%} training error after {len(errors)} epochs"
    return f"{bound:.0%} training error after {epochs} epochs"


def _show(
    races: Mapping[Contender, Race], runs: Runs, output: Path, command: Sequence[str], seeds: Sequence[int]
) -> None:
    contender, race = next(iter(races.items()))
    config = runs.configs[contender[0]]
    data = describe_data(config, runs.folder(contender, race.rate, f"seed-{seeds[0]}"))
    bound = config.stop_at_train_error
    results: dict[str, Any] = {}
    rows: list[list[str]] = []
    for network, config in runs.configs.items():
        relu, tanh = (races[network, activation] for activation in ACTIVATIONS)
        sense, factor = figure1.ratio(relu, tanh)
        ratios = map(figure1.ratio_at_last_error, relu.errors, tanh.errors)
        at_the_last = [times for times in ratios if times is not None]
        last = f"{Spread.of(at_the_last).text('.1f')} times" if at_the_last else ""
        rows.append([network, "relu", f"{relu.rate:g}", relu.text(), "", ""])
        rows.append([network, "tanh", f"{tanh.rate:g}", tanh.text(), figure1.ratio_text(sense, factor), last])
        about = {"ratio": factor, "ratio_is": sense, "ratios_at_the_last_error_of_tanh": at_the_last}
        results[network] = {"batch_size": config.batch_size, **about, "relu": _plain(relu), "tanh": _plain(tanh)}
    to_bound = f"epochs to {bound:.0%} training error"
    header = ["network", "activation", "learning rate", to_bound, "tanh : ReLU", "to the last error of tanh"]
    console.show_table(header, rows)
    console.show(f"{PAPER}. Measured on {data}")
    for contender, race in races.items():
        if figure1.is_at_the_edge(race.losses, race.rate):
            console.warn(f"{' '.join(contender)}: {race.rate:g} is at the edge of --rates; one beyond may be better")
    write_results(output, command, data, seeds, results)
    picture = output.with_suffix(".png")
    curves = {network: {name: races[network, name].errors for name in ACTIVATIONS} for network in runs.configs}
    figure1.draw_figure1(picture, curves, bound, f"Training error on {data.partition(':')[0]}, {len(seeds)} seeds")
    console.show(f"The figure lies in {picture}, the results in {output}")


def _plain(race: Race) -> dict[str, Any]:
    """A race as JSON can hold it: infinite losses become None."""
    losses = {f"{rate:g}": None if math.isinf(loss) else loss for rate, loss in race.losses.items()}
    return {**dataclasses.asdict(race), "losses": losses}
