"""The command line: distill, sample, grid, evaluate, compare, statistics."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.markup import escape

from gendistill.allocator import keep_freed_memory

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
        help="diffusers folder, hub id or .safetensors checkpoint; a GAN's folder, module:Class or .pt2", show_default=TINY_SD
    ),
]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best that is there")]
CACHE = ".cache/gendistill"
REFERENCE = "assets/emoji/train-*.tar.gz"
Extractor = Annotated[
    str | None, typer.Option(help="emoji, inception, clip, dinov2, torchvision:NAME, a file of Inception's weights, a folder")
]
Clip = Annotated[str | None, typer.Option(help="folder or MODEL/TAG of open_clip")]
Cache = Annotated[str, typer.Option(help="folder where what was drawn and extracted is kept")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


@app.command(
    epilog="[bold]Example[/]: gendistill distill assets/tiny-sd --data 'assets/emoji/train-*.tar.gz' --steps 4,2,1 "
    "--set data.caption=subcategory --out runs/mine\n\n"
    "gendistill distill my_module:Generator --method gan --compress 4 --weights g.safetensors --data pictures/ --out runs/small"
)
def distill(
    teacher: AnyTeacher = TINY_SD,
    method: Annotated[str | None, typer.Option(help="consistency, progressive, latent_alignment, decoder or gan")] = None,
    steps: Annotated[str | None, typer.Option(help="step counts of the student, the main one first: 4 or 4,2,1")] = None,
    data: Annotated[str | None, typer.Option(help="image folder, WebDataset shards or dataset, with captions")] = None,
    prompts: Annotated[str | None, typer.Option(help="text file, one prompt a line: the teacher makes the pictures")] = None,
    out: Annotated[str | None, typer.Option(help="run folder")] = None,
    lora: Annotated[bool | None, typer.Option("--lora", help="train a LoRA on the frozen teacher")] = None,
    compress: Annotated[
        float | None, typer.Option(help="of a GAN: so many times fewer multiply-accumulates and parameters")
    ] = None,
    student_params: Annotated[int | None, typer.Option(help="of a GAN's student, instead")] = None,
    student_macs: Annotated[int | None, typer.Option(help="multiply-accumulates of a picture, instead or besides")] = None,
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
    from gendistill.config import config_text, load_config
    from gendistill.distill import distill as run
    from gendistill.dry_run import dry_run as plan
    from gendistill.training.stopping import Stopped

    _quieten_libraries()
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


@app.command(
    epilog='[bold]Example[/]: gendistill sample runs/demo/student --prompt "google emoji of food fruit" --num 8 --out fruit.png'
)
def sample(
    student: Annotated[str, typer.Argument(help="student folder, or whatever a teacher may be")] = TINY_SD,
    prompt: Annotated[list[str] | None, typer.Option(help="may be given more than once; a text, or a class number")] = None,
    prompts: Annotated[Path | None, typer.Option(help="text file, one prompt a line")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="the student's own where not given")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="the student's own where not given")] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="a picture or a folder, for a GAN that paints pictures anew")
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option(min=2, help="of a GAN: strips of so many pictures from one noise to another")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first picture; the next ones count on")] = 0,
    num: Annotated[int, typer.Option(min=1, help="pictures of each prompt")] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    out: Annotated[
        Path, typer.Option(help="a .png (a grid if there are several), a folder, or .npy (floats in [0, 1])")
    ] = Path("sample.png"),
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures from a student, from any diffusers pipeline, or from a GAN."""
    from gendistill.drawing import draw

    _quieten_libraries()
    made = draw(
        student,
        _prompts(prompt, prompts),
        out,
        inputs=input_,
        interpolate=interpolate,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        num=num,
        batch_size=batch_size,
        device=device,
    )
    print(json.dumps(dataclasses.asdict(made), default=str)) if as_json else console.print(made.describe())


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
    from gendistill.grid_search import find_grids

    _quieten_libraries()
    found = find_grids(teacher, _prompts(prompt, prompts), parse_steps(steps), guidance_scale, device)
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


