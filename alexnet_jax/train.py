"""The main job: train, evaluate after each epoch, divide the learning rate, save, and end with the test error."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import metrics
from alexnet_jax.checkpoint import Checkpoints, checkpoint_names
from alexnet_jax.data.dataset import Dataset
from alexnet_jax.data.loader import sent_ahead
from alexnet_jax.diagnosis.diagnosis import diagnose
from alexnet_jax.diagnosis.start_watch import StartWatch
from alexnet_jax.errors import TrainingDivergedError, TrainingStuckError
from alexnet_jax.experiment import Evaluate, Experiment, open_experiment
from alexnet_jax.inference.loaded_run import start_from
from alexnet_jax.models.alexnet import summarize
from alexnet_jax.optimizer import (
    SMOOTH_SCHEDULES,
    Plateau,
    averaged_params,
    describe_learning_rate,
    make_learning_rates,
    make_optimizer,
    make_schedule,
    restored_state,
    saved_state,
    scale_learning_rate,
)
from alexnet_jax.parallel import hosts
from alexnet_jax.parallel.devices import exhaustion_in_a_line
from alexnet_jax.run import audit, run_folder
from alexnet_jax.run.metrics_log import MetricWriter
from alexnet_jax.run.profiling import StepTrace
from alexnet_jax.run.run_folder import Progress
from alexnet_jax.run_plan import RunPlan
from alexnet_jax.steps import Batch, TrainStep, make_train_step
from alexnet_jax.system import console
from alexnet_jax.system.files import write_json
from alexnet_jax.system.signals import StopSignals
from alexnet_jax.system.versions import describe_environment
from alexnet_jax.train_state import TrainState, create_train_state, init_variables


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    command: Sequence[str] = (),
    on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """Runs or continues the training that `config` describes and returns its test metrics.

    Args:
      config: see configs/alexnet.py.
      workdir: the folder of the run, made if need be; if it holds a run of the same config, that is continued.
      command: the command line, to be shown and recorded.
      on_epoch: gets the record of each evaluation once it is saved; what it raises ends the run.
      dataset: the data set of `config.data`, if it is open already.

    Raises:
      UserError: bad input, or a run of another config in workdir.
      TrainingDivergedError: the loss is NaN or infinite.
      TrainingStuckError: it stays at that of guessing.
      KeyboardInterrupt: SIGINT, or SIGTERM while images are being prepared (Terminated).
      SystemExit: 130 or 143 after SIGINT or SIGTERM, once the run is saved.
    """
    with hosts.session(config.parallel), exhaustion_in_a_line():
        run = Run(config, Path(workdir), open_experiment(config, dataset), command, on_epoch)
        with StopSignals() as stop:
            return _drive(run.execute(stop), run.train_step)


Request = tuple[TrainState, Batch]
"""What a run asks a training step of."""

Answer = tuple[TrainState, dict[str, Any]]
"""What the step makes of it: the state after it, and the sums of the batch."""


def _drive(run: Generator[Request, Answer, dict[str, Any]], train_step: TrainStep) -> dict[str, Any]:
    """Does a run's steps and returns its result."""
    try:
        request = next(run)
        while True:
            request = run.send(train_step(*request))
    except StopIteration as end:
        return end.value


