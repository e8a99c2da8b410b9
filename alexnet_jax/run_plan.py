"""How long a run is and when it evaluates and saves: resolved once from the config, then frozen."""

import dataclasses
import math
from fractions import Fraction

from ml_collections import ConfigDict

from alexnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """A run counted in training examples; every step sees `batch_size` of them, the last of an epoch too.

    The order of examples is one endless stream, epoch after epoch, so a batch may hold the end of one epoch and the
    start of the next. Each example is seen exactly once an epoch.

    Attributes:
      num_examples: size of the training split.
      batch_size: examples a step, over all devices.
      epochs: length of the run.
      total_steps: steps that complete `epochs`, or the smaller `max_steps`.
      eval_every_epochs: epochs between evaluations.
      checkpoint_every_steps: steps between checkpoints beside those of evaluations; 0 for none.
    """

    num_examples: int
    batch_size: int
    epochs: float
    total_steps: int
    eval_every_epochs: float
    checkpoint_every_steps: int

    @classmethod
    def create(cls, config: ConfigDict, num_examples: int, num_shards: int) -> "RunPlan":
        """Raises UserError if the batch does not divide into the shards or there is nothing to train on.

        `num_shards` is the number of devices that train on different images.
        """
        if num_examples == 0:
            raise UserError(f"config.data.name={config.data.name!r}: the training split is empty")
        batch_size, micro_batches = config.batch_size, config.parallel.micro_batches
        parts = num_shards * micro_batches
        if batch_size % parts:
            below, above = batch_size // parts * parts, -(-batch_size // parts) * parts
            sizes = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"config.batch_size={batch_size} does not divide into {num_shards} shards, one a device"
                + (f" times config.parallel.micro_batches={micro_batches}" if micro_batches > 1 else "")
                + f"; the nearest size: {sizes}"
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
        """Passes over the training split so far, the current one as a fraction."""
        return examples_seen / self.num_examples

    def is_evaluation(self, examples_seen: int, evaluated_at: int | None = None) -> bool:
        """True after the step that completes a multiple of `eval_every_epochs`, and after the last step.

        With the position of the last evaluation, true if there has been such a step since, whatever its size.
        """
        period = _exact(self.eval_every_epochs) * self.num_examples
        before = max(examples_seen - self.batch_size, 0) if evaluated_at is None else evaluated_at
        return examples_seen >= self.total_examples or examples_seen // period > before // period

    def is_checkpoint(self, examples_seen: int) -> bool:
        """True where an evaluation or `checkpoint_every_steps` asks for a checkpoint."""
        every = self.checkpoint_every_steps
        return self.is_evaluation(examples_seen) or bool(every and examples_seen // self.batch_size % every == 0)


def _exact(decimal: float) -> Fraction:
    """What was written: 1.1 as eleven tenths, not as the nearest binary fraction."""
    return Fraction(repr(decimal))
