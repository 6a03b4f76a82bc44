"""Tables that are made from the registries, so that they cannot go out of date.

A page has `<!-- settings: consistency -->`, `<!-- metric: fd -->`, `<!-- families -->`, `<!-- methods -->` or
`<!-- budget: rules -->` where one belongs.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from gendistill.methods import RECIPES, RunConfig
from gendistill.metrics.metric import Need
from gendistill.metrics.registry import METRICS
from gendistill.run import budget_rules
from gendistill.run.budget_forecast import MEASURED
from gendistill.run.config import config_class
from gendistill.samplers.families import FAMILIES
from gendistill.settings.schedule import Weight

MARKER = re.compile(r"^<!-- (settings|metric|families|methods|budget)(?:: ([\w.]+))? -->$", re.MULTILINE)
YES = {True: "yes", False: "no"}
LEVEL = {"quick": "always", "full": "unless `--quick`", "on request": "where `--metrics` names it"}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the markers of a page; called by MkDocs."""
    return MARKER.sub(lambda found: TABLES[found[1]](found[2] or ""), markdown)


def settings_table(section: str) -> str:
    """Every setting of a section by its dotted name; `run` means those that are in no section."""
    model: Any = config_class()
    for part in section.split(".") if section != "run" else []:
        model = model.model_fields[part].annotation
    deep = section != "run"
    rows = [
        [f"`{name}`", _value(field.get_default(call_default_factory=True)), _kind(field.annotation), field.description or ""]
        for name, field in _settings(model, f"{section}." if deep else "", deep=deep)
    ]
    return _table(["setting", "default", "expects", "meaning"], rows)


def metric_facts(name: str) -> str:
    """What the registry knows of a metric, as a list."""
    metric = METRICS[name]
    network = {"extractor": "the feature extractor", "clip": "the CLIP model", "lpips": "the LPIPS network", None: ""}
    facts = {
        "better": "higher" if metric.higher_is_better else "lower",
        "computed": LEVEL[metric.default],
        "compares": "pairs of images" if metric.of_pairs else "two sets of images" if Need.REFERENCE in metric.needs else "",
        "other names for `--metrics`": ", ".join(f"`{alias}`" for alias in metric.aliases),
        "its reported name ends with": network[metric.named_after],
        "fewest images": str(metric.min_samples),
    }
    return " · ".join(f"{fact}: {value}" for fact, value in facts.items() if value)


def families_table(_: str) -> str:
    """Every family of diffusion teachers."""
    rows = [
        [
            type(family).__name__,
            ", ".join(f"`{pipeline}`" for pipeline in family.pipelines),
            f"`{family.network_part}`",
            YES[family.texts],
            YES[family.guided],
            YES[family.lora],
        ]
        for family in FAMILIES
    ]
    return _table(["family", "diffusers pipelines", "distilled part", "prompts are texts", "guidance", "LoRA"], rows)


def methods_table(_: str) -> str:
    """Every method, its page, and what it can be combined with."""
    rows = [
        [
            f"[`{name}`]({name.replace('_', '-')}.md)",
            recipe.summary,
            recipe.teaches,
            YES[recipe.supports.lora],
            YES[recipe.supports.compression],
            YES[recipe.supports.full_weights],
        ]
        for name, recipe in RECIPES.items()
    ]
    return _table(["`--method`", "", "teacher", "LoRA", "`--compress` before it", "int8 training"], rows)


def budget_table(name: str) -> str:
    """What `distill --budget` goes by: its `rules`, the steps that save `memory`, or the measurements of its `forecasts`."""
    if name == "rules":
        rows = [[rule.decides, rule.case, _settings_text(rule.settings), rule.evidence] for rule in budget_rules.RULES]
        return _table(["decides", "where", "settings", "evidence"], rows)
    if name == "memory":
        rows = [[step, _settings_text(settings)] for step, settings in budget_rules.MEMORY_STEPS]
        return _table(["", "settings"], rows)
    rows = [
        [run.teacher, run.method, f"{run.length:,}", ", ".join(f"{gap:.2f} at {calls}" for calls, gap in run.closed.items())]
        for run in MEASURED
    ]
    return _table(["teacher", "method", "training samples, or trajectories", "gap closed, by calls"], rows)


def _settings_text(settings: dict[str, Any]) -> str:
    return "<br>".join(f"`{name}={value}`".replace("'", "") for name, value in settings.items())


TABLES: dict[str, Callable[[str], str]] = {
    "settings": settings_table,
    "metric": metric_facts,
    "families": families_table,
    "methods": methods_table,
    "budget": budget_table,
}


def _settings(model: type[BaseModel], prefix: str, *, deep: bool) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        inside = field.annotation
        if isinstance(inside, type) and issubclass(inside, BaseModel):
            if deep:
                yield from _settings(inside, f"{prefix}{name}.", deep=True)
        elif deep or name in RunConfig.model_fields:
            yield prefix + name, field


def _kind(annotation: Any) -> str:
    """What a setting expects, in words."""
    if annotation == Weight or annotation == (Weight | None):
        return "number or schedule"
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_kind(part) for part in typing.get_args(annotation) if part is not type(None))
    words = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", list: "list", tuple: "two numbers"}
    return words.get(typing.get_origin(annotation) or annotation, "settings by name")


def _value(default: Any) -> str:
    if default is None or default is PydanticUndefined or default in ({}, []):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    shown = list(default) if isinstance(default, tuple) else default
    return f"`{shown}`".replace("'", "")


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
