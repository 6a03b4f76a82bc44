"""evaluate, compare, statistics: the quality of models and of sets of images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_metrics
from gendistill.cli.shared import (
    CACHE,
    EVALUATE,
    REFERENCE,
    AsJson,
    Cache,
    Clip,
    Device,
    Extractor,
    Quantization,
    app,
    parse_controls,
    parse_steps,
    print_line,
    quieten_libraries,
    report_files,
    show,
    warn,
)

Caption = Annotated[str | None, typer.Option(help="Caption field of the reference, from which prompts are sampled")]
PromptsFile = Annotated[
    str | None, typer.Option(help="Text file with one prompt per line, instead of the reference's captions")
]
Resize = Annotated[str | None, typer.Option(help="Resizing of images: clean, legacy or none; default: that of the extractor")]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Precision of diffusion models: float16, bfloat16 or float32; default: where a student is evaluated that of the "
        "figures in its teacher's folder, else float32"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the prompts, the noise and the resampling")]


@app.command(
    cls=Command,
    rich_help_panel=EVALUATE,
    epilog="[bold]Examples[/]: gendistill evaluate runs/demo/student --caption subcategory --out runs/demo\n\n"
    "gendistill evaluate my-images --reference real.zip --metrics fid,kid,prdc --extractor inception",
)
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Student or GAN folder; a teacher, as the baseline of its students; or a set of images")
    ],
    teacher: Annotated[str | None, typer.Option(help="Teacher of the student; default: the one that its folder names")] = None,
    reference: Annotated[
        str, typer.Option(help="Real images: folder, .zip, tar or dataset; for a set of images also .npz statistics")
    ] = REFERENCE,
    caption: Caption = None,
    prompts: PromptsFile = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="Image or folder of images, for a GAN that translates images")
    ] = None,
    num: Annotated[int, typer.Option(min=2, help="Images per row of the report")] = 2000,
    steps: Annotated[
        str | None, typer.Option(help="Step counts of the student: 4,2,1; default: those it was trained for")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Metrics, separated by commas: {metrics}; default: the usual ones", autocompletion=complete_metrics),
    ] = None,
    extractor: Extractor = None,
    resize: Resize = None,
    clip: Clip = None,
    intervals: Annotated[bool, typer.Option(help="Bootstrap 95 % confidence intervals")] = True,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for evaluation.json and report.html; default: the model's folder")
    ] = None,
    cache: Cache = CACHE,
    device: Device = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a student next to its teacher, or images against real ones: FID, CLIP score and more, with a report.html.

    Sampled images and features are cached: after Ctrl-C, the same command continues.
    """
    from gendistill.evaluation.evaluate import evaluate as run
    from gendistill.evaluation.evaluation_config import EvaluationConfig

    quieten_libraries()
    config = EvaluationConfig(
        reference,
        caption=caption,
        prompts=prompts,
        num=num,
        metrics=None if metrics is None else metrics.split(","),
        extractor=extractor,
        resize=resize,
        clip=clip,
        intervals=intervals,
        seed=seed,
        cache=cache,
        out=out,
        device=device,
        teacher=teacher,
        steps=None if steps is None else parse_steps(steps),
        inputs=input_,
        quantization=quantization,
        dtype=dtype,
    )
    _show_result(run(model, config), as_json)


@app.command(
    cls=Command,
    rich_help_panel=EVALUATE,
    epilog="[bold]Examples[/]: gendistill compare assets/tiny-sd runs/full/student runs/progressive --steps 1,2,4,8,16,50 "
    "--caption subcategory -w 2 --out runs/compare\n\n"
    "gendistill compare assets/tiny-sd runs/full/student --caption subcategory --quick",
)
def compare(
    models: Annotated[list[str], typer.Argument(help="Models; the others are compared with the first, the teacher")],
    steps: Annotated[
        str, typer.Option(help="Step counts; a student is sampled at those of them that it was trained for")
    ] = "1,2,4,8,16,50",
    reference: Annotated[str, typer.Option(help="Real images with captions: folder, .zip, tar or dataset")] = REFERENCE,
    caption: Caption = None,
    prompts: PromptsFile = None,
    num: Annotated[
        int | None, typer.Option(min=2, help="Images per row of the report; default: 2000, or 200 with --quick")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", "-w", min=1, help="Guidance scale of all models that accept one; default: their own"),
    ] = None,
    solver: Annotated[str | None, typer.Option(help="Solver of teachers: ddim or dpm-solver++; default: their own")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Metrics, separated by commas: {metrics}; default: the usual ones; attributes, modes and robustness only on "
            "request",
            autocompletion=complete_metrics,
        ),
    ] = None,
    extractor: Extractor = None,
    clip: Clip = None,
    probes: Annotated[Path | None, typer.Option(help="A probes.yaml; default: the file next to the reference")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="LoRA made for the first model, to be tested on its students; can be repeated"),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER=IMAGE", help="ControlNet made for the first model, and the image that controls it"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few images, for a first impression")] = False,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for report.html, quality.png, comparison.csv and comparison.json")] = Path(
        "runs/compare"
    ),
    cache: Cache = CACHE,
    device: Device = None,
    dtype: Dtype = None,
    as_json: AsJson = False,
) -> None:
    """Compare models: quality against steps, time and memory, tests of the differences, and regressions of the students.

    Also whether students still fit their teacher: its latent space, its layers, and LoRAs and ControlNets made for it.

    Sampled images and figures are cached: after Ctrl-C, or with one more model, the same command continues.
    """
    from gendistill.evaluation.compare import compare as run
    from gendistill.evaluation.evaluation_config import ComparisonConfig

    quieten_libraries()
    config = ComparisonConfig(
        reference,
        caption=caption,
        prompts=prompts,
        num=num,
        metrics=None if metrics is None else metrics.split(","),
        extractor=extractor,
        clip=clip,
        seed=seed,
        cache=cache,
        out=out,
        device=device,
        dtype=dtype,
        steps=parse_steps(steps),
        guidance_scale=guidance_scale,
        solver=solver,
        probes=probes,
        loras=lora or (),
        controls=parse_controls(control or []),
        quick=quick,
    )
    result = run(models, config)
    _show_result(result, as_json)
    if not as_json and (fits := result.fit_table()) is not None:
        show(fits)


def _show_result(result: Any, as_json: bool) -> None:
    """Print what an evaluation or a comparison found, and the files that it wrote."""
    warn(result.warnings)
    show(result.to_json() if as_json else result.table())
    if not as_json:
        report_files(result.files)


@app.command(
    cls=Command,
    rich_help_panel=EVALUATE,
    epilog="[bold]Example[/]: gendistill statistics real.zip --extractor inception --out real.npz",
)
def statistics(
    images: Annotated[str, typer.Argument(help="Real images: folder, .zip, tar or dataset")],
    out: Annotated[Path, typer.Option(help="A .npz file, which clean-fid and pytorch-fid read too")],
    extractor: Extractor = None,
    resize: Resize = None,
    cache: Cache = CACHE,
    device: Device = None,
) -> None:
    """Save mean and covariance of the features of IMAGES, to evaluate against without the images."""
    from gendistill.evaluation.sets import save_statistics

    quieten_libraries()
    saved = save_statistics(images, out, extractor=extractor, resize=resize, cache=cache, device=device)
    print_line(f"wrote {out}: {saved.statistics.count} images, {saved.statistics.dim} features")