@app.command(
    epilog="[bold]Examples[/]: gendistill evaluate runs/demo/student --caption subcategory --out runs/demo\n\n"
    "gendistill evaluate my-pictures --reference real.zip --metrics fid,kid,prdc --extractor inception"
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="student or GAN folder; a teacher, for the figures that students are held against; or a set of pictures"
        ),
    ],
    teacher: Annotated[str | None, typer.Option(help="the one that the student's folder names")] = None,
    reference: Annotated[
        str, typer.Option(help="real pictures: folder, .zip, tar, dataset; for pictures also .npz statistics")
    ] = REFERENCE,
    caption: Annotated[str | None, typer.Option(help="caption field that prompts are drawn from")] = None,
    prompts: Annotated[str | None, typer.Option(help="text file to draw the prompts from instead")] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="a picture or a folder, for a GAN that paints pictures anew")
    ] = None,
    num: Annotated[int, typer.Option(min=2, help="pictures a row")] = 2000,
    steps: Annotated[str | None, typer.Option(help="step counts of the student: 4,2,1")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="of pictures: fid, fid_infinity, kid, prdc, vendi, diversity, clip_score, clip_r, cmmd"),
    ] = None,
    extractor: Extractor = None,
    resize: Annotated[str | None, typer.Option(help="of pictures: clean, legacy or none; the extractor's own")] = None,
    clip: Clip = None,
    intervals: Annotated[bool, typer.Option(help="of pictures: bootstrap 95 % intervals")] = True,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json and report.html; the model's own")] = None,
    cache: Cache = CACHE,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """FID and CLIP score: of pictures against real ones, or of a student beside its teacher with a report.html."""
    from gendistill.evaluation.evaluate import evaluate_model as run
    from gendistill.evaluation.sets import evaluate_pictures, is_picture_set

    _quieten_libraries()
    if is_picture_set(model):
        found = evaluate_pictures(
            model,
            reference=reference,
            caption=caption,
            metrics=None if metrics is None else metrics.split(","),
            extractor=extractor,
            resize=resize,
            clip=clip,
            intervals=intervals,
            seed=seed,
            out=out,
            cache=cache,
            device=device,
        )
        _warn(found.warnings)
        _print(found.evaluation.to_json() if as_json else found.evaluation.table())
        if not as_json:
            console.print(found.evaluation.protocol.describe(), highlight=False, markup=False)
        return
    if metrics is not None or resize is not None:
        raise ValueError(f"metrics and resize: take a set of pictures; {model} is read as a model")
    result = run(
        model,
        inputs=input_,
        teacher=teacher,
        reference=reference,
        caption=caption,
        prompts=prompts,
        num=num,
        steps=None if steps is None else parse_steps(steps),
        extractor=extractor,
        clip=clip,
        seed=seed,
        out=out,
        cache=cache,
        device=device,
    )
    _warn(result.warnings)
    _print(result.to_json() if as_json else result.table())
    if not as_json:
        _tell_files(result.files)


