"""`gendistill` alone: what it is, and an example of each of the five things that people do with it."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape

from gendistill.cli.shared import app

ABOUT = (
    "gendistill distills slow generative models: diffusion models into few-step models that diffusers opens, "
    "and GANs into smaller ones."
)
DATA = "--data 'assets/emoji/train-*.tar.gz'"
TASKS = (
    (
        "Distill your Stable Diffusion",
        f"gendistill distill assets/tiny-sd {DATA} --set data.caption=subcategory --set trainer.max_minutes=10 --out runs/mine",
    ),
    (
        "Use the student: sample from it here, or export it for ComfyUI; diffusers opens its folder",
        'gendistill sample runs/mine/student --prompt "google emoji of food fruit" --num 8 --out fruit.png',
        "gendistill export runs/mine/student --format checkpoint --out mine.safetensors",
    ),
    (
        "Evaluate it, or compare several models",
        "gendistill evaluate runs/mine/student --caption subcategory --out runs/mine",
        "gendistill compare assets/tiny-sd runs/mine/student --caption subcategory --quick --out runs/compare",
    ),
    (
        "Compress a GAN",
        f"gendistill distill assets/tiny-gan --method gan --compress 4 {DATA} --out runs/small",
    ),
    (
        "Fit a GPU: predict memory before you start",
        "gendistill plan sd1 --train --set lora.enabled=true --memory 12",
    ),
)
MORE = (
    ("gendistill --help", "all commands; each has --help with examples"),
    ("gendistill methods", "distillation methods; also: gendistill metrics, gendistill families"),
    ("gendistill explain SETTING", "what a setting means; gendistill explain lists the sections"),
)


@app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Without a command, show what gendistill is and examples."""
    if context.invoked_subcommand is not None:
        return
    from gendistill.cli.catalogue import DOCS

    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{ABOUT}\n\nThe examples use the small models in assets/; instead of assets/tiny-sd, give your own model's folder,"
    )
    console.print("hub id or .safetensors checkpoint.\n")
    for number, (task, *examples) in enumerate(TASKS, 1):
        console.print(f"[bold]{number}. {escape(task)}[/]")
        for example in examples:
            console.print(f"   {escape(example)}")
    console.print()
    width = max(len(command) for command, _ in MORE)
    for command, text in MORE:
        console.print(f"[bold]{command.ljust(width)}[/]  {text}")
    console.print(f"[bold]{'Documentation'.ljust(width)}[/]  {DOCS}")
