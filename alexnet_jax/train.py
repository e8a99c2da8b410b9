"""The training loop: steps, an evaluation after each epoch, learning-rate drops, checkpoints, and the final test."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alexnet_jax import metrics
from alexnet_jax.checkpoint import Checkpoints, checkpoint_names
from alexnet_jax.data.loader import prefetch_to_device
from alexnet_jax.diagnosis.diagnosis import diagnose
from alexnet_jax.diagnosis.start_watch import StartWatch
from alexnet_jax.errors import TrainingDivergedError, TrainingStuckError
from alexnet_jax.experiment import Data, Evaluate, Experiment, open_experiment
from alexnet_jax.inference.fine_tuning import start_from
from alexnet_jax.inference.loaded_run import restore_named
from alexnet_jax.inference.training_batch import log_images
from alexnet_jax.optimizer import averaged_params, averaged_stats
from alexnet_jax.parallel import hosts
from alexnet_jax.parallel.memory import out_of_memory_as_user_error
from alexnet_jax.run import audit, display, run_folder
from alexnet_jax.run.metrics_log import MetricWriter
from alexnet_jax.run.profiling import StepTrace
from alexnet_jax.run.run_folder import Progress
from alexnet_jax.run.throughput import Throughput
from alexnet_jax.system import console
from alexnet_jax.system.files import expand_home
from alexnet_jax.system.signals import StopSignals
from alexnet_jax.system.versions import describe_environment
from alexnet_jax.train_state import TrainState

OnEpoch = Callable[[dict[str, Any]], None]


def train_and_evaluate(
    config: ConfigDict,
    workdir: str | Path,
    command: Sequence[str] = (),
    on_epoch: OnEpoch = lambda _: None,
    data: Data | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, from the start or from the last checkpoint, and returns the test metrics.

    Args:
      config: see configs/alexnet.py.
      workdir: folder of the run, made if missing; a run of the same config in it is continued.
      command: the command line, which is printed and recorded.
      on_epoch: called with the metrics of each evaluation once they are saved; an exception from it ends the run.
      data: arrays to train on, see `Arrays`, or the data set of `config.data`, if it is already open.

    Raises:
      UserError: bad input, or `workdir` holds a run of another config.
      RunInUseError: another process trains in `workdir`; nothing is touched.
      TrainingDivergedError: the loss or a parameter is NaN or infinite.
      TrainingStuckError: the loss stays at chance level, ln(classes) for balanced classes.
      KeyboardInterrupt: SIGINT, or SIGTERM while images are being prepared (Terminated).
      SystemExit: 130 or 143 after SIGINT or SIGTERM, once the run is saved.
    """
    workdir = Path(expand_home(workdir))
    if not config.parallel.coordinator:
        run_folder.check_free(workdir)  # before images are prepared and a device's memory is taken
    with hosts.session(config.parallel), out_of_memory_as_user_error():
        experiment = open_experiment(config, data)
        with StopSignals() as stop, hosts.on_main(run_folder.hold, workdir):
            return Run(experiment, workdir, command, stop, on_epoch).execute()


