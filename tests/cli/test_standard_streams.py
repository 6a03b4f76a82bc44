"""Commands whose output is closed, full, or read by a program that ends, and a command that is stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_pipeline import ROOT

GENDISTILL = f"PYTHONPATH={ROOT} {sys.executable} -m gendistill.cli"


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (f"{GENDISTILL} --help >&-", 0, ""),
        (f"{GENDISTILL} nonsense 2>&-", 2, ""),
        (f"{GENDISTILL} --help > /dev/full", 2, "error: a file cannot be read or written: no space left on device"),
        (f"{GENDISTILL} --help | head -c 1 | wc -c", 0, "1"),
    ],
)
def test_output_that_nobody_takes_is_no_traceback(tmp_path, command, code, told):
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, " ".join(f"{done.stdout}{done.stderr}".split())) == (code, told)


STOPPED = """
import sys, time
from pathlib import Path
from gendistill import cli
from gendistill.runtime.files import new_folder

def app():
    with new_folder(Path("out")) as temporary:
        temporary.mkdir()
        print("writing", flush=True)
        time.sleep(60)

cli.app = app
cli.main()
"""


def test_a_command_that_is_stopped_leaves_nothing_temporary(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", STOPPED], cwd=tmp_path, env=environment, **pipe) as process:
        assert process.stdout.readline() == "writing\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    assert time.monotonic() - started < 30
    assert list(tmp_path.iterdir()) == []
