"""The length of a run and when it evaluates and saves, computed once from the config."""

import dataclasses
import math
from fractions import Fraction

from ml_collections import ConfigDict

from alexnet_jax.errors import UserError
from alexnet_jax.system import console


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The plan of a run, counted in training examples. Every step sees exactly `batch_size` of them.

    The examples are one endless stream, epoch after epoch, so a batch may hold the end of one epoch and the start of
    the next. Each example is seen once an epoch.

    Attributes:
      num_examples: size of the training split.
      batch_size: examples a step, over all devices.
      epochs: length of the run without `max_steps`.
      total_steps: steps that complete `epochs`, at most `max_steps`.
      eval_every_epochs: epochs between evaluations.
      checkpoint_every_steps: steps between checkpoints in addition to those at evaluations; 0 for none.
    """

    num_examples: int
    batch_size: int
    epochs: float
    total_steps: int
    eval_every_epochs: float
    checkpoint_every_steps: int

    @classmethod
    def create(cls, config: ConfigDict, num_examples: int, num_shards: int) -> "RunPlan":
        """The plan of a checked config.

        Args:
          config: see configs/alexnet.py.
          num_examples: size of the training split.
          num_shards: shards of a batch: devices that train on different images.

        Raises UserError if the batch does not divide into the shards or the training split is empty.
        """
        if num_examples == 0:
            raise UserError(f"config.data.name={config.data.name!r}: the training split is empty")
        batch_size, micro_batches = config.batch_size, config.parallel.micro_batches
        divisor = num_shards * micro_batches
        if batch_size % divisor:
            below, above = batch_size // divisor * divisor, -(-batch_size // divisor) * divisor
            sizes = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"config.batch_size={batch_size} does not divide into {num_shards} shards"
                + (f" times config.parallel.micro_batches={micro_batches}" if micro_batches > 1 else "")
                + f"; the nearest size: {sizes}"
            )
        if batch_size > num_examples:
            smaller = max(num_examples // 4 // divisor, 1) * divisor
            advice = f"; with --config.batch_size={smaller} an epoch has more steps" if smaller < batch_size else ""
            console.warn(
                f"config.batch_size={batch_size} is more than the {num_examples} training images: a step sees each "
                f"{batch_size / num_examples:.1f} times{advice}"
            )
        total_steps = math.ceil(_exact(config.epochs) * num_examples / batch_size)
        return cls(
            num_examples=num_examples,
            batch_size=batch_size,
            epochs=config.epochs,
            total_steps=min(total_steps, config.max_steps) if config.max_steps else total_steps,
            eval_every_epochs=config.eval_every_epochs,
            checkpoint_every_steps=config.checkpoint.every_steps,
        )

    @property
    def total_examples(self) -> int:
        """Examples seen at the end of the run."""
        return self.total_steps * self.batch_size

    def epoch(self, examples_seen: int) -> float:
        """The number of passes over the training split after so many examples, with its fraction."""
        return examples_seen / self.num_examples

    def is_evaluation(self, examples_seen: int, evaluated_at: int | None = None) -> bool:
        """Whether an evaluation is due: after the last step, and after each step that completes `eval_every_epochs`.

        Args:
          examples_seen: examples seen so far.
          evaluated_at: examples seen at the last evaluation; the period may have ended at any step since. By default
            one step before `examples_seen`.
        """
        period = _exact(self.eval_every_epochs) * self.num_examples
        before = max(examples_seen - self.batch_size, 0) if evaluated_at is None else evaluated_at
        return examples_seen >= self.total_examples or examples_seen // period > before // period

    def is_checkpoint(self, examples_seen: int) -> bool:
        """Whether a checkpoint is due: at each evaluation and after each `checkpoint_every_steps` steps."""
        every = self.checkpoint_every_steps
        return self.is_evaluation(examples_seen) or bool(every and examples_seen // self.batch_size % every == 0)


def _exact(decimal: float) -> Fraction:
    """The decimal number as written: 1.1 is 11/10, not the nearest binary fraction."""
    return Fraction(repr(decimal))
