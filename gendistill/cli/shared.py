"""What all commands share: the application, the types of their options, and how they report results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gendistill.cli.completion import complete_config, complete_extractor

app = typer.Typer(
    name="gendistill",
    help="Distill slow diffusion models into few-step models that diffusers opens, and GANs into smaller ones.\n\n"
    "`gendistill` alone shows an example of each task, and `gendistill COMMAND --help` the options of a command with examples.",
    epilog="[bold]Completion[/]: gendistill --install-completion makes the Tab key complete commands, options, methods, "
    "metrics and --set settings in bash, zsh, fish and PowerShell.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(stderr=True)
WIDE = 160  # columns of a table that is not printed to a terminal

PANELS = DISTILL, SAMPLE, EVALUATE, DESCRIBE = ("Distill", "Use a student", "Evaluate", "Describe")  # of commands in --help

TINY_SD = "assets/tiny-sd"
MODEL_HELP = "Student folder, diffusers folder, hub id or .safetensors checkpoint; or a GAN's folder"
Teacher = Annotated[str, typer.Argument(help="Diffusers folder, hub id or .safetensors checkpoint", show_default=TINY_SD)]
AnyTeacher = Annotated[
    str | None,
    typer.Argument(
        help="Diffusers folder, hub id or .safetensors checkpoint; for a GAN its folder or module:Class", show_default=TINY_SD
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; default: the best available")]
CACHE = ".cache/gendistill"
REFERENCE = "assets/emoji/train-*.tar.gz"
Extractor = Annotated[
    str | None,
    typer.Option(
        help="Feature network: emoji, inception, clip, dinov2, torchvision:NAME, a folder, or a file of Inception's weights",
        autocompletion=complete_extractor,
    ),
]
Clip = Annotated[str | None, typer.Option(help="CLIP model: a folder or MODEL/TAG of open_clip")]
Cache = Annotated[str, typer.Option(help="Folder of cached images and features")]
Dtype = Annotated[
    str | None, typer.Option(help="Precision: float16, bfloat16 or float32; default: float16 on a GPU, float32 on a CPU")
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="int8: computes in 8 bits, on a CPU or by torchao on a CUDA GPU; int8-weights, nf4-weights: a half or a quarter "
        "of the memory; none; default: as the student was trained"
    ),
]
Prompt = Annotated[list[str] | None, typer.Option(help="A prompt, or the number of a class; can be repeated")]
PromptFile = Annotated[Path | None, typer.Option(help="Text file with one prompt per line, instead of --prompt")]
ConfigFile = Annotated[
    Path | None, typer.Option(help="YAML file of settings, such as a run's config.yaml", autocompletion=complete_config)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text")]


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


def prompts_of(prompts: list[str] | None, file: Path | None) -> list[str] | None:
    """The prompts of --prompt, or those in the file of --prompts."""
    from gendistill.data.sources.prompts import Prompts

    if prompts is not None and file is not None:
        raise ValueError("--prompt and --prompts: expects one of them")
    return prompts if file is None else Prompts(file).prompts


def show(result: Any, width: int = WIDE) -> None:
    """Print text as it is, and a table in the width of the terminal, or in `width` columns where there is none.

    A table that is too wide for the terminal is printed row after row, a line for each of its columns.
    """
    if isinstance(result, str):
        print(result)
        return
    console = Console(width=None if sys.stdout.isatty() else width)
    if isinstance(result, Table) and console.measure(result).minimum > console.width:
        if result.title:
            console.print(result.title)
        for cells in zip(*(column.cells for column in result.columns), strict=True):
            lines = Table.grid(padding=(0, 2))
            for column, cell in zip(result.columns, cells, strict=True):
                lines.add_row(column.header, cell)
            console.print(lines, "")
    else:
        console.print(result)


def print_line(sentence: str) -> None:
    """Print a sentence to standard error, not wrapped."""
    console.print(escape(sentence), soft_wrap=True, highlight=False)


def warn(warnings: list[str]) -> None:
    """Print warnings to standard error, one a line."""
    for warning in warnings:
        console.print(f"[yellow]warning[/]: {escape(warning)}", soft_wrap=True, highlight=False)


def report_files(files: list[Path]) -> None:
    """Name the files that were written."""
    for file in files:
        console.print(f"wrote {file}", soft_wrap=True)


def quieten_libraries() -> None:
    """Hide the loading bars and notices of diffusers and transformers, which do not concern our users."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
