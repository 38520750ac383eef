import gc
import mmap
import subprocess
import sys

import pytest

from hscc_search.memory import uncollected

PROBE = """
import resource, sys
import torch
from hscc_search.memory import keep_freed_memory

def page_faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(40 * 2**18)  # above the 32 MB that glibc may keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert "keep" not in sys.argv or keep_freed_memory()
page_faults(10)
print(page_faults(10))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc on Linux")
def test_freed_memory_is_used_again_and_not_fetched_anew():
    def page_faults(*arguments):
        done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=True)
        return int(done.stdout)

    pages = 10 * 40 * 2**20 // mmap.PAGESIZE
    assert page_faults() > pages / 2
    assert page_faults("keep") < pages / 100


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_afterwards_if_it_was_before(enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ValueError, match="once"), uncollected():
            assert not gc.isenabled()
            raise ValueError("once")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()
