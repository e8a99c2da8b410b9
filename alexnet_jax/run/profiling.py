"""A profile of a few training steps: a trace of what the devices do, for Perfetto or XProf."""

from pathlib import Path
from typing import Any

import jax

from alexnet_jax.steps import Batch, TrainStep
from alexnet_jax.system import console
from alexnet_jax.system.files import make_folder
from alexnet_jax.train_state import TrainState

WARM_UP = 3
"""Steps before the trace: one that compiles and two more."""


class StepTrace:
    """Records a trace of some training steps of this process with `jax.profiler`, after the first WARM_UP steps."""

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._done, self._is_recording = 0, False

    def around(self, train_step: TrainStep) -> TrainStep:
        """The same training step, which starts and ends the recording when it is due."""

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
        jax.block_until_ready(state)  # the step before must not be in the trace
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # without it each call of a Python function would be recorded
        jax.profiler.start_trace(make_folder(self._folder), profiler_options=options)
        self._is_recording = True

    def close(self) -> None:
        """Ends the recording, if there is one, and prints where the trace lies."""
        if self._is_recording:
            jax.profiler.stop_trace()
            self._is_recording = False
            viewers = f"at https://ui.perfetto.dev, or: pip install xprof && xprof --logdir={self._folder}"
            steps = self._done - WARM_UP
            console.show(f"Trace of {steps} steps in {self._folder}: open its .trace.json.gz {viewers}")
