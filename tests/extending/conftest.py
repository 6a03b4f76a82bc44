import pytest
from plugin import install_template
from warm_process import ran_warm


@pytest.fixture
def gendistill(request, tmp_path):
    """Runs the command line in a process that finds the module's `TEMPLATE` as an installed package."""
    site = install_template(tmp_path / "site", request.module.TEMPLATE)
    environment = {"COLUMNS": "200", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*arguments, folder=tmp_path):
        code = "from gendistill.cli import main; main()"
        return ran_warm(code, *arguments, folder=folder, environment=environment, path=[site])

    return run
