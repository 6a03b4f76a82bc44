"""A GAN student's folder: for gendistill, as a program for torch alone, as ONNX for everything else."""

from __future__ import annotations

import importlib.util
import logging
import shutil
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.gan.gan_card import gan_card
from gendistill.gan.gan_folder import Gan, open_gan, round_weights, save_gan
from gendistill.gan.generator import image_in
from gendistill.networks.classes import in_a_line
from gendistill.networks.pruning.pruned_architecture import duplicate, fold
from gendistill.runtime.exporter import traced, write_onnx
from gendistill.runtime.extras import install_line
from gendistill.runtime.files import replace_folder

logger = logging.getLogger(__name__)

PROGRAM, ONNX = "generator.pt2", "generator.onnx"
OWN = tuple(f"/gendistill/{file}.py" for file in ("gan/gan_export", "gan/generator", "runtime/exporter"))
TOLERANCE = 1e-4  # of a program's images from the network's, in the network's own units


class _GeneratorModule(nn.Module):
    """A network whose output is the image alone, whatever it is wrapped in."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        return image_in(self.network(*inputs))


def export_student(
    folder: Path,
    gan: Gan,
    provenance: dict[str, Any],
    *,
    example: tuple[Tensor, ...] | None = None,
    onnx: bool = True,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Write a student to `folder` (replacing what is there), whole or not at all; every file is opened again and compared.

    In it: `gan.json`, `generator/` and `discriminator/` (where there is one) for gendistill, `generator.pt2` (torch.export,
    float32, any batch size), `generator.onnx` (the same; needs the extra `onnx`), and README.md, a model card. Where the
    network cannot be traced, its programs are left out and a sentence in the log names the operation.

    Args:
        provenance: what the model card tells, one row a key: teacher, method, sizes, data, seeds, figures, licence.
        example: what the network is called with, see `Generator.example`, which is taken where none is given.
        dtype: of the weights in `generator/` and `discriminator/`; the programs are of the weights as rounded.

    Returns:
        Sentences about programs that could not be written, which the log has too.

    Raises:
        ValueError: what was written does not generate the same.
    """
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        save_gan(temporary, gan, dtype)
        network = _to_trace(gan.generator.network, dtype)
        inputs = tuple(each.cpu() for each in (example or gan.generator.example(2)))
        # torch takes a batch of one for a constant
        inputs = tuple(each.expand(2, *each.shape[1:]).clone() if len(each) == 1 else each for each in inputs)
        _compare(temporary, open_gan(temporary).generator.network, network, inputs)
        sentences = _write_programs(temporary, network, inputs, gan.generator.spec.kind, onnx)
        card = gan_card(gan, provenance, program=(temporary / PROGRAM).is_file(), onnx=(temporary / ONNX).is_file())
        (temporary / "README.md").write_text(card)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for sentence in sentences:
        logger.warning("%s: %s", folder, sentence)
    return sentences


def _to_trace(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with the weights that are on the disk, and norms of weights (spectral, ...) computed once and for all."""
    network = duplicate(network).cpu().float().eval().requires_grad_(False)
    round_weights(network, dtype)
    fold(network)
    return _GeneratorModule(network).eval()


def _write_programs(folder: Path, network: nn.Module, inputs: tuple[Tensor, ...], kind: str, onnx: bool) -> list[str]:
    try:
        program = traced(network, inputs)
        _forget_paths(program)
        torch.export.save(program, folder / PROGRAM)
        _compare(folder / PROGRAM, torch.export.load(folder / PROGRAM).module(), network, inputs)
    except Exception as error:  # torch.export raises whatever a network makes it stumble over
        (folder / PROGRAM).unlink(missing_ok=True)
        left_out = f"{PROGRAM} and {ONNX} are" if onnx else f"{PROGRAM} is"
        return [f"{left_out} left out, torch.export cannot trace {_operation(error)}"]
    if not onnx:
        return []
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        return [f"{ONNX} is left out, it needs {' and '.join(missing)}: {install_line('gan')}"]
    try:
        names = [kind, "labels"][: len(inputs)]
        write_onnx(folder / ONNX, program, inputs, names, ["images"], external_data=False)
        if importlib.util.find_spec("onnxruntime") is not None:
            _compare(folder / ONNX, open_onnx(folder / ONNX), network, inputs)
    except Exception as error:  # of an operation that ONNX does not have
        (folder / ONNX).unlink(missing_ok=True)
        return [f"{ONNX} is left out, the exporter cannot translate it: {in_a_line(error)}"]
    return []


def _forget_paths(program: torch.export.ExportedProgram) -> None:
    """Leave out the paths of the machine that a program was made on."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def open_onnx(path: Path) -> Any:
    """An ONNX file as a network on the CPU; needs onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def network(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (each.numpy() for each in inputs), strict=True)))[0])

    return network


def _compare(what: Path, written: Any, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """At the batch size that it was traced at, at one and at three.

    Raises:
        ValueError: an image is not the same.
    """
    for count in (len(inputs[0]), 1, 3):
        batch = tuple(torch.cat([each, each])[:count] for each in inputs)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of networks that sample noise within
            of = image_in(written(*batch))
            torch.manual_seed(0)
            at = network(*batch)
        worst = (of - at).abs().max().item() if of.shape == at.shape else float("inf")
        if not worst <= TOLERANCE * max(1.0, at.abs().max().item()):
            raise ValueError(f"{what.name} does not generate what the network generates: a batch of {count} is {worst:.2g} off")


def _operation(error: Exception) -> str:
    """What it was, and where in the network: the last line that is not torch's own."""
    if "specialized it to be a constant" in str(error):
        return "the network, whose code fixes the batch size (len(x) does, x.shape[0] does not)"
    torch_folder = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torch_folder, "<")) and not frame.filename.endswith(OWN)
    ]
    where = f"`{frames[-1].line}` ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else "the network"
    return f"{where}: {in_a_line(error)}"
