"""finetune: a few-step student learns new images and keeps its steps."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_setting
from gendistill.cli.shared import (
    DISTILL,
    AsJson,
    ConfigFile,
    Device,
    app,
    console,
    parse_settings,
    print_line,
    quieten_libraries,
)

DEFAULTS: dict[str, Any] = {
    "method": "fine_tuning",
    "trainer.max_steps": 1_000_000,  # the minutes end the training
    "trainer.num_solver_images": 0,  # the student has its solver
    "watch.prompts": 0,  # the images of the teacher are not the aim
}


@app.command(
    cls=Command,
    rich_help_panel=DISTILL,
    epilog="[bold]Examples[/]: gendistill finetune runs/mine/student --data my-images --trigger sks --out runs/tuned\n\n"
    "gendistill finetune runs/mine/student --data my-images --lora --minutes 5 --prior-prompts prompts.txt --out runs/style",
)
def finetune(
    student: Annotated[str, typer.Argument(help="Folder of the few-step student")],
    data: Annotated[str, typer.Option(help="The images to learn, one or more: a folder, shards or a dataset")],
    trigger: Annotated[
        str | None, typer.Option(help="Word that precedes each caption, or is the caption of images without one")
    ] = None,
    prior_prompts: Annotated[
        str | None, typer.Option(help="Text file with prompts of the teacher, which the student keeps while it learns")
    ] = None,
    prior_fraction: Annotated[
        float, typer.Option(help="Fraction of the samples that the teacher generates from its own prompts; 0 is off")
    ] = 0.5,
    teacher: Annotated[str | None, typer.Option(help="The student's teacher, where it is not at its former place")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train a LoRA of the student instead of all weights")] = False,
    keep: Annotated[
        str | None, typer.Option(help="How the steps are kept: carry, distill, carry_distill, adversarial; or plain")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Minutes of training, after the images are encoded")] = 10.0,
    out: Annotated[
        str, typer.Option(help="Run folder, which receives config, log, checkpoints and the student")
    ] = "runs/finetune",
    config: ConfigFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of distill", autocompletion=complete_setting),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the run folder")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness of the run")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune STUDENT on new images, so that it keeps its few steps and what it could generate before."""
    from gendistill.run.config import load_config
    from gendistill.run.distill import distill
    from gendistill.run.student_settings import settings_of_student

    quieten_libraries()
    options = {
        "data.path": data,
        "data.trigger": trigger,
        "data.prior_prompts": prior_prompts,
        "data.prior_fraction": prior_fraction,
        "lora.enabled": lora,
        "fine_tuning.keep": keep,
        "trainer.max_minutes": minutes,
        "out": out,
        "seed": seed,
        "device": device,
    }
    overrides = DEFAULTS | settings_of_student(student, teacher)
    overrides |= {name: value for name, value in options.items() if value is not None} | parse_settings(set_ or [])
    result = distill(load_config(config, overrides), resume=resume)
    if not result.is_main_process:
        return
    training = result.training
    if as_json:
        print(json.dumps({"student": str(result.student_folder), **dataclasses.asdict(training)}))
        return
    print_line(
        f"{result.describe()}; {training.steps} steps in {training.seconds / 60:.1f} min, best at step {training.best_step}"
    )
    if training.ended:
        console.print(f"[yellow]{escape(training.ended)}[/]", soft_wrap=True, highlight=False)
