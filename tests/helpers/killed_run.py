"""Trains in a process of its own, killed at a point: python -m tests.helpers.killed_run WORKDIR PREPARED_DIR POINT.

Points: none (not killed); step (in the middle of an epoch); evaluation; save (while a checkpoint is being written);
SIGTERM and SIGINT (this signal in the middle of an epoch); SIGTERM-evaluation.
"""

import os
import signal
import sys
import time
from typing import Any

from absl import flags

from alexnet_jax import train
from alexnet_jax.checkpoint import Checkpoints
from configs import alexnet


def main(workdir: str, prepared_dir: str, point: str) -> None:
    flags.FLAGS.mark_as_parsed()
    config = alexnet.get_config("synthetic,lenet")
    config.data.prepared_dir = prepared_dir
    config.data.synthetic_examples = 101  # a prime: epochs end inside batches
    config.data.num_threads = 2
    config.batch_size, config.epochs, config.log_every_steps = 8, 4.0, 1
    config.checkpoint.every_steps = 5
    config.optimizer.patience, config.optimizer.threshold = 1, 0.5  # so that the learning rate drops on the way

    name, _, place = point.partition("-")
    send = getattr(signal, name) if name.startswith("SIG") else signal.SIGKILL
    if point == "step" or (name.startswith("SIG") and not place):
        before(train.Run, "_read_metrics", lambda run: run.position == 23 * 8 and run.unread_metrics, send)
    elif point == "evaluation" or place == "evaluation":
        before(train.Run, "_totals_of", lambda run, *_: run.progress.examples_seen > 200, send)
    elif point == "save":
        after_start_of_third_save(send)
    train.train_and_evaluate(config, workdir, command=["main.py"])


def before(owner: Any, name: str, condition: Any, send: signal.Signals) -> None:
    """Makes the first call of a method for which the condition holds send the signal before it runs."""
    original, sent = getattr(owner, name), []

    def method(*args: Any) -> Any:
        if not sent and condition(*args):
            sent.append(True)
            os.kill(os.getpid(), send)
        return original(*args)

    setattr(owner, name, method)


def after_start_of_third_save(send: signal.Signals) -> None:
    original, saves = Checkpoints.save, []

    def save(self: Checkpoints, *args: Any) -> None:
        original(self, *args)
        saves.append(True)
        if len(saves) == 3:
            deadline = time.monotonic() + 5
            while not list(self.directory.glob("*tmp*")) and time.monotonic() < deadline:
                pass
            os.kill(os.getpid(), send)

    Checkpoints.save = save  # type: ignore[method-assign]


if __name__ == "__main__":
    main(*sys.argv[1:])
