"""The logs of torch's exporters, silenced for a while."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silent_exporters() -> Iterator[None]:
    """No progress, no deprecation warnings, and no log of an exception that the exporter raises as well."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
