"""The kinds of settings in words: what a type annotation accepts, and how a value is written in YAML."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null", Any: "any value"}
PLURALS = {bool: "true or false", int: "whole numbers", float: "numbers", str: "texts"}
COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}


def kind_of(annotation: Any) -> str:
    """What a setting of a type accepts: `a whole number`, `one of ddim, lcm`, `two numbers`, `a text or null`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in NAMES:
        return NAMES[annotation]
    if origin is Annotated:
        return kind_of(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(kind_of(part) for part in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin is tuple:
        return f"{COUNTS.get(len(arguments), len(arguments))} {_several(arguments[0])}"
    if origin is list:
        return f"a list of {_several(arguments[0])}"
    if origin is dict:
        names = {str: "name", float: "step"}.get(arguments[0], "key")
        return f"{_several(arguments[1])} by {names}"
    return "settings by name"


def _several(item: Any) -> str:
    """What the items of a list or mapping are, in the plural."""
    if item in PLURALS:
        return PLURALS[item]
    if get_origin(item) is Literal:
        return " and ".join(filter(None, [", ".join(map(str, get_args(item)[:-1])), str(get_args(item)[-1])]))
    if get_origin(item) in (Union, UnionType):
        return " or ".join(_several(part) for part in get_args(item))
    return "settings"


def written(value: Any) -> str:
    """A value as it is given after `--set NAME=`: `null`, `true`, `[1, 6]`, `{name: 0.3}`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{written(name)}: {written(part)}' for name, part in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
