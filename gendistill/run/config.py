"""The settings of a run, typed and documented; the same on the command line, in YAML and in Python.

General settings are in `methods.recipe.RunConfig`; each registered method adds a section.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import create_model, model_validator

from gendistill.configs import preset_path
from gendistill.methods import RECIPES, RunConfig, recipe_of
from gendistill.methods.alignment import check_alignment
from gendistill.methods.compression import check_compression
from gendistill.methods.lora_checks import check_loras
from gendistill.methods.matching_features import check_additions
from gendistill.methods.method_registry import compresses
from gendistill.runtime.files import written_alone
from gendistill.runtime.plugins import load_plugins

HEADER = "# Written by gendistill distill: all settings of this run.\n"


class CheckedConfig(RunConfig):
    """The settings of a run, checked to be compatible with each other."""

    @model_validator(mode="after")
    def _is_compatible(self) -> CheckedConfig:
        check(self)
        return self


def check(config: RunConfig) -> None:
    """Raise ValueError, in one sentence that names a setting, if valid settings are not compatible with each other."""
    recipe = recipe_of(config)
    _full_weights(config)
    if recipe.teaches != "generator":
        check_compression(config, recipe)
    if not config.steps or min(config.steps) < 1:
        raise ValueError(f"steps {config.steps}: expects at least one step count, each 1 or more")
    if config.lora.quantization != "none" and not config.lora.enabled:
        raise ValueError(
            f"lora.quantization {config.lora.quantization}: quantized weights cannot be trained; expects lora.enabled=true, "
            "which trains an adapter on them"
        )
    recipe.check(config)
    check_alignment(config, recipe)
    check_additions(config, recipe)
    check_loras(config, recipe)


def _full_weights(config: RunConfig) -> None:
    requested = {"start": config.start is not None, "quantization": config.quantization != "none"}
    for name in (name for name, is_requested in requested.items() if is_requested):
        if not recipe_of(config).supports.full_weights:
            raise ValueError(f"{name} {getattr(config, name)}: expects a method that trains a denoiser, not {config.method}")
        if config.lora.enabled and not (name == "start" and recipe_of(config).supports.student_lora):
            raise ValueError(f"{name} {getattr(config, name)}: trains all weights; expects lora.enabled=false")
    if config.start is not None and compresses(config):
        raise ValueError(f"start {config.start}: excludes compress, which starts from the teacher; expects one of them")


def config_class() -> type[RunConfig]:
    """`RunConfig` with the registered methods as choices of `method`, and a section for each of them."""
    return _config_class(tuple(RECIPES))


@lru_cache
def _config_class(names: tuple[str, ...]) -> type[RunConfig]:
    sections: dict[str, Any] = {RECIPES[name].section: (RECIPES[name].Config, RECIPES[name].Config()) for name in names}
    fields = {"method": (Literal[names], RunConfig.model_fields["method"]), **sections}
    config_type: type[RunConfig] = create_model("DistillConfig", __base__=CheckedConfig, __module__=__name__, **fields)
    return config_type


if TYPE_CHECKING:
    DistillConfig = RunConfig
else:
    DistillConfig = config_class()


def load_config(file: Path | None = None, overrides: dict[str, Any] | None = None) -> RunConfig:
    """A config from a YAML file or a preset (`demo`); overrides by dotted name (`{"trainer.max_steps": 500}`) take precedence.

    Raises:
        ValueError: there is an unknown setting or an invalid value, which the message names.
    """
    load_plugins()
    settings: dict[str, Any] = {}
    if file is not None:
        file = preset_path(file)
        try:
            settings = yaml.safe_load(file.read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config {file} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(settings, dict):
            raise ValueError(f"config {file} holds a {type(settings).__name__}; expects settings by name")
        settings = _string_keys(settings)
    for name, value in (overrides or {}).items():
        *sections, last = name.split(".")
        target = settings
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"setting {name}: {section} is a value, not a section")
        target[last] = value
    return config_class()(**settings)


def _string_keys(settings: dict[Any, Any]) -> dict[str, Any]:
    """The settings with strings as keys at all levels: YAML reads the name of the stage with 4 steps as a number."""
    return {str(name): _string_keys(value) if isinstance(value, dict) else value for name, value in settings.items()}


def config_text(config: RunConfig) -> str:
    """All settings as YAML for `load_config`."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def save_config(config: RunConfig, path: Path) -> None:
    """Write `config_text` to a file, atomically."""
    with written_alone(path) as temporary:
        temporary.write_text(HEADER + config_text(config))
