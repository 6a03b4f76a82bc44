"""plan: the memory that sampling or training needs, before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gendistill.cli.command import Command
from gendistill.cli.completion import complete_config, complete_method, complete_setting
from gendistill.cli.shared import (
    DISTILL,
    TINY_SD,
    AsJson,
    Device,
    app,
    parse_settings,
    print_line,
    quieten_libraries,
    show,
)


@app.command(
    cls=Command,
    rich_help_panel=DISTILL,
    epilog="[bold]Examples[/]: gendistill plan runs/mine/student --memory 8\n\n"
    "gendistill plan sdxl --size 768x1024 --batch 2 --dtype bfloat16\n\n"
    "gendistill plan flux-dev --dtype bfloat16 --quantization nf4-weights --memory 24\n\n"
    "gendistill plan sd1 --train --set lora.enabled=true --set trainer.batch_size=4 --memory 12",
)
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            help="Local model or student, with or without weights; or a published size: sdxl, sd3-medium, flux-dev, ...",
            show_default=TINY_SD,
        ),
    ] = None,
    train: Annotated[bool, typer.Option("--train/--sample", help="Plan distillation, or sampling")] = False,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of the images; default: that of the model")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images that are sampled together")] = 1,
    guided: Annotated[bool, typer.Option("--guided", help="With classifier-free guidance, which doubles the batch")] = False,
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float16, bfloat16 or float32")] = "float16",
    quantization: Annotated[str, typer.Option(help="Quantization of the weights: none, int8-weights or nf4-weights")] = "none",
    config: Annotated[
        Path | None, typer.Option(help="With --train: YAML file of settings", autocompletion=complete_config)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="With --train: distillation method, one of {planned}", autocompletion=complete_method),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="With --train: any setting", autocompletion=complete_setting),
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="With --train: measure the time of a step, on --device")] = False,
    device: Device = None,
    memory: Annotated[float | None, typer.Option(min=0, help="Free memory in GiB; default: the usual sizes of GPUs")] = None,
    as_json: AsJson = False,
) -> None:
    """Predict the GPU memory of sampling MODEL, or of distilling it, from configs alone; nothing is loaded."""
    quieten_libraries()
    found: Any
    if train:
        from gendistill.run.config import load_config
        from gendistill.run.training_plan import plan_training

        options = {"teacher": model, "method": method, "device": device}
        settings = {name: value for name, value in options.items() if value is not None} | parse_settings(set_ or [])
        found = plan_training(load_config(config, settings), memory=memory, probe=probe, cpu=device == "cpu")
    else:
        if config or method or set_ or probe:
            raise ValueError("--config, --method, --set, --probe: expect --train")
        from gendistill.sampling.placement_plan import plan_sampling

        found = plan_sampling(
            model or TINY_SD, size=size, batch=batch, guided=guided, dtype=dtype, quantization=quantization, memory=memory
        )
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    show(found.table())
    for line in found.sentences():
        print_line(line)