class Run:
    """One training run and its folder.

    Attributes:
      state: parameters, optimizer state and learning rates, on the devices.
      position: training examples given to the devices so far; the last step may still be running.
      progress: metric totals, best error and counters up to the last step whose metrics were read.
      learning_rates: decides the learning rates of each step.
    """

    def __init__(
        self, experiment: Experiment, workdir: Path, command: Sequence[str], stop: StopSignals, on_epoch: OnEpoch
    ):
        self.experiment, self.workdir, self.stop, self.on_epoch = experiment, workdir, stop, on_epoch
        self.config, self.plan = experiment.config, experiment.plan
        self.command, self.command_line = command, run_folder.command_line(command)
        self.versions = describe_environment(list(command))
        self.trace = StepTrace(workdir / "profile", self.config.profile_steps if hosts.is_main() else 0)
        self.train_step = self.trace.around(experiment.train_step)
        self.state = experiment.init_state()
        self.position, self.progress = 0, Progress()
        self.unread_metrics: Any = None
        self.learning_rates = experiment.make_learning_rates()
        self.throughput = Throughput()
        self.measured, self.images_per_second = self.throughput.measured(), 0.0
        self.step_rates = self.learning_rates.at(0.0)
        self.rates_in_state: Any = None
        self.start_watch = StartWatch(experiment.class_shares, self.config.stuck_after_steps)
        self.agreed_to_stop, self.has_told_of_chance = False, False
        self.fresh_layers: list[str] | None = None

    def execute(self) -> dict[str, Any]:
        """Trains from where the folder's run stands to its end and returns the test metrics."""
        config, workdir = self.config, self.workdir
        tree, found = hosts.from_main(lambda: run_folder.find(workdir, config, self.experiment.dataset))
        if tree:
            self._resume(tree, found["metadata"])
        elif config.init_from:
            self._start_from_another()
        seen = self.position
        continued_from = self._epoch(seen) if seen else ""
        display.show_header(self.experiment, workdir, self.command_line, self.fresh_layers, continued_from)
        finished = [record for record in found["tests"] if record["examples_seen"] == seen]
        if self._ended_by() and finished:
            self._show_end(finished[-1], "is finished already")
            return finished[-1]
        if hosts.is_main():
            run_folder.write_description(workdir, config, self.versions)
        with (
            hosts.Watchdog(float(config.parallel.timeout_seconds), "Restart all processes to resume") as self.watchdog,
            hosts.on_main(MetricWriter, workdir, seen) as self.writer,
            hosts.on_main(
                Checkpoints, workdir / "checkpoints", config.checkpoint.keep, config.checkpoint.on_failure
            ) as self.checkpoints,
            console.step_progress(self.plan.total_steps, seen // self.plan.batch_size) as self.bar,
            contextlib.closing(self.trace),
        ):
            if not found["is_started"]:
                self.writer.write("start", 0, audit.start(config.seed, self.experiment.source))
                log_images(self.experiment, self.writer)
            self.checkpoints.set_aside_after(seen)
            self._train()
            result = self._test()
        self._show_end(result, "is finished")
        return result

    def _train(self) -> None:
        """Takes training steps to the end of the run, pausing to evaluate, to save and to stop."""
        self._set_learning_rates()
        if self._evaluation_is_due():  # the run was stopped before it
            self._evaluate()
        if self._ended_by():
            return
        with self._batches() as batches:
            self.throughput.restart()
            for batch in self.throughput.timed(batches):
                self.state, step_metrics = self.train_step(self.state, batch)
                self._read_metrics()  # of the step before, while the devices are busy with this one
                self.unread_metrics = step_metrics, self.step_rates.kernels
                self.position += self.plan.batch_size
                self.throughput.add(self.plan.batch_size, step_metrics)
                self._set_learning_rates()
                if self.plan.is_checkpoint(self.position) or self._is_stopping():
                    self._pause()
                    if self._ended_by():
                        return

    @contextlib.contextmanager
    def _batches(self) -> Iterator[Iterator[Any]]:
        """Yields the training batches from `position` on, on the devices, one batch ahead of the step.

        With several processes each batch also tells the others whether this process was asked to stop.
        """
        size, devices = self.plan.batch_size, self.experiment.devices

        def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
            if hosts.count() > 1:
                batch = {**batch, "stop": np.full(len(batch["id"]), self.stop.received is not None)}
            return devices.shard(batch)

        rows = devices.rows(size)
        on_host = self.experiment.source.batches(self.position, batch_size=size, seed=self.config.seed, rows=rows)
        with contextlib.closing(on_host), contextlib.closing(prefetch_to_device(on_host, put)) as batches:
            yield batches

    def _read_metrics(self) -> None:
        """Waits for the last step, which ends at `position`, and adds up its metrics, unless that is done."""
        if self.unread_metrics is None:
            return
        step_metrics, learning_rate = self.unread_metrics
        sums: dict[str, Any] = jax.device_get(step_metrics)
        self.unread_metrics = None
        position, progress = self.position, self.progress
        loss = sums["loss_sum"].item() / sums["count"].item()
        if not math.isfinite(loss):
            self._diverged(f"the training loss is {loss}", position)
        self.watchdog.progress(f"epoch {self._epoch(position)}")
        self.checkpoints.check()
        progress.examples_seen = position
        progress.ids_sha256 = audit.chain(progress.ids_sha256, sums.pop("epoch"), sums.pop("id"))
        self.agreed_to_stop = bool(sums.pop("stop", False))
        progress.totals = metrics.add(progress.totals, sums)
        step = position // self.plan.batch_size
        if self.start_watch.is_stuck(step, loss):
            self._stuck(step)
        if step % self.config.log_every_steps == 0:
            self.writer.write("step", position, {"loss": loss, "learning_rate": learning_rate})
        self.images_per_second = self.throughput.recent()
        self.bar.update(step, f"epoch {self._epoch(position)}  loss {loss:.3f}", self.images_per_second)

    def _pause(self) -> None:
        """Waits for the devices, then stops the run, evaluates and saves, or only saves."""
        self._read_metrics()
        self.measured = self.throughput.measured()
        self.trace.close()
        self.writer.write_timing(self.position, self.measured)
        if self._is_stopping():
            self._save_and_exit()
        if self._evaluation_is_due():
            self._evaluate()
        else:
            self._save(may_wait=True)
        self.throughput.restart()

    def _is_stopping(self) -> bool:
        """Whether a signal has asked the run to stop; with several processes, once all know of it."""
        return self.agreed_to_stop if hosts.count() > 1 else self.stop.received is not None

    def _ended_by(self) -> str:
        """The key of the config that ends the run here; "" if it goes on."""
        progress, config = self.progress, self.config
        bound, patience = config.stop_at_train_error, config.early_stopping_patience
        if self.position >= self.plan.total_examples:
            return "max_steps" if self.plan.total_steps == config.max_steps else "epochs"
        if bound and progress.train_top1_error is not None and progress.train_top1_error <= bound:
            return "stop_at_train_error"
        if patience and progress.evaluations_since_best >= patience:
            return "early_stopping_patience"
        return ""

    def _evaluation_is_due(self) -> bool:
        evaluated_at = self.progress.evaluated_at
        return self.position > evaluated_at and self.plan.is_evaluation(self.position, evaluated_at)

    def _set_learning_rates(self) -> None:
        """Sets the learning rates of the next step in the state; prints and records a drop or a restart."""
        self.step_rates = rates = self.learning_rates.at(self.plan.epoch(self.position))
        if rates.change:
            display.show_change(rates.before, rates.kernels, rates.change)
            values = {"learning_rate_before": rates.before, "learning_rate": rates.kernels, "reason": rates.change}
            self.writer.write("division", self.position, values)
        if self.step_rates.by_parameter != self.rates_in_state:
            self.rates_in_state = self.step_rates.by_parameter
            self.state = self.experiment.with_learning_rates(self.state, self.step_rates.by_parameter)

    def _evaluate(self) -> None:
        """Evaluates the validation split, applies the plateau rule, records the metrics and saves a checkpoint."""
        began = time.monotonic()
        progress, num_classes = self.progress, self.experiment.dataset.num_classes
        validation = metrics.summarize(self._totals_of(self.experiment.evaluate, "validation", self.state), num_classes)
        if not math.isfinite(validation["loss"]):
            self._diverged(f"the validation loss is {validation['loss']}", self.position)
        train = metrics.summarize(progress.totals, num_classes)
        epoch, last_step = (self.plan.epoch(self.position - size) for size in (0, self.plan.batch_size))
        is_at_chance = self.start_watch.is_at_chance(train["loss"])
        is_withheld = self.learning_rates.observe(validation["top1_error"], epoch, is_at_chance, last_step)
        record = {
            "epoch": epoch,
            "train_loss": train["loss"],
            "train_top1_error": train["top1_error"],
            **{f"validation_{name}": value for name, value in validation.items()},
            "learning_rate": self.step_rates.kernels,
            "plateau_count": self.learning_rates.plateau.plateau_count,
            "ids_sha256": progress.ids_sha256,
        }
        self.writer.write("epoch", self.position, record)
        self.writer.write_timing(self.position, {"evaluate_seconds": time.monotonic() - began})
        display.show_epoch(record, self.config.optimizer, self.images_per_second, self.measured["input_share"])
        if is_withheld and not self.has_told_of_chance:
            self.has_told_of_chance = True
            display.show_chance_level(train["loss"], self.start_watch.chance)
        progress.compare(validation["top1_error"], self.position)
        progress.totals, progress.ids_sha256, progress.evaluated_at = {}, "", self.position
        progress.train_top1_error = train["top1_error"]
        self._set_learning_rates()
        self._save()
        self.on_epoch(record)

    def _test(self) -> dict[str, Any]:
        """Evaluates the test split; without one, the validation split once more.

        The parameters are the last ones; with early stopping, those of the best checkpoint.
        """
        dataset, state = self.experiment.dataset, self.state
        which: dict[str, Any] = {}
        if self.config.early_stopping_patience:
            self.checkpoints.wait()
            tree, which = hosts.from_main(self._best)
            state = self.experiment.devices.place(run_folder.restored(state, tree))
        split = "test" if "test" in dataset.splits else "validation"
        summary = metrics.summarize(self._totals_of(self.experiment.test, split, state), dataset.num_classes)
        record = {"split": split, "views": self.config.test_views, **which, **summary}
        self.writer.write("test", self.position, record)
        self.writer.sync()
        return record

    def _best(self) -> tuple[Any, dict[str, Any]]:
        """The arrays of the best checkpoint on disk, and which one it is."""
        best = restore_named(self.workdir / "checkpoints", "best")
        return best.tree, {"checkpoint": best.examples_seen}

    def _totals_of(self, evaluate: Evaluate, split: str, state: TrainState) -> dict[str, Any]:
        """The metric totals of a split, with the averaged parameters if the optimizer keeps an average."""
        totals: dict[str, Any] = {}
        params = averaged_params(state.opt_state, state.params)
        for totals_so_far in evaluate(params, averaged_stats(state.opt_state, state.batch_stats), split):
            self.watchdog.progress(f"the evaluation at epoch {self._epoch(self.position)}")
            self.bar.describe(f"evaluating {split}")
            if hosts.any_process(self.stop.received is not None):
                self._save_and_exit()
            totals = totals_so_far
        return totals

    def _save(self, may_wait: bool = False) -> None:
        """Saves a checkpoint, in process 0 alone; one that `may_wait` is skipped if training would have to wait."""
        if not hosts.is_main() or (may_wait and self.checkpoints.is_busy()):
            return
        began = time.monotonic()
        content = run_folder.checkpoint_tree(self.state, self.learning_rates, self.experiment.preprocessing)
        tree = self.experiment.devices.on_host(content)
        if not all(np.isfinite(array).all() for array in jax.tree.leaves(tree["params"])):
            self._diverged("a parameter is NaN or infinite", self.position)
        self.writer.sync()
        dataset, learning_rate = self.experiment.dataset, self.step_rates.kernels
        metadata = run_folder.checkpoint_metadata(
            self.config, dataset.class_names, dataset.content, self.progress, learning_rate, self.versions
        ) | {"prepared": dataset.prepared, "records": self.writer.digest}
        self.checkpoints.save(self.position, tree, metadata, self.progress.best_examples_seen)
        self.writer.write_timing(self.position, {"save_seconds": time.monotonic() - began})

    def _save_and_exit(self) -> None:
        """Saves a checkpoint and exits, after SIGINT or SIGTERM in this process or another."""
        received = self.stop.received or signal.SIGTERM
        self._save()
        self.checkpoints.wait()
        console.show(f"{received.name}: saved at epoch {self._epoch(self.position)}. To continue: {self.command_line}")
        raise SystemExit(128 + received)

    def _resume(self, tree: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Restores state, progress and learning rates from a checkpoint's arrays and metadata."""
        before = metadata["config"]["batch_size"]
        if before != self.plan.batch_size:
            console.warn(f"config.batch_size: {before} -> {self.plan.batch_size} from here on")
        self.experiment = self.experiment.with_statistics(tree["preprocessing"])
        self.train_step = self.trace.around(self.experiment.train_step)
        self.progress = Progress(**metadata["progress"])
        self.position = self.progress.examples_seen
        self.learning_rates.restore(tree["plateau"], self.plan.epoch(self.position))
        self.state = self.experiment.devices.place(run_folder.restored(self.state, tree))

    def _start_from_another(self) -> None:
        """Initialises the parameters from `config.init_from`, a run or a weight file."""
        class_names = self.experiment.dataset.class_names
        trained, self.fresh_layers = hosts.from_main(lambda: start_from(self.config, class_names, self._variables()))
        self.state = self.experiment.init_state(trained)

    def _variables(self) -> dict[str, Any]:
        """Parameters and batch statistics as whole arrays on the host."""
        return self.experiment.devices.on_host({"params": self.state.params, "batch_stats": self.state.batch_stats})

    def _show_end(self, result: Mapping[str, Any], state: str) -> None:
        """Prints the test error, and the commands that continue or use the run."""
        ended_by, epoch = self._ended_by(), self.plan.epoch(self.position)
        restarts = ended_by == "epochs" and self.learning_rates.has_fallen_for_good(epoch)
        commands = run_folder.next_commands(self.command, self.config, self.workdir, ended_by, restarts)
        display.show_end(result, state, self.workdir, commands)
        if restarts:
            display.show_fallen(self.learning_rates.of_kernels(epoch))

    def _diverged(self, what: str, position: int) -> None:
        """Ends the run with an error that says where it diverged and what to try."""
        step = position // self.plan.batch_size
        raise TrainingDivergedError(
            f"{what} in step {step} (epoch {self._epoch(position)}) at learning rate {self.step_rates.kernels:g}; "
            f"{self._last_good()}. Try a smaller config.optimizer.learning_rate in another --workdir"
        )

    def _stuck(self, step: int) -> None:
        """Ends the run with a table of layer statistics and an error that names the likely cause."""
        diagnosis = diagnose(self.experiment, self._variables(), self.start_watch, self.step_rates.kernels)
        console.show(diagnosis.table())
        raise TrainingStuckError(f"{self.start_watch.text(step)}; {self._last_good()}; {diagnosis.text()}")

    def _last_good(self) -> str:
        """Names the newest checkpoint, once all are written."""
        self.checkpoints.wait()
        folder = self.workdir / "checkpoints"
        names = checkpoint_names(folder)
        return f"the last good checkpoint is {folder / str(names[-1])}" if names else "none was saved"

    def _epoch(self, position: int) -> str:
        """The epoch of a position and the length of the run, such as "12.50/90"."""
        return f"{self.plan.epoch(position):.2f}/{self.plan.epochs:g}"
