"""sample, export: what a student is for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from gendistill.cli.shared import (
    TINY_SD,
    AsJson,
    Device,
    Dtype,
    Quantization,
    app,
    console,
    parse_controls,
    prompts_of,
    quieten_libraries,
    warn,
)


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
        Path | None,
        typer.Option("--input", help="an image to begin at; an image or a folder, for a GAN that generates images anew"),
    ] = None,
    mask: Annotated[Path | None, typer.Option(help="an image that is white where --input is generated anew")] = None,
    strength: Annotated[float, typer.Option(help="share of the steps that are made of --input, above 0 and at most 1")] = 0.8,
    control: Annotated[
        str | None, typer.Option(metavar="FOLDER=IMAGE", help="a ControlNet, and an image that it looks at")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(help="a few-step model of others, where its name does not tell: lcm-lora, lightning-4step, dmd2-4step"),
    ] = None,
    interpolate: Annotated[
        int | None, typer.Option(min=2, help="of a GAN: strips of so many images from one noise to another")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the first image; the next ones count on")] = 0,
    num: Annotated[int, typer.Option(min=1, help="images of each prompt")] = 1,
    batch_size: Annotated[int, typer.Option(min=1)] = 16,
    out: Annotated[
        Path, typer.Option(help="a .png (a grid if there are several), a folder, or .npy (floats in [0, 1])")
    ] = Path("sample.png"),
    device: Device = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="GiB that a diffusion model may take; what is free where not given")
    ] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    as_json: AsJson = False,
) -> None:
    """Sample images from a student, from any diffusers pipeline, or from a GAN."""
    from gendistill.runtime.device import usable_device
    from gendistill.sampling.generate import generate
    from gendistill.sampling.load import Opening
    from gendistill.sampling.task_inputs import TaskFiles

    quieten_libraries()
    made = generate(
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
    warn(made.warnings)
    print(json.dumps(dataclasses.asdict(made), default=str)) if as_json else console.print(made.describe())


@app.command(
    epilog="[bold]Examples[/]: gendistill export runs/mine/student --format checkpoint --out mine.safetensors\n\n"
    "gendistill export runs/sd15/student --format kohya --out fast-lora.safetensors"
)
def export(
    student: Annotated[str, typer.Argument(help="student folder")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="diffusers (a folder), checkpoint (one file in the original layout, for ComfyUI and WebUI), lora, kohya (a "
            "LoRA under kohya's names, for ComfyUI and WebUI), onnx or openvino (a folder with a program of each network)",
        ),
    ],
    out: Annotated[Path, typer.Option(help="a folder for diffusers, onnx and openvino, else a .safetensors")],
    dtype: Annotated[
        str | None, typer.Option(help="of the weights: float16 (where not given), bfloat16 or float32; of programs float32")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="of the image that both must sample")] = None,
    as_json: AsJson = False,
) -> None:
    """Write STUDENT in the format of another program, open it again, and see that it samples the same image."""
    from gendistill.export.formats import export as run

    quieten_libraries()
    made = run(student, format_, out, dtype=dtype, prompt=prompt)
    print(json.dumps(dataclasses.asdict(made), default=str) if as_json else made.describe())