class Run:
    """A run in a folder: what its config determines, and what changes: state, plateau_state, progress, rates.

    It asks whoever drives it for its training steps: by `train_step` alone, or together with those of other runs.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        experiment: Experiment,
        command: Sequence[str],
        on_epoch: Callable[[dict[str, Any]], None] = lambda _: None,
    ):
        """`on_epoch` gets the record of each evaluation once it is saved; what it raises ends the run."""
        self.config, self.workdir, self.experiment = config, workdir, experiment
        self.on_epoch = on_epoch
        self.dataset, self.model, self.devices = experiment.dataset, experiment.model, experiment.devices
        self.command_line = run_folder.command_line(command)
        self.next_commands = run_folder.next_commands(command, config, workdir)
        self.checkpoints_dir = workdir / "checkpoints"
        self.environment = describe_environment(list(command))
        self.plan = RunPlan.create(config, len(self.dataset.splits["train"].labels), self.devices.batch_parts)
        self.layers = summarize(self.model, config.data.crop)
        variables = init_variables(self.model, config.data.crop, config.seed)
        rule = scale_learning_rate(config.optimizer, config.batch_size)
        self.optimizer = make_optimizer(rule, variables["params"])
        self.schedule = make_schedule(rule, config.epochs)
        self.learning_rates = make_learning_rates(rule, variables["params"], config.epochs)
        self.plateau = Plateau(rule, config.epochs)
        self.trace = StepTrace(workdir / "profile", config.profile_steps if hosts.is_main() else 0)
        axes, micro_batches = self.devices.axes, config.parallel.micro_batches
        step = make_train_step(
            self.model, self.optimizer, experiment.preprocessing, axes, micro_batches, config.label_smoothing
        )
        self.train_step = self.trace.around(self.devices.compile_train_step(step, resident=experiment.source.resident))
        self.state = self._fresh_state(variables)
        self.plateau_state = self.plateau.init()
        self.progress = Progress()
        self.rate = self.schedule(0.0, self.plateau.scale(self.plateau_state))
        self.rates: Any = None
        self.compiled, self.images_per_second, self.input_share = False, 0.0, 0.0
        self.agreed_to_stop = False
        self.start_watch = StartWatch(self.dataset.splits["train"].labels, config.stuck_after_steps)

    def execute(self, stop: StopSignals) -> Generator[Request, Answer, dict[str, Any]]:
        """The whole run, from wherever it stands, to its test metrics; a signal that `stop` notes ends it early."""
        self.stop = stop
        tree, found = hosts.from_main(lambda: run_folder.find(self.workdir, self.config, self.dataset))
        if tree:
            self._resume(tree, found["metadata"])
        elif self.config.init_from:
            self._start_from_another()
        seen = self.progress.examples_seen
        self._show_header()
        finished = [record for record in found["tests"] if record["examples_seen"] == seen]
        if self._is_over() and finished:
            console.show_end(finished[-1], "is finished already", self.workdir, self.next_commands)
            return finished[-1]
        if hosts.is_main():
            self._write_description()
        timeout = float(self.config.parallel.timeout_seconds)
        keep, on_failure = self.config.checkpoint.keep, self.config.checkpoint.on_failure
        with (
            hosts.Watchdog(timeout, "To continue, start all again") as self.watchdog,
            hosts.on_main(lambda: MetricWriter(self.workdir, seen)) as self.writer,
            hosts.on_main(lambda: Checkpoints(self.checkpoints_dir, keep, on_failure)) as self.checkpoints,
            console.step_progress(self.plan.total_steps, seen // self.plan.batch_size) as self.bar,
        ):
            if not found["is_started"]:
                start = {"seed": self.config.seed, "train_examples": self.plan.num_examples}
                self.writer.write("start", 0, start)
            self.checkpoints.set_aside_after(seen)
            yield from self._train()
            result = self._test()
        console.show_end(result, "is finished", self.workdir, self.next_commands)
        return result

    def _train(self) -> Generator[Request, Answer, None]:
        size = self.plan.batch_size
        host_batches = self.experiment.source.batches(
            self.progress.examples_seen, batch_size=size, seed=self.config.seed, rows=self.devices.rows(size)
        )
        with contextlib.closing(host_batches), contextlib.closing(sent_ahead(host_batches, self._put)) as batches:
            self._set_rates(self.progress.examples_seen)
            while True:
                if self._evaluation_is_due():
                    self._evaluate()
                if self._is_over():
                    return
                with contextlib.closing(self.trace):  # one that is being recorded ends with the pause
                    yield from self._train_until_pause(batches)
                if self._is_stopping():
                    self._save_and_exit()
                if not self._evaluation_is_due():
                    self._save(may_wait=True)

    def _put(self, batch: Any) -> Any:
        """Sends a batch to the devices; where there are many processes, with the wish to stop."""
        if hosts.count() > 1:
            batch = {**batch, "stop": np.full(len(batch["id"]), self.stop.received is not None)}
        return self.devices.shard(batch)

    def _is_stopping(self) -> bool:
        """The same in all processes: after a signal to one of them, once all have heard of it."""
        return self.agreed_to_stop if hosts.count() > 1 else self.stop.received is not None

    def _is_over(self) -> bool:
        """At the end of the plan, or where the last evaluation found training errors rare enough."""
        progress, bound = self.progress, self.config.stop_at_train_error
        reached = bound and progress.train_top1_error is not None and progress.train_top1_error <= bound
        return progress.examples_seen >= self.plan.total_examples or bool(reached)

    def _evaluation_is_due(self) -> bool:
        seen = self.progress.examples_seen
        return seen > self.progress.evaluated_at and self.plan.is_evaluation(seen, self.progress.evaluated_at)

    def _train_until_pause(self, batches: Iterator[Any]) -> Generator[Request, Answer, None]:
        """Steps until a checkpoint or an evaluation is due or a signal came. Reads each step's sums one step late."""
        position, pending = self.progress.examples_seen, None
        began, first, waited = time.monotonic(), position, 0.0
        while pending is None or not (self.plan.is_checkpoint(position) or self._is_stopping()):
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            self.state, sums = yield self.state, batch
            if pending is not None:
                self._record_step(position, pending)
            pending = sums
            position += self.plan.batch_size
            self._set_rates(position)
            if not self.compiled:  # the first step of the process takes seconds: count from its end
                jax.block_until_ready(sums)
                began, first, waited, self.compiled = time.monotonic(), position, 0.0, True
            self.images_per_second = (position - first) / (time.monotonic() - began)
        self._record_step(position, pending)
        seconds = time.monotonic() - began
        self.images_per_second = (position - first) / seconds
        self.input_share = waited / seconds
        values = {"seconds": seconds, "images_per_second": self.images_per_second, "input_share": self.input_share}
        self.writer.write_timing(position, values)

    def _record_step(self, position: int, pending: dict[str, jax.Array]) -> None:
        """Adds up the sums of the step that ended at a position."""
        sums: dict[str, Any] = jax.device_get(pending)
        loss = sums["loss_sum"].item() / sums["count"].item()
        if not math.isfinite(loss):
            self._diverged(f"the training loss is {loss}", position)
        self.watchdog.progress(f"epoch {self._epoch(position)}")
        self.checkpoints.check()
        progress = self.progress
        progress.examples_seen = position
        progress.ids_sha256 = audit.chain(progress.ids_sha256, sums.pop("epoch"), sums.pop("id"))
        self.agreed_to_stop = bool(sums.pop("stop", False))
        progress.totals = metrics.add(progress.totals, sums)
        step = position // self.plan.batch_size
        if self.start_watch.is_stuck(step, loss):
            self._stuck(step)
        if step % self.config.log_every_steps == 0:
            began_at = self.plan.epoch(position - self.plan.batch_size)
            rate = self.schedule(began_at, self.plateau.scale(self.plateau_state))
            self.writer.write("step", position, {"loss": loss, "learning_rate": rate})
        self.bar.update(step, f"epoch {self._epoch(position)}  loss {loss:.3f}", self.images_per_second)

    def _set_rates(self, position: int, reason: str | None = None) -> None:
        """Gives the state the learning rates of the next step, and says so if the schedule changed them."""
        epoch = self.plan.epoch(position)
        rate = self.schedule(epoch, self.plateau.scale(self.plateau_state))
        if rate < self.rate and self.config.optimizer.schedule not in SMOOTH_SCHEDULES:
            reason = reason or f"{self.config.optimizer.schedule} schedule, epoch {epoch:.2f}"
            console.show(f"  learning rate {self.rate:.3g} -> {rate:.3g}: {reason}", style="bold")
            values = {"learning_rate_before": self.rate, "learning_rate": rate, "reason": reason}
            self.writer.write("division", position, values)
        self.rate = rate
        rates = self.learning_rates(epoch, rate)
        if rates != self.rates:
            self.rates = rates
            scalars = jax.tree.map(np.float32, rates)
            self.state = dataclasses.replace(self.state, learning_rates=self.devices.place(scalars))

    def _evaluate(self) -> None:
        """Validation, the plateau's decision, the epoch's record and a checkpoint."""
        began = time.monotonic()
        progress, position = self.progress, self.progress.examples_seen
        totals = self._totals_of(self.experiment.evaluate, "validation")
        validation = metrics.summarize(totals, self.dataset.num_classes)
        if not math.isfinite(validation["loss"]):
            self._diverged(f"the validation loss is {validation['loss']}", position)
        train = metrics.summarize(progress.totals, self.dataset.num_classes)
        epoch = self.plan.epoch(position)
        self.plateau_state, reason = self.plateau.update(self.plateau_state, validation["top1_error"], epoch)
        record = {
            "epoch": epoch,
            "train_loss": train["loss"],
            "train_top1_error": train["top1_error"],
            **{f"validation_{name}": value for name, value in validation.items()},
            "learning_rate": self.rate,
            "plateau_count": int(self.plateau_state["plateau_count"]),
            "ids_sha256": progress.ids_sha256,
        }
        self.writer.write("epoch", position, record)
        self.writer.write_timing(position, {"evaluate_seconds": time.monotonic() - began})
        console.show_epoch(record, self.plateau.patience, self.images_per_second, self.input_share)
        if progress.best_top1_error is None or validation["top1_error"] < progress.best_top1_error:
            progress.best_top1_error, progress.best_examples_seen = validation["top1_error"], position
        progress.totals, progress.ids_sha256, progress.evaluated_at = {}, "", position
        progress.train_top1_error = train["top1_error"]
        self._set_rates(position, reason)
        self._save()
        self.on_epoch(record)

    def _test(self) -> dict[str, Any]:
        """The error on the test split, which nothing before has looked at, with the last parameters."""
        split = "test" if "test" in self.dataset.splits else "validation"
        summary = metrics.summarize(self._totals_of(self.experiment.test, split), self.dataset.num_classes)
        record = {"split": split, "views": self.config.test_views, **summary}
        self.writer.write("test", self.progress.examples_seen, record)
        self.writer.sync()
        return record

    def _totals_of(self, evaluate: Evaluate, split: str) -> dict[str, Any]:
        totals: dict[str, Any] = {}
        params = averaged_params(self.state.opt_state, self.state.params)
        for totals_so_far in evaluate(params, self.state.batch_stats, split):
            self.watchdog.progress(f"the evaluation at epoch {self._epoch(self.progress.examples_seen)}")
            if hosts.any_of_them(self.stop.received is not None):
                self._save_and_exit()
            totals = totals_so_far
        return totals

    def _tree(self) -> dict[str, Any]:
        """The arrays of a checkpoint."""
        return {
            "params": self.state.params,
            "batch_stats": self.state.batch_stats,
            **saved_state(self.state.opt_state),
            "plateau": self.plateau_state,
            "preprocessing": self.experiment.preprocessing.measured,
        }

    def _save(self, may_wait: bool = False) -> None:
        """Saves a checkpoint, in process 0; one that may wait is left out if it would cost time."""
        if not hosts.is_main() or (may_wait and self.checkpoints.busy):
            return
        began = time.monotonic()
        tree = self.devices.on_host(self._tree())
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(tree["params"])):
            self._diverged("a parameter is NaN or infinite", self.progress.examples_seen)
        self.writer.sync()
        metadata = {
            "progress": dataclasses.asdict(self.progress),
            "learning_rate": self.rate,
            "config": self.config.to_dict(),
            "class_names": self.dataset.class_names,
            "data": self.dataset.content,
            "versions": self.environment,
        }
        position, best = self.progress.examples_seen, self.progress.best_examples_seen
        self.checkpoints.save(position, tree, metadata, best)
        self.writer.write_timing(position, {"save_seconds": time.monotonic() - began})

    def _save_and_exit(self) -> None:
        """After SIGINT or SIGTERM, in this process or another."""
        received = self.stop.received or signal.SIGTERM
        self._save()
        self.checkpoints.wait()
        seen = self.progress.examples_seen
        console.show(f"{received.name}: saved at epoch {self._epoch(seen)}. To continue: {self.command_line}")
        raise SystemExit(128 + received)

    def _resume(self, tree: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Takes a checkpoint's place."""
        before = metadata["config"]["batch_size"]
        if before != self.plan.batch_size:
            console.warn(f"config.batch_size: {before} -> {self.plan.batch_size} from here on")
        self.progress = Progress(**metadata["progress"])
        self.plateau_state = tree["plateau"]
        self.state = self.devices.place(
            dataclasses.replace(
                self.state,
                params=tree["params"],
                batch_stats=tree["batch_stats"],
                opt_state=restored_state(self.state.opt_state, tree),
            )
        )
        self.rate = self.schedule(self.plan.epoch(self.progress.examples_seen), self.plateau.scale(self.plateau_state))

    def _fresh_state(self, variables: dict[str, Any]) -> TrainState:
        return self.devices.place(create_train_state(variables, self.optimizer, self.config.seed))

    def _start_from_another(self) -> None:
        """Takes the parameters of the run that the config names."""
        drawn = self.devices.on_host({"params": self.state.params, "batch_stats": self.state.batch_stats})
        trained, _ = hosts.from_main(lambda: (start_from(self.config, self.dataset.class_names, drawn), None))
        self.state = self._fresh_state(trained)

    def _diverged(self, what: str, position: int) -> None:
        step = position // self.plan.batch_size
        raise TrainingDivergedError(
            f"{what} in step {step} (epoch {self._epoch(position)}) at learning rate {self.rate:g}; "
            f"{self._last_good()}. Try a smaller config.optimizer.learning_rate in another --workdir"
        )

    def _stuck(self, step: int) -> None:
        variables = self.devices.on_host({"params": self.state.params, "batch_stats": self.state.batch_stats})
        diagnosis = diagnose(self.config, self.experiment, variables, self.start_watch, self.rate)
        console.show(diagnosis.table())
        raise TrainingStuckError(f"{self.start_watch.text(step)}; {self._last_good()}; {diagnosis.text()}")

    def _last_good(self) -> str:
        """The newest checkpoint, once all are written."""
        self.checkpoints.wait()
        names = checkpoint_names(self.checkpoints_dir)
        return f"the last good checkpoint is {self.checkpoints_dir / str(names[-1])}" if names else "none was saved"

    def _write_description(self) -> None:
        write_json(self.workdir / "config.json", self.config.to_dict())
        write_json(self.workdir / "versions.json", self.environment)

    def _epoch(self, position: int) -> str:
        return f"{self.plan.epoch(position):.2f}/{self.plan.epochs:g}"

    def _show_header(self) -> None:
        seen = self.progress.examples_seen
        console.show_facts(
            {
                "run": f"{self.workdir}, continued from epoch {self._epoch(seen)}" if seen else str(self.workdir),
                "command": self.command_line,
                **self.experiment.describe(self.config, self.layers),
                "learning rate": describe_learning_rate(self.config.optimizer, self.plan.batch_size),
                "length": f"{self.plan.epochs:g} epochs, {self.plan.total_steps:,} steps",
            }
        )
        console.show_layers(self.layers)
        if self.dataset.num_classes <= 5:
            console.show("With 5 or fewer classes every top-5 guess is right: top-5 error is left out.")
