"""Methods, families and metrics of other packages: modules that register them, named in an entry point.

[project.entry-points."gendistill"]
my-method = "my_package.my_method"
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points


@lru_cache
def load_plugins() -> None:
    """Import every module that an installed package names; once a process.

    Raises:
        ValueError: one cannot be imported.
    """
    for point in entry_points(group="gendistill"):
        try:
            import_module(point.value)
        except Exception as error:  # whatever another package's module raises
            raise ValueError(
                f"plugin {point.name} ({point.value}) cannot be imported: {error}; mend or uninstall it"
            ) from error
