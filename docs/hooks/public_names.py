"""Every public name has a docstring: a class or function of a shipped module without one fails `make docs`, and a test."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[2]
TOPS = ("gendistill", "samplers", "schedulers", "metrics")
LINKS = tuple(ROOT / "gendistill" / top for top in TOPS)  # to the other tops, in a checkout that is used in place


def on_pre_build(**_: Any) -> None:
    """Stop a build of the site where a public name is not documented; called by MkDocs."""
    if missing := list(undocumented()):
        raise PluginError("public names without a docstring:\n" + "\n".join(missing))


def undocumented() -> Iterator[str]:
    """FILE: NAME of every public class and function, at the top of a shipped module, that has no docstring."""
    for top in TOPS:
        for file in sorted((ROOT / top).rglob("*.py")):
            if any(link in file.parents for link in LINKS):
                continue
            for node in ast.parse(file.read_text()).body:
                public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
                if public and ast.get_docstring(node) is None:  # type: ignore[type-var]
                    yield f"{file.relative_to(ROOT)}: {node.name}"  # type: ignore[attr-defined]