@app.command(
    epilog="[bold]Example[/]: gendistill compare assets/tiny-sd runs/full/student runs/progressive --steps 1,2,4,8,16,50 "
    "--caption subcategory -w 2 --out runs/compare"
)
def compare(
    models: Annotated[list[str], typer.Argument(help="the first is what the others are held against: the teacher")],
    steps: Annotated[str, typer.Option(help="a student is drawn in those of them that it was trained for")] = "1,2,4,8,16,50",
    reference: Annotated[str, typer.Option(help="real pictures, with captions: folder, .zip, tar, dataset")] = REFERENCE,
    caption: Annotated[str | None, typer.Option(help="caption field that prompts are drawn from")] = None,
    prompts: Annotated[str | None, typer.Option(help="text file to draw the prompts from instead")] = None,
    num: Annotated[int | None, typer.Option(min=2, help="pictures a row; 2000, or 200 if quick")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", "-w", min=1, help="of all that have a choice; their own where not given")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="of teachers: ddim or dpm-solver++; their own where not given")] = None,
    extractor: Extractor = None,
    clip: Clip = None,
    probes: Annotated[Path | None, typer.Option(help="a probes.yaml; the one beside the reference")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="made for the first model: does it still fit its students?")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER=PICTURE", help="a ControlNet made for the first model, and a picture that controls"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="few pictures: a look before the measurement")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="folder for report.html, quality.png, comparison.csv and comparison.json")] = Path(
        "runs/compare"
    ),
    cache: Cache = CACHE,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Models side by side: quality against steps, time and memory, whether differences are real, what distillation broke.

    And whether students still fit their teacher: its latent space, its layers, and LoRAs and ControlNets made for it.

    What was drawn and measured is kept: stopped, or with one model more, it goes on from there.
    """
    from gendistill.evaluation.compare import compare as run

    _quieten_libraries()
    result = run(
        models,
        steps=parse_steps(steps),
        reference=reference,
        caption=caption,
        prompts=prompts,
        num=num,
        guidance_scale=guidance_scale,
        solver=solver,
        extractor=extractor,
        clip=clip,
        probes=probes,
        loras=lora or [],
        controls=parse_controls(control or []),
        quick=quick,
        seed=seed,
        out=out,
        cache=cache,
        device=device,
    )
    _warn(result.warnings)
    _print(result.to_json() if as_json else result.table())
    if not as_json:
        if (fits := result.fit_table()) is not None:
            _print(fits)
        _tell_files(result.files)


@app.command(epilog="[bold]Example[/]: gendistill statistics real.zip --extractor inception --out real.npz")
def statistics(
    pictures: Annotated[str, typer.Argument(help="folder, .zip, tar or dataset")],
    out: Annotated[Path, typer.Option(help="a .npz, which clean-fid and pytorch-fid read too")],
    extractor: Extractor = None,
    resize: Annotated[str | None, typer.Option(help="clean, legacy or none; the extractor's own")] = None,
    cache: Cache = CACHE,
    device: Device = None,
) -> None:
    """Mean and covariance of the features of PICTURES, to evaluate against without having the pictures."""
    from gendistill.evaluation.sets import save_statistics

    _quieten_libraries()
    saved = save_statistics(pictures, out, extractor=extractor, resize=resize, cache=cache, device=device)
    console.print(f"wrote {out}: {saved.statistics.count} pictures, {saved.statistics.dim} features", soft_wrap=True)


def _teacher(given: str, method: str | None, config: Path | None) -> str | None:
    """The one that was given; without one that of the config file, or the embedded one of the method."""
    if given != TINY_SD:
        return given
    if config is not None:
        return None
    return TINY_GAN if method == "gan" else TINY_SD


def parse_steps(text: str) -> list[int]:
    """`4,2,1` as [4, 2, 1]."""
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"steps {text!r}: takes whole numbers, such as 4 or 4,2,1") from error
    if min(steps) < 1:
        raise ValueError(f"steps {text!r}: takes numbers of at least 1")
    return steps


def parse_controls(pairs: list[str]) -> list[tuple[str, str]]:
    """`["edges=cat.png"]` as [("edges", "cat.png")]: folders of ControlNets and pictures."""
    split = [pair.rpartition("=") for pair in pairs]
    for pair, (folder, _, picture) in zip(pairs, split, strict=True):
        if not folder or not picture:
            raise ValueError(f"--control {pair!r}: takes FOLDER=PICTURE, such as my-edges=edges.png")
    return [(folder, picture) for folder, _, picture in split]


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`["trainer.max_steps=500"]` as {"trainer.max_steps": 500}; values are YAML."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"--set {pair!r}: takes NAME=VALUE, such as trainer.max_steps=500")
        try:
            settings[name.strip()] = _number_or(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ValueError(f"--set {pair!r}: the value is not YAML; takes a number, a text or [a, list]") from error
    return settings


def _number_or(value: Any) -> Any:
    """YAML reads `2e-4` as text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _prompts(given: list[str] | None, file: Path | None) -> list[str] | None:
    from gendistill.data.prompts import Prompts

    if given is not None and file is not None:
        raise ValueError("--prompt and --prompts: takes one of them")
    return given if file is None else Prompts(file).prompts


def _print(what: Any) -> None:
    """Text as it is; a table as wide as it needs where nobody looks at it."""
    print(what) if isinstance(what, str) else Console(width=None if sys.stdout.isatty() else WIDE).print(what)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        console.print(f"[yellow]take care[/]: {escape(warning)}", soft_wrap=True, highlight=False)


def _tell_files(files: list[Path]) -> None:
    for file in files:
        console.print(f"wrote {file}", soft_wrap=True)


def _quieten_libraries() -> None:
    """Loading bars and notices about how diffusers and transformers load say nothing to our users."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="huggingface_hub")  # what diffusers passes to it
    keep_freed_memory()
    try:
        app()
    except ValueError as error:
        console.print(f"[red]error[/]: {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
