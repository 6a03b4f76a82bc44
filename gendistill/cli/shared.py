"""What all commands share: the application, the kinds of their options, how they speak."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand

app = typer.Typer(
    name="gendistill",
    help="Distill slow diffusion models into few-step ones that diffusers opens, and GANs into smaller ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True)
WIDE = 160  # columns, where tables are not printed to a terminal

TINY_SD, TINY_GAN = "assets/tiny-sd", "assets/tiny-gan"
Teacher = Annotated[str, typer.Argument(help="diffusers folder, hub id or .safetensors checkpoint", show_default=TINY_SD)]
AnyTeacher = Annotated[
    str,
    typer.Argument(
        help="diffusers folder, hub id or .safetensors checkpoint; a GAN's folder or module:Class", show_default=TINY_SD
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best that is there")]
CACHE = ".cache/gendistill"
REFERENCE = "assets/emoji/train-*.tar.gz"
Extractor = Annotated[
    str | None, typer.Option(help="emoji, inception, clip, dinov2, torchvision:NAME, a file of Inception's weights, a folder")
]
Clip = Annotated[str | None, typer.Option(help="folder or MODEL/TAG of open_clip")]
Cache = Annotated[str, typer.Option(help="folder where what was sampled and extracted is kept")]
Dtype = Annotated[
    str | None, typer.Option(help="float16, bfloat16 or float32; float16 on a GPU, float32 on a CPU where not given")
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="int8 computes in 8 bits, on a CPU or by torchao on a CUDA GPU; int8-weights and nf4-weights take a half and a "
        "quarter of the memory; none; as the student learned to where not given"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def parse_steps(text: str) -> list[int]:
    """`4,2,1` as [4, 2, 1]."""
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"steps {text!r}: expects whole numbers, such as 4 or 4,2,1") from error
    if min(steps) < 1:
        raise ValueError(f"steps {text!r}: expects numbers of at least 1")
    return steps


def parse_controls(pairs: list[str]) -> list[tuple[str, str]]:
    """`["edges=cat.png"]` as [("edges", "cat.png")]: folders of ControlNets and images."""
    split = [pair.rpartition("=") for pair in pairs]
    for pair, (folder, _, image) in zip(pairs, split, strict=True):
        if not folder or not image:
            raise ValueError(f"--control {pair!r}: expects FOLDER=IMAGE, such as my-edges=edges.png")
    return [(folder, image) for folder, _, image in split]


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["trainer.max_steps=500"]` as {"trainer.max_steps": 500}; values are YAML."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r}: expects NAME=VALUE, such as trainer.max_steps=500")
        try:
            settings[name.strip()] = _number_or(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ValueError(f"--set {pair!r}: the value is not YAML; expects a number, a text or [a, list]") from error
    return settings


def _number_or(value: Any) -> Any:
    """YAML reads `2e-4` as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def prompts_of(given: list[str] | None, file: Path | None) -> list[str] | None:
    from gendistill.data.sources.prompts import Prompts

    if given is not None and file is not None:
        raise ValueError("--prompt and --prompts: expects one of them")
    return given if file is None else Prompts(file).prompts


def show(what: Any) -> None:
    """Text as it is; a table as wide as it needs where nobody looks at it."""
    print(what) if isinstance(what, str) else Console(width=None if sys.stdout.isatty() else WIDE).print(what)


def warn(warnings: list[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True, highlight=False)


def report_files(files: list[Path]) -> None:
    for file in files:
        console.print(f"wrote {file}", soft_wrap=True)


class HelpFromRegistries(TyperCommand):
    """A command whose help lists what there is: `{methods}`, `{planned}` and `{metrics}` in it are replaced."""

    def get_help(self, ctx: Any) -> str:
        parameter: Any
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            if "{" in text:
                parameter.help = text.format_map(_Registered())
        return super().get_help(ctx)


class _Registered(dict[str, str]):
    """What there is, by kind; its registry is imported only when it is asked for."""

    def __missing__(self, kind: str) -> str:
        if kind == "metrics":
            from gendistill.metrics.registry import METRICS

            return ", ".join(METRICS)
        from gendistill.methods import RECIPES

        return ", ".join(name for name, recipe in RECIPES.items() if kind == "methods" or recipe.supports.planning)


def quieten_libraries() -> None:
    """Loading bars and notices about how diffusers and transformers load say nothing to our users."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
