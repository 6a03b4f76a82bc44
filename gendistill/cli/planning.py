"""plan: what it takes, before it starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from gendistill.cli.shared import (
    TINY_SD,
    AsJson,
    Device,
    HelpFromRegistries,
    app,
    console,
    parse_settings,
    quieten_libraries,
    show,
)


@app.command(
    cls=HelpFromRegistries,
    epilog="[bold]Examples[/]: gendistill plan runs/mine/student --memory 8\n\n"
    "gendistill plan sdxl --size 768x1024 --batch 2 --dtype bfloat16\n\n"
    "gendistill plan sd1 --train --set lora.enabled=true --set trainer.batch_size=4 --memory 12",
)
def plan(
    model: Annotated[
        str | None,
        typer.Argument(
            help="local model or student, with weights or without; or sd1, sd2-base, sd2-v, sdxl", show_default=TINY_SD
        ),
    ] = None,
    train: Annotated[bool, typer.Option("--train/--sample", help="what distilling it expects, or sampling from it")] = False,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of the images; the model's own where not given")] = None,
    batch: Annotated[int, typer.Option(min=1, help="images sampled together")] = 1,
    guided: Annotated[bool, typer.Option("--guided", help="with classifier-free guidance, which doubles the batch")] = False,
    dtype: Annotated[str, typer.Option(help="of the weights: float16, bfloat16 or float32")] = "float16",
    quantization: Annotated[str, typer.Option(help="of the weights: none, int8-weights or nf4-weights")] = "none",
    config: Annotated[Path | None, typer.Option(help="with --train: YAML file")] = None,
    method: Annotated[str | None, typer.Option(help="with --train: one of {planned}")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="with --train: any setting")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="with --train: measure the time of a step, on --device")] = False,
    device: Device = None,
    memory: Annotated[float | None, typer.Option(min=0, help="GiB that are free; the usual GPUs where not given")] = None,
    as_json: AsJson = False,
) -> None:
    """What sampling MODEL, or distilling it, takes of a GPU's memory: predicted from configs, nothing is loaded."""
    quieten_libraries()
    found: Any
    if train:
        from gendistill.run.config import load_config
        from gendistill.run.training_plan import plan_training

        given = {"teacher": model, "method": method, "device": device}
        settings = {**{name: of for name, of in given.items() if of is not None}, **parse_settings(set_ or [])}
        found = plan_training(load_config(config, settings), memory=memory, probe=probe, cpu=device == "cpu")
    else:
        if config or method or set_ or probe:
            raise ValueError("--config, --method, --set, --probe: take --train")
        from gendistill.sampling.placement_plan import plan_sampling

        found = plan_sampling(
            model or TINY_SD, size=size, batch=batch, guided=guided, dtype=dtype, quantization=quantization, memory=memory
        )
    if as_json:
        print(json.dumps(found.to_dict()))
        return
    show(found.table())
    for line in found.sentences():
        console.print(line, soft_wrap=True, highlight=False, markup=False)
