"""What the processor and the memory of the machine are used for."""

import platform
import subprocess
import sys

import pytest

TOUCH_TWICE = """
import resource
from alexnet_jax.system.machine import keep_freed_memory
{call}
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no mallopt")
def test_freed_memory_is_used_again() -> None:
    def faults(call: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", TOUCH_TWICE.format(call=call)], text=True))

    assert faults("keep_freed_memory()") < 100 < faults("pass")
