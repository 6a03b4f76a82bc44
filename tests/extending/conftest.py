import os
import subprocess
import sys

import pytest
from plugin import install_template


@pytest.fixture
def gendistill(request, tmp_path):
    """Runs the command line in a process that finds the module's `TEMPLATE` as an installed package."""
    site = install_template(tmp_path / "site", request.module.TEMPLATE)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])

    def run(*arguments, folder=tmp_path):
        command = [sys.executable, "-m", "gendistill.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)

    return run
