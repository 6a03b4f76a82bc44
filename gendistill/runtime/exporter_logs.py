"""The logs of torch's exporters, silenced for a while."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript")


@contextlib.contextmanager
def silent_exporters() -> Iterator[None]:
    """No progress, no deprecation warnings, and no log of an exception that the exporter raises as well."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
