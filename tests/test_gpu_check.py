"""scripts/gpu_check.py, with small models on a CPU: its checks run, and a failure is a row of the table."""

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def test_the_table_has_a_row_for_each_check_also_for_one_that_failed_or_cannot_run_here(gpu_check, tmp_path):
    machine = gpu_check.Machine("cpu", True, tmp_path)
    checks = list(itertools.islice(gpu_check.attempts("sampling", machine, 0), 2))
    assert [check.passed for check in checks] == [True, True]
    assert "of diffusers' time" in checks[1].measured
    checks += gpu_check.attempts("waiting", machine, 0)

    def broken(machine):
        yield "broken", lambda: 1 / 0

    gpu_check.SECTIONS["broken"] = broken
    checks += gpu_check.attempts("broken", machine, 0)
    table = gpu_check.report(checks, machine, 60).splitlines()
    assert table[-1] == "| broken | broken | ZeroDivisionError: division by zero | FAILED |"
    assert len(table) == 4 + len(checks)
    assert "skipped: a CPU computes nothing asynchronously" in table[-2]


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu_with_small_models(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--small", "--out", str(tmp_path / "gpu.md")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in (tmp_path / "gpu.md").read_text()
