"""What is known of a setting: its meaning, what it accepts, its unit, its default, its range, and the paper that it is from.

All of it stands at the setting's own field: `description`, the constraints of pydantic, and `json_schema_extra=about(...)` for
the unit and the paper.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from gendistill.settings.kinds import kind_of, written
from gendistill.settings.papers import Paper
from gendistill.settings.section import is_section, setting_names

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def about(unit: str | None = None, paper: Paper | None = None, at: str | None = None) -> JsonDict:
    """The `json_schema_extra` of a field: the unit of its value, and the paper, with the place `at` which it says so."""
    found: dict[str, Any] = {"unit": unit, "paper": None if paper is None else paper.cited(at)}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class SettingExplanation:
    """A setting in words.

    Attributes:
        name: dotted, as in `--set NAME=VALUE`.
        kind: what it accepts, such as `a whole number` or `one of ddim, lcm`.
        range: its bounds, such as `at least 1`; None where it has none.
        defaults_by_method: of methods whose setting of the same last name has another default.
    """

    name: str
    meaning: str
    kind: str
    unit: str | None
    default: Any
    range: str | None
    paper: str | None
    defaults_by_method: dict[str, Any]


def explain(model: type[BaseModel], name: str, methods: Mapping[str, str] | None = None) -> list[SettingExplanation]:
    """The setting of a dotted name, all settings of a section, or all settings whose last name it is.

    Args:
        model: the outermost section.
        methods: names of methods by their sections, whose defaults may differ.

    Raises:
        ValueError: there is no such setting; the sentence has the nearest names.
    """
    names = setting_names(model)
    chosen = [each for each in names if each == name or each.startswith(f"{name}.")]
    chosen = chosen or [each for each in names if each.endswith(f".{name}")]
    if not chosen:
        known = dict.fromkeys([*names, *section_names(model), *(each.rpartition(".")[2] for each in names)])
        near = difflib.get_close_matches(name, known, 3, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "`gendistill explain` lists all sections"
        raise ValueError(f"setting {name} is not known; {hint}")
    return [_explained(model, each, methods or {}) for each in chosen]


def section_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every section by its dotted name."""
    for name, field in model.model_fields.items():
        if is_section(field.annotation):
            yield prefix + name
            yield from section_names(field.annotation, f"{prefix}{name}.")


def field_of(model: type[BaseModel], name: str) -> FieldInfo:
    """The field of a dotted name."""
    *sections, last = name.split(".")
    for section in sections:
        model = model.model_fields[section].annotation  # type: ignore[assignment]
    return model.model_fields[last]


def _explained(model: type[BaseModel], name: str, methods: Mapping[str, str]) -> SettingExplanation:
    field = field_of(model, name)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = _default(model, name)
    section, _, last = name.partition(".")
    others = {
        methods[other]: f"{other}.{last}"
        for other in methods
        if section in methods and f"{other}.{last}" in setting_names(model)
    }
    defaults = {method: _default(model, other) for method, other in others.items()}
    return SettingExplanation(
        name=name,
        meaning=field.description or "",
        kind=kind_of(field.annotation),
        unit=str(extra["unit"]) if "unit" in extra else None,
        default=default,
        range=_range(field),
        paper=str(extra["paper"]) if "paper" in extra else None,
        defaults_by_method=defaults if any(other != default for other in defaults.values()) else {},
    )


def _default(model: type[BaseModel], name: str) -> Any:
    value: Any = model()
    for part in name.split("."):
        value = getattr(value, part)
    return list(value) if isinstance(value, tuple) else value


def _range(field: FieldInfo) -> str | None:
    bounds = [
        f"{words} {written(getattr(limit, bound))}"
        for limit in field.metadata
        for bound, words in BOUNDS.items()
        if hasattr(limit, bound)
    ]
    return " and ".join(bounds) or None
