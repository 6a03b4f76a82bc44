"""serve: a web page and an endpoint to try a student."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated

import typer

from gendistill.cli.command import Command
from gendistill.cli.shared import (
    MODEL_HELP,
    SAMPLE,
    TINY_SD,
    Device,
    Dtype,
    Quantization,
    app,
    print_line,
    quieten_libraries,
    warn,
)


@app.command(
    cls=Command,
    rich_help_panel=SAMPLE,
    epilog="[bold]Examples[/]: gendistill serve runs/demo/student\n\n"
    "gendistill serve runs/sd15/student --no-teacher --memory 6 --port 8000",
)
def serve(
    student: Annotated[str, typer.Argument(help=MODEL_HELP)] = TINY_SD,
    teacher: Annotated[
        str | None, typer.Option(help="Teacher to sample next to it; default: the one that the student's folder names")
    ] = None,
    no_teacher: Annotated[bool, typer.Option("--no-teacher", help="The student alone, in half of the memory")] = False,
    like: Annotated[
        str | None,
        typer.Option(help="Kind of a published few-step model, if its name does not show it: lcm-lora, dmd2-4step"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 accepts other machines")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 for any that is free")] = 7860,
    max_images: Annotated[int, typer.Option(min=1, help="Limit of images per request")] = 8,
    max_steps: Annotated[int, typer.Option(min=1, help="Limit of sampling steps per request")] = 100,
    max_waiting: Annotated[int, typer.Option(min=1, help="Limit of waiting requests; more are refused")] = 64,
    edge: Annotated[
        int | None, typer.Option(min=8, help="Longest edge of a requested image in pixels; default: that of the model")
    ] = None,
    device: Device = None,
    memory: Annotated[
        float | None, typer.Option(min=0, help="Memory for student and teacher in GiB; default: what is free")
    ] = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    compiled: Annotated[
        bool,
        typer.Option("--compile", help="Compile the networks with torch: a slow start, then faster where they are small"),
    ] = False,
) -> None:
    """Serve a local web page to try STUDENT next to its teacher, and an images endpoint for applications, at /v1."""
    from gendistill.runtime.device import usable_device
    from gendistill.runtime.extras import install_line
    from gendistill.sampling.load import Opening
    from gendistill.serve.address import is_this_machine, listen
    from gendistill.serve.image_request import RequestLimits
    from gendistill.serve.studio import compile_networks, open_models, studio_of

    if teacher is not None and no_teacher:
        raise ValueError("--teacher and --no-teacher: expects one of them")
    if find_spec("gradio") is None:
        raise ValueError(f"serve: needs gradio; {install_line('serve')}")
    quieten_libraries()
    listening = listen(host, port)
    models, warnings = open_models(
        student,
        teacher,
        Opening(usable_device(device), dtype, quantization, like=like, memory=memory),
        with_teacher=not no_teacher,
    )
    if compiled:
        compile_networks(models)
    if not is_this_machine(host):
        warnings.append(f"--host {host}: everyone who reaches this machine can generate images; there is no password")
    warn(warnings)

    from gendistill.serve.server import run

    def started(address: str) -> None:
        print_line(f"{' and '.join(models)} at {address}, for applications at {address}/v1; Ctrl-C ends it")

    limits = RequestLimits(images=max_images, steps=max_steps, edge=edge)
    with listening, studio_of(models, limits, max_waiting=max_waiting) as studio:
        studio.warm_up()
        run(studio, listening, started)
