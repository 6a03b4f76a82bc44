"""distill, grid: students, and the best grids of teachers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from gendistill.cli.shared import (
    TINY_SD,
    AnyTeacher,
    AsJson,
    Device,
    HelpFromRegistries,
    Teacher,
    app,
    console,
    parse_settings,
    parse_steps,
    prompts_of,
    quieten_libraries,
)


@app.command(
    cls=HelpFromRegistries,
    epilog="[bold]Example[/]: gendistill distill assets/tiny-sd --data 'assets/emoji/train-*.tar.gz' --steps 4,2,1 "
    "--set data.caption=subcategory --out runs/mine\n\n"
    "gendistill distill my_module:Generator --method gan --compress 4 --weights g.safetensors --data images/ "
    "--out runs/small",
)
def distill(
    teacher: AnyTeacher = TINY_SD,
    method: Annotated[str | None, typer.Option(help="one of {methods}")] = None,
    steps: Annotated[str | None, typer.Option(help="step counts of the student, the main one first: 4 or 4,2,1")] = None,
    data: Annotated[str | None, typer.Option(help="image folder, WebDataset shards or dataset, with captions")] = None,
    prompts: Annotated[str | None, typer.Option(help="text file, one prompt a line: the teacher makes the images")] = None,
    out: Annotated[str | None, typer.Option(help="run folder")] = None,
    lora: Annotated[bool | None, typer.Option("--lora", help="train a LoRA on the frozen teacher")] = None,
    compress: Annotated[
        float | None, typer.Option(help="of a GAN: so many times fewer multiply-accumulates and parameters")
    ] = None,
    student_params: Annotated[int | None, typer.Option(help="of a GAN's student, instead")] = None,
    student_macs: Annotated[int | None, typer.Option(help="multiply-accumulates of an image, instead or besides")] = None,
    student: Annotated[str | None, typer.Option(help="of a GAN: a class of your own as the student, module:Class")] = None,
    weights: Annotated[str | None, typer.Option(help="of a GAN module:Class: .safetensors, or a state_dict's .pth")] = None,
    teacher_config: Annotated[
        str | None, typer.Option(help="of a module:Class: JSON file with its arguments; of a checkpoint, see docs/teachers.md")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file of settings; see a run's config.yaml")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="any setting: trainer.max_steps=500")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint in the run folder")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print all settings and what would happen; do nothing")] = False,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="of the frozen teacher: float32, float16, bfloat16")] = None,
    as_json: AsJson = False,
) -> None:
    """Distill TEACHER: a diffusion model into a few-step student that plain diffusers opens, a GAN into a smaller one."""
    from gendistill.run.config import config_text, load_config
    from gendistill.run.distill import distill as run
    from gendistill.run.dry_run import dry_run as plan
    from gendistill.training.stopping import Stopped

    quieten_libraries()
    given = {
        "teacher": _teacher(teacher, method, config),
        "method": method,
        "steps": None if steps is None else parse_steps(steps),
        "data.path": data,
        "data.prompts": prompts,
        "out": out,
        "lora.enabled": lora,
        "compress.factor": compress,
        "compress.params": student_params,
        "compress.macs": student_macs,
        "compress.student": student,
        "generator.weights": weights,
        "teacher_config": teacher_config,
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }
    overrides = {name: value for name, value in given.items() if value is not None} | parse_settings(set_ or [])
    settings = load_config(config, overrides)
    if dry_run:
        planned = plan(settings, resume=resume)
        if as_json:
            print(json.dumps({"config": settings.model_dump(mode="json"), "plan": dataclasses.asdict(planned)}))
            return
        print(config_text(settings), end="")
        for line in planned.lines():
            console.print(line, soft_wrap=True, highlight=False)
        return
    try:
        result = run(settings, resume=resume)
    except Stopped as stop:
        console.print(escape(str(stop)), soft_wrap=True, highlight=False)
        raise typer.Exit(stop.exit_code) from stop
    if not result.is_main_process:
        return
    if as_json:
        print(json.dumps({"student": str(result.student_folder), **dataclasses.asdict(result.training)}))
        return
    training = result.training
    console.print(
        escape(
            f"{result.describe()}; {training.steps} steps in {training.seconds / 60:.1f} min, best at step {training.best_step}"
        ),
        soft_wrap=True,
        highlight=False,
    )
    if training.ended:
        console.print(f"[yellow]{escape(training.ended)}[/]", soft_wrap=True, highlight=False)


def _teacher(given: str, method: str | None, config: Path | None) -> str | None:
    """The one that was given; without one that of the config file, or the embedded one of the method."""
    if given != TINY_SD:
        return given
    if config is not None:
        return None
    from gendistill.methods import RECIPES

    return RECIPES[method].default_teacher if method in RECIPES else TINY_SD


@app.command(epilog='[bold]Example[/]: gendistill grid assets/tiny-sd --prompt "google emoji of food fruit" --steps 4 -w 2')
def grid(
    teacher: Teacher = TINY_SD,
    prompt: Annotated[list[str] | None, typer.Option(help="may be given more than once; a text, or a class number")] = None,
    prompts: Annotated[Path | None, typer.Option(help="text file, one prompt a line; some dozens tell enough")] = None,
    steps: Annotated[str, typer.Option(help="step counts: 8,4,2")] = "8,4,2",
    guidance_scale: Annotated[float, typer.Option("--guidance-scale", "-w", min=1, help="to sample with; 1 is none")] = 1.0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find the timesteps at which few DDIM steps of TEACHER stray least from its many: no training."""
    from gendistill.sampling.find_grid import find_grids

    quieten_libraries()
    found = find_grids(teacher, prompts_of(prompt, prompts), parse_steps(steps), guidance_scale, device)
    if as_json:
        print(json.dumps({count: dataclasses.asdict(grid) for count, grid in found.items()}))
        return
    for count, grid in found.items():
        usual = "" if grid.trailing_error is None else f", trailing's {grid.trailing_error:.3f}"
        print(f"{count} steps: {grid.timesteps} (error {grid.error:.3f}{usual})")
    console.print(
        "take one as progressive.grid, or with DPMSolverMultistepScheduler(solver_order=1, final_sigmas_type='zero') in "
        "diffusers: pipe(..., timesteps=[...])",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
