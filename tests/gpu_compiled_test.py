"""The table of bytes of a step compiled for a GPU: how it reads XLA's text, and the figures themselves."""

import importlib.util
import json

import pytest

from benchmarks import gpu_compiled
from configs import alexnet
from tests.conftest import REPOSITORY

PROGRAM = """HloModule jit__fun

%fused_add (p: bf16[4,8]) -> f32[4,8] {
  ROOT %add = f32[4,8]{1,0} add(%p, %p), metadata={op_name="jit(_fun)/jvp(pool)/add"}
}

ENTRY %main (a: bf16[4,8], b: u8[2]) -> f32[4,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = u8[2]{0} parameter(1)
  %view = bf16[8,4]{1,0} bitcast(%a)
  %pair = (bf16[4,8]{1,0}, u8[0]{0}) custom-call(%a, %view, %b), custom_call_target="__cudnn$convForward"
  %first = bf16[4,8]{1,0} get-tuple-element(%pair), index=0
  ROOT %sum = f32[4,8]{1,0} fusion(%first, %first), kind=kLoop, calls=%fused_add, metadata={op_name="x"}
}
"""


def test_each_kernel_reads_its_distinct_operands_once() -> None:
    convolution, addition = gpu_compiled.find_kernels(PROGRAM)
    assert (convolution.category, convolution.bytes) == ("convolutions", 64 + 2 + 64)
    assert (addition.category, addition.bytes) == ("pooling", 64 + 128)
    assert gpu_compiled.add_up([convolution, addition])["all"] == 322


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_plugins"), reason=f"needs {gpu_compiled.PLUGIN}")
def test_bytes_are_those_of_the_documentation() -> None:
    recorded = json.loads((REPOSITORY / "results/gpu_compiled/h100.json").read_text())
    config = alexnet.get_config("imagenet2012,caffe")
    config.update({"batch_size": 1024, "model": {"compute_dtype": "bfloat16", "num_classes": 1000}})
    program = gpu_compiled.compile_step(config, gpu_compiled.H100.read_text())
    found = gpu_compiled.add_up(gpu_compiled.find_kernels(program.as_text()))
    assert found["all"] == pytest.approx(recorded["bytes"]["caffe"]["all"], rel=0.01)
