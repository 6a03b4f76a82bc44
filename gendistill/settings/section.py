"""A section of settings, and the one sentence about a mistake in it: its name, its value, what is expected, what is near."""

from __future__ import annotations

import difflib
import logging
import re
from typing import Any, ClassVar, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails

from gendistill.settings.kinds import kind_of, written

logger = logging.getLogger(__name__)


class Section(BaseModel):
    """Settings of one component. A mistake in them is a ValueError of one sentence, in Python too.

    Attributes:
        formerly: the present name of a setting by its name in earlier versions, which is still read, with a warning.
        formerly_valued: by the present name, its present values by those of earlier versions.
    """

    formerly: ClassVar[dict[str, str]] = {}
    formerly_valued: ClassVar[dict[str, dict[str, str]]] = {}

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ValueError(_one_sentence(error, type(self))) from error

    @model_validator(mode="before")
    @classmethod
    def _read_former_names(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or not (cls.formerly or cls.formerly_valued):
            return settings
        for old in cls.formerly.keys() & settings.keys():
            if cls.formerly[old] in settings:
                raise ValueError(f"settings {old} and {cls.formerly[old]} are one setting; expects only {cls.formerly[old]}")
            logger.warning("setting %s is now called %s; the old name is still read", old, cls.formerly[old])
        settings = {cls.formerly.get(name, name): value for name, value in settings.items()}
        for name, values in cls.formerly_valued.items():
            value = settings.get(name)
            if isinstance(value, str) and value in values:
                logger.warning("%s of setting %s is now called %s; the old name is still read", value, name, values[value])
                settings[name] = values[value]
        return settings

    # Sections within sections are validated without calling this, so that a mistake is named from the outermost one.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).model_fields:
            raise ValueError(_unknown(name, type(self)))
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            raise ValueError(_one_sentence(error, type(self))) from error


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every setting by its dotted name."""
    names = []
    for name, field in model.model_fields.items():
        kind = get_origin(field.annotation) or field.annotation  # `list[int]` is a type to Python 3.10
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


# What a setting expects, by the kind of pydantic's error.
FORM = "the form of its values"  # from its type, with an example
EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": FORM,
    "tuple_type": FORM,
    "missing": FORM,
    "too_short": "at least {min_length}",
    "too_long": FORM,
    "dict_type": FORM,
    "model_type": "settings by name",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
}


def _one_sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first mistake: its setting, its value, what is expected, and the nearest valid value where there is one."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return _unknown(".".join(map(str, first["loc"])), model)
    name = _setting_of(first["loc"], model)
    if first["type"] == "value_error" and name not in setting_names(model):  # of a section: a sentence of its own
        return first["msg"].removeprefix("Value error, ")
    kinds = {each["type"]: each for each in error.errors() if _setting_of(each["loc"], model) == name}
    if any(EXPECTED.get(kind) == FORM for kind in kinds):
        expected = _form(name, model)
    else:
        expected = " or ".join(map(_expected, kinds.values()))
    choices = re.findall("'([^']+)'", first["ctx"]["expected"]) if first["type"] == "literal_error" else []
    value = first["input"]
    return f"setting {name} is {value!r}; expects {expected.replace(chr(39), '')}{_nearest(str(value), choices)}"


def _form(name: str, model: type[BaseModel]) -> str:
    """What a setting of several values expects, with its default or the first of its field's `examples`."""
    *sections, last = name.split(".")
    inside: Any = model
    for section in sections:
        inside = inside.model_fields[section].annotation
    field = inside.model_fields[last]
    kind = kind_of(field.annotation).removesuffix(" or null")
    example = field.examples[0] if field.examples else None if field.is_required() else field.get_default()
    return f"{kind} such as {written(example)}" if example else kind


def _expected(error: ErrorDetails) -> str:
    """By the kind of the error; the validators of this project word it themselves."""
    if error["type"] not in EXPECTED:
        return error["msg"].removeprefix("Value error, ")
    return EXPECTED[error["type"]].format(**error.get("ctx", {}))


def _setting_of(location: tuple[str | int, ...], model: type[BaseModel]) -> str:
    """The setting that an error is about: its location without the item of a list or the branch of a union."""
    names = setting_names(model)
    parts = [str(part) for part in location]
    return next((name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in names), ".".join(parts))


def _unknown(name: str, model: type[BaseModel]) -> str:
    names = setting_names(model)
    last = {setting.rpartition(".")[2]: setting for setting in names}
    if name in last:  # in no section, or in a wrong one
        return f"setting {name} is not known; did you mean {last[name]}?"
    sections = sorted({setting.partition(".")[0] for setting in names})
    return f"setting {name} is not known{_nearest(name, names + sections)}"


def _nearest(name: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(name, choices, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""
