"""What the devices do in a few training steps, written down for a viewer."""

from pathlib import Path
from typing import Any

import jax

from alexnet_jax.steps import Batch, TrainStep
from alexnet_jax.system import console
from alexnet_jax.train_state import TrainState

WARM_UP = 3
"""Steps before the trace: the first compiles, two more warm up."""


class StepTrace:
    """A trace of some steps of a process, recorded by `jax.profiler` once the first ones have warmed it up."""

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._done, self._is_recording = 0, False

    def around(self, train_step: TrainStep) -> TrainStep:
        """The same step, recorded when its turn comes."""

        def traced(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
            if self._done == WARM_UP:
                self._start(state)
            with jax.profiler.StepTraceAnnotation("train_step", step_num=self._done):
                results = train_step(state, batch)
            self._done += 1
            if self._done == WARM_UP + self._steps:
                jax.block_until_ready(results)
                self.close()
            return results

        return traced if self._steps else train_step

    def _start(self, state: TrainState) -> None:
        jax.block_until_ready(state)  # the step before is none of the trace's
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # each call of a Python function would bury the rest
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._is_recording = True

    def close(self) -> None:
        """Ends the recording, if one is going on, and says where it lies."""
        if self._is_recording:
            jax.profiler.stop_trace()
            self._is_recording = False
            viewers = f"at https://ui.perfetto.dev, or: pip install xprof && xprof --logdir={self._folder}"
            steps = self._done - WARM_UP
            console.show(f"Trace of {steps} steps in {self._folder}: open its .trace.json.gz {viewers}")
