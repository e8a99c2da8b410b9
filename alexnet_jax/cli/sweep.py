"""`python -m alexnet_jax sweep --config=... --space=configs/sweeps/NAME.py`: which settings train best.

Start it as often as there are devices or machines: all that name the same study share its settings. Each run lies in
WORKDIR/trial-NNNN/seed-N and can be continued with main.py.
"""

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alexnet_jax import config as config_lib
from alexnet_jax.cli import flags as flags_lib
from alexnet_jax.cli.config_files import find_file
from alexnet_jax.errors import UserError
from alexnet_jax.experiments import search_space
from alexnet_jax.experiments.results import Spread
from alexnet_jax.experiments.study import PRUNERS, SAMPLERS, Plan, Row, Setting, Study, open_study
from alexnet_jax.experiments.trials import Outcome, Trial, TrialStoppedError, run_trials
from alexnet_jax.run.run_folder import training_program
from alexnet_jax.system import console
from alexnet_jax.system.files import write_text


def main(argv: list[str]) -> None:
    """Does the settings that no other worker does, and ends with the leaderboard."""
    parser = argparse.ArgumentParser(prog="python -m alexnet_jax sweep", description=__doc__, allow_abbrev=False)
    parser.add_argument("--space", type=Path, required=True, help="file that says what is varied")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="tpe (default), random or grid")
    parser.add_argument("--trials", type=int, help="settings to try; 20 by default, all of a grid")
    parser.add_argument("--seeds", type=flags_lib.seeds, default=(0,), help="each setting is trained with each: 0,1,2")
    parser.add_argument("--pruner", choices=PRUNERS, default="median", help="gives up what is worse than the median")
    parser.add_argument("--storage", help="postgresql://USER@HOST/DATABASE; by default the file WORKDIR/study.log")
    parser.add_argument("--study", help="its name in the storage; by default the name of the work directory")
    parser.add_argument("--workdir", type=Path, default=Path("runs/sweep"), help="folder of the runs")
    options, words = parser.parse_known_args(argv)
    config = flags_lib.config_from_flags("sweep", words)
    space = search_space.load_space(find_file(options.space), config)
    plan = Plan(space, options.sampler, _count(options, space))
    about = {"seeds": list(options.seeds), **_comparable(config)}
    storage, name = options.storage or str(options.workdir / "study.log"), options.study or options.workdir.name
    warmup = round(config.epochs / config.eval_every_epochs) // 4
    with open_study(storage, name, plan, about, options.pruner, warmup) as study:
        seeds = ", ".join(map(str, options.seeds))
        console.show(f"{plan.count} settings of {', '.join(space)}; sampler {plan.sampler}; seeds {seeds}")
        Sweep(study, config, words, options.seeds, options.workdir).run(plan.count)


