"""What is known of a setting: its meaning, what it accepts, its unit, its default, its range, and the paper that it is from.

All of it stands at the setting's own field: `description`, the constraints of pydantic, and `json_schema_extra=about(...)` for
the unit and the paper.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from gendistill.settings.kinds import kind_of, written
from gendistill.settings.papers import Paper
from gendistill.settings.section import setting_names

BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def about(unit: str | None = None, paper: Paper | None = None, at: str | None = None, path: bool = False) -> JsonDict:
    """The `json_schema_extra` of a field: the unit of its value, the paper that it is from, with the place in it, and whether
    the value can be a path."""
    found: dict[str, Any] = {"unit": unit, "paper": None if paper is None else paper.cited(at), "path": path or None}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class SettingExplanation:
    """A setting in words.

    Attributes:
        name: dotted, as in `--set NAME=VALUE`.
        kind: its type or choices, such as `a whole number` or `one of ddim, lcm`.
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


def explanations(model: type[BaseModel], methods: Mapping[str, str] | None = None) -> list[SettingExplanation]:
    """Every setting of an outermost section, in its order.

    Args:
        methods: names of methods by their sections, whose defaults may differ.
    """
    defaults, methods = model(), methods or {}
    names = setting_names(model)
    values = {name: _value(defaults, name) for name in names}
    return [_explained(model, name, values, methods) for name in names]


def find(settings: Sequence[SettingExplanation], name: str) -> list[SettingExplanation]:
    """The setting of a dotted name, all settings of a section, or all settings whose last name it is.

    Raises:
        ValueError: there is no such setting; the sentence has the nearest names.
    """
    found = [each for each in settings if each.name == name or each.name.startswith(f"{name}.")]
    found = found or [each for each in settings if each.name.endswith(f".{name}")]
    if not found:
        near = difflib.get_close_matches(name, nameable(settings), 3, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "`gendistill explain` lists the sections"
        raise ValueError(f"setting {name} is not known; {hint}")
    return found


def sections(settings: Sequence[SettingExplanation]) -> list[str]:
    """The outermost sections, in order."""
    return list(dict.fromkeys(each.name.partition(".")[0] for each in settings if "." in each.name))


def nameable(settings: Sequence[SettingExplanation]) -> list[str]:
    """All that `find` finds: settings, sections, and last names."""
    names = [each.name for each in settings]
    parents = (".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(1, len(parts)))
    return list(dict.fromkeys([*names, *parents, *(name.rpartition(".")[2] for name in names)]))


def _explained(model: type[BaseModel], name: str, values: Mapping[str, Any], methods: Mapping[str, str]) -> SettingExplanation:
    field = _field(model, name)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    section, _, last = name.partition(".")
    others = {methods[other]: f"{other}.{last}" for other in methods} if section in methods else {}
    defaults = {method: values[other] for method, other in others.items() if other in values}
    return SettingExplanation(
        name=name,
        meaning=field.description or "",
        kind=kind_of(field.annotation),
        unit=str(extra["unit"]) if "unit" in extra else None,
        default=values[name],
        range=_range(field),
        paper=str(extra["paper"]) if "paper" in extra else None,
        defaults_by_method=defaults if any(value != values[name] for value in defaults.values()) else {},
    )


def _field(model: type[BaseModel], name: str) -> FieldInfo:
    *outer, last = name.split(".")
    inside: Any = model
    for section in outer:
        inside = inside.model_fields[section].annotation
    field: FieldInfo = inside.model_fields[last]
    return field


def is_path(model: type[BaseModel], name: str) -> bool:
    """Whether the value of a setting can be a path."""
    extra = _field(model, name).json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("path"))


def _value(settings: Any, name: str) -> Any:
    """A value that JSON holds as it is: the steps of a schedule become texts, as they are written."""
    for part in name.split("."):
        settings = getattr(settings, part)
    if isinstance(settings, dict):
        return {written(step): value for step, value in settings.items()}
    return list(settings) if isinstance(settings, tuple) else settings


def _range(field: FieldInfo) -> str | None:
    bounds = [
        f"{words} {written(getattr(limit, bound))}"
        for limit in field.metadata
        for bound, words in BOUNDS.items()
        if hasattr(limit, bound)
    ]
    return " and ".join(bounds) or None
