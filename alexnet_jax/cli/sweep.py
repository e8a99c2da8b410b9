"""`python -m alexnet_jax sweep --config=... --space=configs/sweeps/NAME.py`: which settings train best.

Start it as often as there are devices or machines: processes that name the same study divide its settings among them.
Each run lies in WORKDIR/trial-NNNN/seed-N and can be continued with main.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.cli import arguments, flags, workers
from alexnet_jax.errors import UserError
from alexnet_jax.experiment import open_dataset
from alexnet_jax.experiments import search_space
from alexnet_jax.experiments.results import Spread
from alexnet_jax.experiments.study import PRUNERS, SAMPLERS, Setting, Standing, Study, SweepPlan, open_study
from alexnet_jax.experiments.trials import Outcome, Trial, run_trials
from alexnet_jax.system import console
from alexnet_jax.system.files import local_path, write_csv
from alexnet_jax.system.signals import raise_on_sigterm


def main(argv: list[str]) -> None:
    """Tries the settings that no other process tries, and prints the leaderboard at the end."""
    usage = (arguments.CONFIG, "--space=FILE.py", "[OPTION ...]")
    parser = arguments.config_parser(arguments.program("sweep"), __doc__, *usage)
    parser.add_argument("--space", type=Path, required=True, help="file of the keys to vary and their values")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="tpe (default), random or grid")
    parser.add_argument("--trials", type=int, help="settings to try; 20 by default, all of a grid")
    parser.add_argument(
        "--pruner", choices=PRUNERS, default="median", help="median (default) stops what is worse; none"
    )
    parser.add_argument("--storage", help="postgresql://USER@HOST/DATABASE; by default the file WORKDIR/study.log")
    parser.add_argument("--study", help="its name in the storage; by default the name of the folder of the runs")
    parser.add_argument("--workdir", type=local_path, default=Path("runs/sweep"), help="folder of the runs")
    workers.add_flags(parser, seeds=(0,))
    options, words = arguments.parse(parser, argv)
    config = flags.config_from_flags("sweep", words)
    plan = _plan(options, config)
    storage, name = options.storage or str(options.workdir / "study.log"), options.study or options.workdir.name
    with open_study(storage, name, plan, options.workdir) as study, raise_on_sigterm():
        if not options.train_only:
            seeds = ", ".join(map(str, options.seeds))
            console.show(f"{plan.count} settings of {', '.join(plan.space)}; sampler {plan.sampler}; seeds {seeds}")
        if not any(key.startswith("data.") for key in plan.space):
            open_dataset(config.data)  # prepared by all cores
        with workers.share_out("sweep", argv, options.processes, config):
            Sweep(study, config, words, options.seeds, options.workdir).run(plan.count)
        if not options.train_only:
            _show(study.standings(), plan.count, options.workdir)


def _plan(options: argparse.Namespace, config: ConfigDict) -> SweepPlan:
    space = search_space.load_space(flags.find_file(options.space), config)
    count = 20 if options.trials is None else options.trials
    if options.sampler == "grid":
        count = len(search_space.grid(space))
        if options.trials is not None:
            raise UserError(f"--trials={options.trials}: a grid has all its {count} settings; leave it out")
    if count < 1:
        raise UserError(f"--trials={count} must be at least 1")
    plain = config.to_dict()
    decisive = {**config_lib.decisive(plain), **config_lib.length(plain)}
    about = {f"config.{key}": value for key, value in decisive.items() if key != "seed"}
    warmup = round(config.epochs / config.eval_every_epochs) // 4
    return SweepPlan(space, options.sampler, count, options.pruner, warmup, {"seeds": list(options.seeds), **about})


class Sweep:
    """One process of a sweep: trains the runs of settings and prints their results."""

    def __init__(self, study: Study, config: ConfigDict, words: Sequence[str], seeds: Sequence[int], workdir: Path):
        self._study, self._config, self._words, self._seeds, self._workdir = study, config, words, seeds, workdir

    def run(self, count: int) -> None:
        """Tries the settings that are left; keeps the leaderboard up to date and prints a line about each setting."""
        shown: set[int] = set()

        def show_new() -> int:
            """Prints the settings that have ended since the last call, in the first call all; returns their number."""
            standings = self._study.standings()
            _write(standings, self._workdir)
            new = [standing for standing in standings if standing.state != "running" and standing.number not in shown]
            for standing in new:
                values = "  ".join(f"{_short(key)} {_text(value)}" for key, value in standing.settings.items())
                console.show(f"trial {standing.number:4}  {_result(standing)}  {values}")
            shown.update(standing.number for standing in new)
            return len(new)

        ended = show_new()  # earlier, or by workers that were faster to start
        with console.work_progress("settings", count, ended) as bar:
            self._study.optimize(self._train, lambda: bar.advance(show_new()))

    def _train(self, setting: Setting) -> Outcome | None:
        for seed in self._seeds:
            workdir = self._workdir / f"trial-{setting.folder:04}" / f"seed-{seed}"
            trial = workers.make_trial(self._words, self._config, {**setting.values, "seed": seed}, workdir)

            def report(trial: Trial, record: dict[str, Any]) -> None:
                """Reports the validation error of the first seed, by which the pruner judges."""
                if trial.config.seed == self._seeds[0]:
                    evaluation = round(record["epoch"] / trial.config.eval_every_epochs)
                    setting.report(evaluation, record["validation_top1_error"])

            (outcome,) = run_trials([trial], report)
            if outcome.test is None:
                return outcome
            setting.add(outcome.epochs[-1]["validation_top1_error"], outcome.test["top1_error"])
        return None


def _show(standings: Sequence[Standing], count: int, workdir: Path) -> None:
    """Prints the leaderboard as a table."""
    path = _write(standings, workdir)
    keys = _keys(standings)
    header = ["trial", "validation error", "test error", *map(_short, keys)]
    rows = [
        [str(standing.number), _result(standing), _spread(standing.test_errors)]
        + [_text(standing.settings.get(key)) for key in keys]
        for standing in standings
    ]
    console.show_table(header, rows)
    running = sum(standing.state == "running" for standing in standings)
    going_on = f", {running} going on" if running else ""
    console.show(f"{len(standings) - running} of {count} settings are done{going_on}")
    console.show(f"The leaderboard lies in {path}, the runs in {workdir}")


def _write(standings: Sequence[Standing], workdir: Path) -> Path:
    """Writes the leaderboard as a CSV file, errors in [0, 1], and returns its path."""
    keys, path = _keys(standings), workdir / "leaderboard.csv"
    measures = [f"{name}_{part}" for name in ("validation_error", "test_error") for part in ("mean", "std")]
    rows: list[list[Any]] = [["rank", "trial", "state", "seeds", *measures, *keys, "failure"]]
    for rank, standing in enumerate(standings, 1):
        spreads = [Spread.of(errors) if errors else None for errors in (standing.errors, standing.test_errors)]
        measured = [getattr(spread, part, None) for spread in spreads for part in ("mean", "std")]
        values = [standing.settings.get(key) for key in keys]
        rows.append([rank, standing.number, standing.state, len(standing.errors), *measured, *values, standing.failure])
    write_csv(path, rows)
    return path


def _keys(standings: Sequence[Standing]) -> list[str]:
    """All keys that are varied, in order; settings that have just begun may not have all of them yet."""
    return list(dict.fromkeys(key for standing in standings for key in standing.settings))


def _result(standing: Standing) -> str:
    if standing.state == "failed":
        return "failed: " + (standing.failure or "its worker died").partition(";")[0]
    if standing.state == "done":
        return _spread(standing.errors)
    return f"{standing.state} at {_spread(standing.errors)}" if standing.errors else standing.state


def _spread(errors: Sequence[float]) -> str:
    return Spread.of(errors).text(".2%") if errors else "-"


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
