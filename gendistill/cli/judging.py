"""evaluate, compare, statistics: how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gendistill.cli.shared import (
    CACHE,
    REFERENCE,
    AsJson,
    Cache,
    Clip,
    Device,
    Extractor,
    HelpFromRegistries,
    Quantization,
    app,
    console,
    parse_controls,
    parse_steps,
    quieten_libraries,
    report_files,
    show,
    warn,
)

Caption = Annotated[str | None, typer.Option(help="caption field that prompts are sampled from")]
PromptsFile = Annotated[str | None, typer.Option(help="text file to sample the prompts from instead")]
Resize = Annotated[str | None, typer.Option(help="clean, legacy or none; the extractor's own")]
Seed = Annotated[int, typer.Option(min=0)]


@app.command(
    cls=HelpFromRegistries,
    epilog="[bold]Examples[/]: gendistill evaluate runs/demo/student --caption subcategory --out runs/demo\n\n"
    "gendistill evaluate my-images --reference real.zip --metrics fid,kid,prdc --extractor inception",
)
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="student or GAN folder; a teacher, for the figures that students are held against; or a set of images"
        ),
    ],
    teacher: Annotated[str | None, typer.Option(help="the one that the student's folder names")] = None,
    reference: Annotated[
        str, typer.Option(help="real images: folder, .zip, tar, dataset; for images also .npz statistics")
    ] = REFERENCE,
    caption: Caption = None,
    prompts: PromptsFile = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="an image or a folder, for a GAN that generates images anew")
    ] = None,
    num: Annotated[int, typer.Option(min=2, help="images a row")] = 2000,
    steps: Annotated[str | None, typer.Option(help="step counts of the student: 4,2,1")] = None,
    metrics: Annotated[str | None, typer.Option(help="by commas; the usual ones where not given: {metrics}")] = None,
    extractor: Extractor = None,
    resize: Resize = None,
    clip: Clip = None,
    intervals: Annotated[bool, typer.Option(help="bootstrap 95 % intervals")] = True,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="folder for evaluation.json and report.html; the model's own")] = None,
    cache: Cache = CACHE,
    device: Device = None,
    quantization: Quantization = None,
    as_json: AsJson = False,
) -> None:
    """FID, CLIP score and more: of images against real ones, or of a student beside its teacher with a report.html."""
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
    )
    _show_result(run(model, config), as_json)


@app.command(
    cls=HelpFromRegistries,
    epilog="[bold]Example[/]: gendistill compare assets/tiny-sd runs/full/student runs/progressive --steps 1,2,4,8,16,50 "
    "--caption subcategory -w 2 --out runs/compare",
)
def compare(
    models: Annotated[list[str], typer.Argument(help="the first is what the others are held against: the teacher")],
    steps: Annotated[str, typer.Option(help="a student is sampled in those of them that it was trained for")] = "1,2,4,8,16,50",
    reference: Annotated[str, typer.Option(help="real images, with captions: folder, .zip, tar, dataset")] = REFERENCE,
    caption: Caption = None,
    prompts: PromptsFile = None,
    num: Annotated[int | None, typer.Option(min=2, help="images a row; 2000, or 200 if quick")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option("--guidance-scale", "-w", min=1, help="of all that have a choice; their own where not given")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="of teachers: ddim or dpm-solver++; their own where not given")] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="by commas; the usual ones where not given, and attributes, modes and robustness only if given: {metrics}"
        ),
    ] = None,
    extractor: Extractor = None,
    clip: Clip = None,
    probes: Annotated[Path | None, typer.Option(help="a probes.yaml; the one beside the reference")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="made for the first model: does it still fit its students?")
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER=IMAGE", help="a ControlNet made for the first model, and an image that controls"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="few images: a look before the measurement")] = False,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="folder for report.html, quality.png, comparison.csv and comparison.json")] = Path(
        "runs/compare"
    ),
    cache: Cache = CACHE,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Models side by side: quality against steps, time and memory, whether differences are real, what distillation broke.

    And whether students still fit their teacher: its latent space, its layers, and LoRAs and ControlNets made for it.

    What was sampled and measured is kept: stopped, or with one model more, it goes on from there.
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
    """What an evaluation or a comparison found, and the files that it wrote."""
    warn(result.warnings)
    show(result.to_json() if as_json else result.table())
    if not as_json:
        report_files(result.files)


@app.command(epilog="[bold]Example[/]: gendistill statistics real.zip --extractor inception --out real.npz")
def statistics(
    images: Annotated[str, typer.Argument(help="folder, .zip, tar or dataset")],
    out: Annotated[Path, typer.Option(help="a .npz, which clean-fid and pytorch-fid read too")],
    extractor: Extractor = None,
    resize: Resize = None,
    cache: Cache = CACHE,
    device: Device = None,
) -> None:
    """Mean and covariance of the features of IMAGES, to evaluate against without having the images."""
    from gendistill.evaluation.sets import save_statistics

    quieten_libraries()
    saved = save_statistics(images, out, extractor=extractor, resize=resize, cache=cache, device=device)
    console.print(f"wrote {out}: {saved.statistics.count} images, {saved.statistics.dim} features", soft_wrap=True)
