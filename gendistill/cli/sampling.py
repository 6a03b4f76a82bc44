"""sample, export: images from a student, and its weights in the formats of other programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_format
from gendistill.cli.shared import (
    MODEL_HELP,
    SAMPLE,
    TINY_SD,
    AsJson,
    Device,
    Dtype,
    Prompt,
    PromptFile,
    Quantization,
    app,
    console,
    parse_controls,
    prompts_of,
    quieten_libraries,
    warn,
)


@app.command(
    cls=Command,
    rich_help_panel=SAMPLE,
    epilog="[bold]Examples[/]: gendistill sample runs/demo/student --prompt 'google emoji of food fruit' --num 8 "
    "--out fruit.png\n\n"
    "gendistill sample runs/sd15/student --prompts prompts.txt --steps 4 --seed 7 --out images/",
)
def sample(
    student: Annotated[str, typer.Argument(help=MODEL_HELP)] = TINY_SD,
    prompt: Prompt = None,
    prompts: PromptFile = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Sampling steps; default: those of the student")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Guidance scale; 1 is without guidance; default: that of the student")
    ] = None,
    input_: Annotated[
        Path | None,
        typer.Option("--input", help="Image to start from; for a GAN that translates images, an image or a folder of them"),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="Image that is white where --input is generated anew")] = None,
    strength: Annotated[
        float, typer.Option(help="Fraction of the steps that are made on --input, above 0 and at most 1")
    ] = 0.8,
    control: Annotated[
        str | None, typer.Option(metavar="FOLDER=IMAGE", help="Folder of a ControlNet, and the image that controls it")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Kind of a published few-step model, if its name does not show it: lcm-lora, lightning-4step, dmd2-4step"
        ),
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option(min=2, help="GAN: strips of this many images, from one noise to another")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first image; image k has seed + k")] = 0,
    num: Annotated[int, typer.Option(min=1, help="Images per prompt")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that are sampled together")] = 16,
    out: Annotated[
        Path, typer.Option(help="A .png (a grid, if there are several images), a folder, or a .npy (floats in [0, 1])")
    ] = Path("sample.png"),
    device: Device = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="Memory for a diffusion model in GiB; default: what is free")
    ] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    as_json: AsJson = False,
) -> None:
    """Sample images from a student, any diffusers pipeline, or a GAN."""
    from gendistill.runtime.device import usable_device
    from gendistill.sampling.generate import generate
    from gendistill.sampling.load import Opening
    from gendistill.sampling.task_inputs import TaskFiles

    quieten_libraries()
    result = generate(
        student,
        prompts_of(prompt, prompts),
        out,
        opening=Opening(usable_device(device), dtype, quantization, like=like, memory=memory),
        files=TaskFiles(input_, mask, strength, None if control is None else parse_controls([control])[0]),
        interpolate=interpolate,
        steps=steps,
        guidance_scale=guidance_scale,
        seed=seed,
        num=num,
        batch_size=batch_size,
    )
    warn(result.warnings)
    print(json.dumps(dataclasses.asdict(result), default=str)) if as_json else console.print(result.describe())


@app.command(
    cls=Command,
    rich_help_panel=SAMPLE,
    epilog="[bold]Examples[/]: gendistill export runs/mine/student --format checkpoint --out mine.safetensors\n\n"
    "gendistill export runs/sd15/student --format kohya --out fast-lora.safetensors",
)
def export(
    student: Annotated[str, typer.Argument(help="Student folder")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers (a folder), checkpoint (one file in the original layout, for ComfyUI and WebUI), lora, kohya (a "
            "LoRA with kohya's names, for ComfyUI and WebUI), onnx or openvino (a folder with a program of each network)",
            autocompletion=complete_format,
        ),
    ],
    out: Annotated[Path, typer.Option(help="A folder for diffusers, onnx and openvino, otherwise a .safetensors file")],
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision of the weights: float16, bfloat16 or float32; default: float16, float32 for programs"),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Prompt of the image that both must generate")] = None,
    as_json: AsJson = False,
) -> None:
    """Export STUDENT to the format of another program, and verify that the export generates the same image."""
    from gendistill.export.formats import export as run

    quieten_libraries()
    result = run(student, format_, out, dtype=dtype, prompt=prompt)
    print(json.dumps(dataclasses.asdict(result), default=str) if as_json else result.describe())
