"""The space of a search: a YAML file with the choices or the range of each setting, checked by the settings themselves."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from gendistill.methods import RunConfig
from gendistill.run.config import load_config
from gendistill.settings.kinds import kind_of, written

FORMS = "a list of choices, or a range such as {low: 1e-5, high: 1e-3, log: true} or {low: 2, high: 8, step: 2}"
# Settings by which trials are compared, and those that the search itself sets.
FIXED = (
    "out",
    "device",
    "teacher",
    "steps",
    "seed",
    "data.cache",
    "validation_reference",
    "validation_extractor",
    "trainer.num_validation",
    "trainer.num_solver_images",
    "trainer.max_minutes",
)


@dataclass(frozen=True)
class SearchSpace:
    """The settings of a search.

    Attributes:
        distributions: by dotted name of a setting.
        texts: choices that are lists or mappings, by their JSON, which stands for them in the study.
    """

    distributions: dict[str, BaseDistribution]
    texts: dict[str, Any]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The settings of a trial, by dotted name."""
        return {name: self.value_of(_suggested(trial, name, each)) for name, each in self.distributions.items()}

    def value_of(self, suggested: Any) -> Any:
        """The value of a setting for a parameter of the study."""
        return self.texts.get(suggested, suggested) if isinstance(suggested, str) else suggested

    def own_parameters(self, config: RunConfig) -> dict[str, Any] | None:
        """The config's own values as parameters of the study; None if one of them is outside of the space."""
        values = {name: _text_of(reduce(getattr, name.split("."), config)) for name in self.distributions}
        return values if all(_holds(self.distributions[name], value) for name, value in values.items()) else None

    def grid(self) -> list[dict[str, Any]]:
        """All combinations.

        Raises:
            ValueError: the range of a setting has no step.
        """
        columns = {name: _grid_values(name, each) for name, each in self.distributions.items()}
        return [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]


def read_space(file: Path, config: Path | None, overrides: dict[str, Any]) -> SearchSpace:
    """The space in a YAML file, of which each setting, each choice and each end of a range is checked.

    Args:
        config, overrides: the settings that it changes, as for `load_config`.

    Raises:
        ValueError: the file cannot be read, or one of its settings does not exist or does not accept a value.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ValueError(f"space {file} cannot be read: {(error.strerror or str(error)).lower()}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"space {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise ValueError(f"space {file}: expects the names of settings, each with {FORMS}")
    distributions: dict[str, BaseDistribution] = {}
    texts: dict[str, Any] = {}
    for name, value in content.items():
        try:
            distributions[str(name)] = _distribution(str(name), value, config, overrides, texts)
        except ValueError as error:
            raise ValueError(f"space {file}: {error}") from error
    return SearchSpace(distributions, texts)


def _distribution(
    name: str, value: Any, config: Path | None, overrides: dict[str, Any], texts: dict[str, Any]
) -> BaseDistribution:
    if name in FIXED:
        raise ValueError(f"setting {name} is the same for all trials, which are compared by it; expects other settings")
    values = [_number_of(each) for each in value] if isinstance(value, list) else []
    if values:
        for each in values:
            _require_valid(name, each, config, overrides)
            if isinstance(each, list | dict):
                texts[json.dumps(each)] = each
        return CategoricalDistribution(tuple(map(_text_of, values)))
    ends = {key: _number_of(each) for key, each in value.items()} if isinstance(value, dict) else {}
    low, high, step, log = (
        ends.pop(key, default) for key, default in (("low", None), ("high", None), ("step", None), ("log", False))
    )
    if ends or not all(map(_is_number, (low, high))) or not (step is None or _is_number(step)) or not isinstance(log, bool):
        _require_valid(name, "", config, overrides, known=True)  # the name's mistake comes first
        raise ValueError(f"setting {name} has {written(value)}; expects {FORMS}")
    for each in (low, high):
        _require_valid(name, each, config, overrides)
    is_integer = kind_of(_annotation(name, load_config(config, dict(overrides)))).removesuffix(" or null") == "a whole number"
    try:
        if low >= high or (step is not None and step <= 0):
            raise ValueError("expects low below high, and a step above 0")
        if is_integer:
            return IntDistribution(int(low), int(high), log, 1 if step is None else _integer_step(step))
        return FloatDistribution(float(low), float(high), log, step)
    except ValueError as error:
        raise ValueError(f"setting {name} has {written(value)}: {str(error).rstrip('.')}") from error


def _require_valid(name: str, value: Any, config: Path | None, overrides: dict[str, Any], known: bool = False) -> None:
    """Raise ValueError if a setting does not exist, or (unless `known`) by its own check does not accept a value.

    Whether it goes together with other settings is found out when both are chosen.
    """
    try:
        load_config(config, {**overrides, name: value})
    except ValueError as error:
        sentence = str(error)
        if sentence.startswith(f"setting {name} is not known") or (sentence.startswith(f"setting {name}") and not known):
            raise


def _annotation(name: str, config: RunConfig) -> Any:
    *sections, last = name.split(".")
    section: Any = reduce(getattr, sections, config)
    return type(section).model_fields[last].annotation


def _number_of(value: Any) -> Any:
    """YAML reads `1e-5` as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer_step(step: float) -> int:
    if step != int(step):
        raise ValueError("expects a whole number as the step")
    return int(step)


def _text_of(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _suggested(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if not _is_number(value) or not distribution.low <= value <= distribution.high:
        return False
    steps = 0.0 if distribution.step is None else (value - distribution.low) / distribution.step
    return abs(steps - round(steps)) < 1e-8


def _grid_values(name: str, distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if distribution.step is None or distribution.log:
        raise ValueError(f"space: the range of {name} has no step; expects choices or a step with --sampler grid")
    count = int((distribution.high - distribution.low) / distribution.step + 1e-8) + 1
    return [distribution.low + number * distribution.step for number in range(count)]
