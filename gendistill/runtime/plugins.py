"""Methods, families and metrics of other packages: an entry point names the module that registers them.

[project.entry-points."gendistill"]
my-method = "my_package.my_method"
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points


@lru_cache
def load_plugins() -> None:
    """Import the modules of all entry points, once per process.

    Raises:
        ValueError: a module cannot be imported.
    """
    for point in entry_points(group="gendistill"):
        try:
            import_module(point.value)
        except Exception as error:  # a module of another package may raise any exception
            raise ValueError(f"plugin {point.name} ({point.value}) cannot be imported: {error}; fix or uninstall it") from error
