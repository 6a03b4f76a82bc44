"""distill, grid: students, and the best timestep grids of teachers."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from rich.markup import escape

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_method, complete_setting
from gendistill.cli.shared import (
    DISTILL,
    TINY_SD,
    AnyTeacher,
    AsJson,
    ConfigFile,
    Device,
    Prompt,
    Teacher,
    app,
    console,
    parse_settings,
    parse_steps,
    print_line,
    prompts_of,
    quieten_libraries,
    report_files,
    show,
)

YOUNG = 60.0  # seconds: the age of a program that has done nothing but start


@app.command(
    cls=Command,
    rich_help_panel=DISTILL,
    epilog="[bold]Examples[/]: gendistill distill assets/tiny-sd --data 'assets/emoji/train-*.tar.gz' --steps 4,2,1 "
    "--set data.caption=subcategory --out runs/mine\n\n"
    "gendistill distill my-model/ --budget 2h --memory 12GB --for '4 steps' --prompts prompts.txt --out runs/mine\n\n"
    "gendistill distill my_module:Generator --method gan --compress 4 --weights g.safetensors --data images/ "
    "--out runs/small",
)
def distill(
    teacher: AnyTeacher = None,
    method: Annotated[str | None, typer.Option(help="Distillation method: {methods}", autocompletion=complete_method)] = None,
    steps: Annotated[str | None, typer.Option(help="Step counts of the student, the main one first: 4 or 4,2,1")] = None,
    data: Annotated[str | None, typer.Option(help="Image folder, WebDataset shards or dataset, with captions")] = None,
    prompts: Annotated[
        str | None, typer.Option(help="Text file with one prompt per line, from which the teacher generates the images")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Run folder, which receives config, log, checkpoints and students")] = None,
    lora: Annotated[bool | None, typer.Option("--lora", help="Train a LoRA on the frozen teacher")] = None,
    teacher_lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[:WEIGHT]", help="LoRA that is merged into the teacher; can be repeated"),
    ] = None,
    compatible_with: Annotated[
        str | None, typer.Option(help="Folder with LoRAs of the teacher, whose effect the student learns to keep")
    ] = None,
    save_as: Annotated[
        str | None,
        typer.Option(
            help="Form of the student: as-trained, folder, base-lora (one LoRA that carries --teacher-lora and the few steps) "
            "or steps-lora (the few steps alone)"
        ),
    ] = None,
    compress: Annotated[
        float | None,
        typer.Option(help="Factor by which the student has fewer multiply-accumulates and parameters than its teacher"),
    ] = None,
    student_params: Annotated[int | None, typer.Option(help="GAN: parameters of the student, instead of --compress")] = None,
    student_macs: Annotated[
        int | None, typer.Option(help="GAN: multiply-accumulates of the student for one image, instead of --compress")
    ] = None,
    student: Annotated[str | None, typer.Option(help="GAN: student class of your own, as module:Class")] = None,
    weights: Annotated[
        str | None, typer.Option(help="GAN: weights of a module:Class: .safetensors, or a .pth with a state_dict")
    ] = None,
    teacher_config: Annotated[
        str | None,
        typer.Option(
            help="JSON file with the arguments of a module:Class; for a checkpoint sd1, sd2-v, sdxl, flux-dev, ... or a folder"
        ),
    ] = None,
    config: ConfigFile = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting, such as trainer.max_steps=500; can be repeated; see gendistill explain",
            autocompletion=complete_setting,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the run folder")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print all settings and what would be done, and stop")] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time from the start to the end of the evaluation, such as 90s, 30m or 2h: chooses the settings and evaluates"
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="With --budget: memory, such as 12GB or 800MB; default: what is free on the device")
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option(
            "--for", help="With --budget: step counts of the student: '4 steps', '1 step' or 'any steps' (4, 2 and 1)"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all randomness of the run")] = None,
    device: Device = None,
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the frozen teacher's weights: float32, float16 or bfloat16")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Distill TEACHER: a diffusion model into a few-step student that diffusers opens, a GAN into a smaller one."""
    started = _started()
    from gendistill.run.config import config_text, load_config
    from gendistill.run.distill import distill as run
    from gendistill.run.dry_run import dry_run as plan

    quieten_libraries()
    options = {
        "teacher": _teacher(teacher, method, config),
        "method": method,
        "steps": None if steps is None else parse_steps(steps),
        "data.path": data,
        "data.prompts": prompts,
        "out": _run_of(config) if resume and out is None else out,
        "lora.enabled": lora,
        "teacher_loras": teacher_lora or None,
        "compatible.loras": compatible_with,
        "output": save_as,
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
    overrides = {name: value for name, value in options.items() if value is not None} | parse_settings(set_ or [])
    if budget is not None:
        if config is not None or resume:
            raise ValueError(f"--budget {budget}: chooses the settings of a new run; expects neither --config nor --resume")
        _distill_in_budget(overrides, budget, memory, for_, dry_run=dry_run, as_json=as_json, started=started)
        return
    if memory is not None or for_ is not None:
        raise ValueError("--memory, --for: expect --budget, such as --budget 30m")
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
    result = run(settings, resume=resume)
    if not result.is_main_process:
        return
    if as_json:
        print(json.dumps({"student": str(result.student_folder), **dataclasses.asdict(result.training)}))
        return
    training = result.training
    print_line(
        f"{result.describe()}; {training.steps} steps in {training.seconds / 60:.1f} min, best at step {training.best_step}"
    )
    if training.ended:
        console.print(f"[yellow]{escape(training.ended)}[/]", soft_wrap=True, highlight=False)


def _distill_in_budget(
    settings: dict[str, Any],
    budget: str,
    memory: str | None,
    purpose: str | None,
    *,
    dry_run: bool,
    as_json: bool,
    started: float,
) -> None:
    """Plan a run within a budget; print the plan, or carry it out and show its evaluation."""
    from gendistill.run.budgeted_run import distill_in_budget, plan_budget
    from gendistill.run.config import config_text
    from gendistill.settings.quantities import duration, parse_gib, parse_seconds

    seconds = parse_seconds("--budget", budget)
    free = None if memory is None else parse_gib("--memory", memory)
    plan = plan_budget(settings, seconds, memory=free, purpose=purpose or "any steps", started=started)
    if dry_run and as_json:
        timetable, evaluation = dataclasses.asdict(plan.timetable), dataclasses.asdict(plan.evaluation)
        found = {"timetable": timetable, "evaluation": evaluation, "rules": plan.reasons, "forecast": plan.forecast}
        print(json.dumps({"config": plan.config.model_dump(mode="json"), "plan": found}))
        return
    if dry_run:
        print(config_text(plan.config), end="")
    for line in plan.lines():
        print_line(line)
    if dry_run:
        return
    result = distill_in_budget(plan, started)
    if as_json:
        figures = None if result.comparison is None else json.loads(result.comparison.to_json())
        print(json.dumps({"student": str(result.distilled.student_folder), "seconds": result.seconds, "evaluation": figures}))
        return
    print_line(f"{result.distilled.describe()}; {duration(result.seconds)} of a budget of {duration(seconds)}")
    if result.comparison is not None:
        show(result.comparison.table())
        report_files(result.comparison.files)


def _started() -> float:
    """`time.monotonic()` at the start of this program, or now, where it is a program that calls many commands."""
    age = time.time() - psutil.Process().create_time()
    return time.monotonic() - (age if age < YOUNG else 0)


def _teacher(teacher: str | None, method: str | None, config: Path | None) -> str | None:
    """TEACHER; by default the teacher of the config file, or the embedded teacher of the method."""
    if teacher is not None or config is not None:
        return teacher
    from gendistill.methods import RECIPES

    return RECIPES[method].default_teacher if method in RECIPES else TINY_SD


def _run_of(config: Path | None) -> str | None:
    """The run folder that a config file is of; None for other files. A run that was moved is resumed where it is."""
    is_of_run = config is not None and config.name == "config.yaml" and (config.parent / "log.jsonl").is_file()
    return str(config.parent) if config is not None and is_of_run else None


@app.command(
    cls=Command,
    rich_help_panel=DISTILL,
    epilog='[bold]Example[/]: gendistill grid assets/tiny-sd --prompt "google emoji of food fruit" --steps 4 -w 2',
)
def grid(
    teacher: Teacher = TINY_SD,
    prompt: Prompt = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt per line, instead of --prompt; some dozens are enough")
    ] = None,
    steps: Annotated[str, typer.Option(help="Step counts: 8,4,2")] = "8,4,2",
    guidance_scale: Annotated[
        float, typer.Option("--guidance-scale", "-w", min=1, help="Guidance scale of the teacher; 1 is without guidance")
    ] = 1.0,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Find the timesteps at which few DDIM steps of TEACHER have the smallest error relative to many; without training."""
    from gendistill.sampling.find_grid import find_grids

    quieten_libraries()
    found = find_grids(teacher, prompts_of(prompt, prompts), parse_steps(steps), guidance_scale, device)
    if as_json:
        print(json.dumps({count: dataclasses.asdict(grid) for count, grid in found.items()}))
        return
    for count, grid in found.items():
        trailing = "" if grid.trailing_error is None else f"; of the trailing grid {grid.trailing_error:.3f}"
        print(f"{count} steps: {grid.timesteps} (error {grid.error:.3f}{trailing})")
    console.print(
        "to use one, set progressive.grid, or call a diffusers pipeline that has DPMSolverMultistepScheduler(solver_order=1, "
        "final_sigmas_type='zero') with pipe(..., timesteps=[...])",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
