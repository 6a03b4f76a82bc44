"""The command line keeps freed memory, in a fresh process."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, torch
from gendistill.runtime.allocator import keep_freed_memory
if {keep}:
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(1 << 24)
before = faults()
for _ in range(32):
    torch.ones(1 << 24)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")
def test_freed_tensors_are_not_given_back_and_zeroed_again():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", PAGES.format(keep=keep)], capture_output=True, text=True, check=True).stdout)
        for keep in (True, False)
    )
    assert kept * 4 < given_back  # a heap that has to grow once more takes the pages of a tensor or two
