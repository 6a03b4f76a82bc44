import pytest
from invented_page import page

from gendistill.evaluation.reporting.page import render


@pytest.fixture(scope="session")
def report_html() -> str:
    """A complete report of invented figures."""
    return render(page())