class Sweep:
    """A worker: what it is doing, and how its settings become runs."""

    def __init__(self, study: Study, config: ConfigDict, words: Sequence[str], seeds: Sequence[int], workdir: Path):
        self._study, self._config, self._seeds, self._workdir = study, config, seeds, workdir
        self._command = [*training_program(), *words]
        self._doing: dict[Path, Setting] = {}
        self._told: set[int] = set()

    def run(self, count: int) -> None:
        """Does what is left of the study and keeps the leaderboard up to date."""
        finished = sum(row.state != "running" for row in self._study.rows())
        with console.work_progress("settings", count, finished) as bar:
            for outcome in run_trials(self._trials(), self._on_epoch):
                setting = self._doing[outcome.trial.workdir]
                self._note(outcome, setting)
                if setting.is_over and setting.folder not in self._told:
                    self._told.add(setting.folder)
                    self._tell(setting)
                    bar.advance(1)
        self._tell_all(count)

    def _trials(self) -> Iterator[Trial]:
        """The runs of one setting after the other; those of a setting that is over are left out."""
        while (setting := self._study.ask()) is not None:
            for seed in self._seeds:
                if not setting.is_over:
                    trial = self._trial(setting, seed)
                    self._doing[trial.workdir] = setting
                    yield trial

    def _trial(self, setting: Setting, seed: int) -> Trial:
        workdir = self._workdir / f"trial-{setting.folder:04}" / f"seed-{seed}"
        values = {**setting.values, "seed": seed}
        words = [*search_space.flags(values), f"--workdir={workdir}"]
        return Trial(search_space.apply(values, self._config), workdir, [*self._command, *words])

    def _on_epoch(self, trial: Trial, record: dict[str, Any]) -> None:
        """The first seed speaks for its setting."""
        setting = self._doing[trial.workdir]
        if trial.config.seed == self._seeds[0]:
            evaluation = round(record["epoch"] / trial.config.eval_every_epochs)
            setting.report(evaluation, record["validation_top1_error"])
        if setting.is_over:
            raise TrialStoppedError("given up")

    def _note(self, outcome: Outcome, setting: Setting) -> None:
        if setting.is_over:
            return
        if outcome.test is None:
            setting.fail(outcome.failure or "it has ended without a test", outcome.is_its_fault)
        else:
            error = outcome.epochs[-1]["validation_top1_error"]
            setting.add(outcome.trial.config.seed, error, outcome.test["top1_error"], of=len(self._seeds))

    def _tell(self, setting: Setting) -> None:
        """A line about a setting that is over."""
        rows = self._study.rows()
        self._write(rows)
        row = next(row for row in rows if row.number == setting.folder)
        values = "  ".join(f"{_short(key)} {_text(value)}" for key, value in row.settings.items())
        console.show(f"trial {row.number:4}  {_result(row)}  {values}")

    def _tell_all(self, count: int) -> None:
        rows = self._study.rows()
        path = self._write(rows)
        keys = list(rows[0].settings) if rows else []
        console.show_table(
            ["trial", "validation error", "test error", *map(_short, keys)],
            [
                [
                    f"{row.number}",
                    _result(row),
                    _spread(row.test_errors),
                    *(_text(row.settings.get(key)) for key in keys),
                ]
                for row in rows
            ],
        )
        running = sum(row.state == "running" for row in rows)
        console.show(
            f"{len(rows) - running} of {count} settings are done" + (f", {running} going on" if running else "")
        )
        console.show(f"The leaderboard lies in {path}, the runs in {self._workdir}")

    def _write(self, rows: Sequence[Row]) -> Path:
        """The leaderboard as a CSV file: errors in [0, 1]."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        keys = list(rows[0].settings) if rows else []
        measures = [f"{name}_{part}" for name in ("validation_error", "test_error") for part in ("mean", "std")]
        writer.writerow(["rank", "trial", "state", "seeds", *measures, *keys, "failure"])
        for rank, row in enumerate(rows, 1):
            numbers = [value for errors in (row.errors, row.test_errors) for value in _mean_and_std(errors)]
            settings = [row.settings.get(key) for key in keys]
            writer.writerow([rank, row.number, row.state, len(row.errors), *numbers, *settings, row.failure])
        path = self._workdir / "leaderboard.csv"
        write_text(path, text.getvalue())
        return path


def _count(options: argparse.Namespace, space: search_space.Space) -> int:
    if options.sampler == "grid":
        combinations = len(search_space.grid(space))
        if options.trials is not None:
            raise UserError(f"--trials={options.trials}: a grid has all its {combinations} settings; leave it out")
        return combinations
    count = 20 if options.trials is None else options.trials
    if count < 1:
        raise UserError(f"--trials={count} must be at least 1")
    return count


def _comparable(config: ConfigDict) -> dict[str, Any]:
    """What decides the results of a study, beside its space and seeds."""
    plain = config.to_dict()
    decisive = {**config_lib.decisive(plain), **config_lib.length(plain)}
    return {f"config.{key}": value for key, value in decisive.items() if key != "seed"}


def _result(row: Row) -> str:
    if row.state == "failed":
        return "failed: " + (row.failure or "its worker died").partition(";")[0]
    spread = _spread(row.errors)
    return spread if row.state == "done" else f"{row.state} at {spread}" if row.errors else row.state


def _spread(errors: Sequence[float]) -> str:
    return Spread.of(errors).text(".2%") if errors else "-"


def _mean_and_std(errors: Sequence[float]) -> tuple[float | None, float | None]:
    spread = Spread.of(errors) if errors else None
    return (spread.mean, spread.std) if spread else (None, None)


def _short(key: str) -> str:
    return key.rpartition(".")[2]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
