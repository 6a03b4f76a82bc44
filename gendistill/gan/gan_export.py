"""Export a GAN student: a folder for gendistill, a program for plain PyTorch (torch.export), and ONNX."""

from __future__ import annotations

import importlib.util
import logging
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gendistill.gan.gan_card import gan_card
from gendistill.gan.gan_folder import Gan, open_gan, round_weights, save_gan
from gendistill.gan.generator import image_in
from gendistill.networks.classes import error_summary
from gendistill.networks.pruning.pruned_architecture import duplicate, fold
from gendistill.runtime.exporter import traced, write_onnx
from gendistill.runtime.extras import install_line
from gendistill.runtime.files import as_os_error, updated_folder

logger = logging.getLogger(__name__)

PROGRAM, ONNX = "generator.pt2", "generator.onnx"
OWN_FILES = tuple(f"/gendistill/{file}.py" for file in ("gan/gan_export", "gan/generator", "runtime/exporter"))
FIXED_SIZE = "pixels alone"  # in the message of programs for images of one size
TOLERANCE = 1e-4  # maximum error of a program's images, in the network's output range


class _GeneratorModule(nn.Module):
    """A network whose output is the image tensor, without the sequence or object that contains it."""

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
    """Write a student to `folder` atomically (replacing a previous one); every file is opened again and compared.

    The folder has `gan.json`, `generator/` and `discriminator/` (if the GAN has one) for gendistill, `generator.pt2`
    (torch.export, float32, any batch size, and any height and width of input images), `generator.onnx` (the same; needs the
    extra `onnx`), and a model card, README.md. A network that computes images of one size alone has programs for this size,
    and a message with the reason; if it cannot be traced, the programs are omitted and a message names the operation.

    Args:
        provenance: rows of the model card by key: teacher, method, sizes, data, seeds, figures, licence.
        example: arguments of the network to trace it with; None is `Generator.example`.
        dtype: of the weights in `generator/` and `discriminator/`; the programs have the weights rounded to it.

    Returns:
        A message for each program that could not be written; they are also logged.

    Raises:
        ValueError: the images of a written file differ from those of the network.
    """
    with updated_folder(folder, outdated=(PROGRAM, ONNX)) as temporary:
        save_gan(temporary, gan, dtype)
        network = _to_trace(gan.generator.network, dtype)
        inputs = tuple(tensor.cpu() for tensor in (example or gan.generator.example(2)))
        # torch.export specializes a batch of one to a constant
        inputs = tuple(tensor.expand(2, *tensor.shape[1:]).clone() if len(tensor) == 1 else tensor for tensor in inputs)
        _compare(temporary, open_gan(temporary).generator.network, network, [_batch(inputs, n) for n in (len(inputs[0]), 1, 3)])
        kind = gan.generator.spec.kind
        messages = _write_programs(temporary, network, inputs, kind, onnx)
        program, has_onnx = (temporary / PROGRAM).is_file(), (temporary / ONNX).is_file()
        any_size = program and kind == "image" and not any(FIXED_SIZE in message for message in messages)
        card = gan_card(gan, provenance, program=program, onnx=has_onnx, any_size=any_size)
        (temporary / "README.md").write_text(card)
    for message in messages:
        logger.warning("%s: %s", folder, message)
    return messages


def _to_trace(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy with the saved, rounded weights, and with parametrizations (spectral norm, ...) replaced by plain weights."""
    network = duplicate(network).cpu().float().eval().requires_grad_(False)
    round_weights(network, dtype)
    fold(network)
    return _GeneratorModule(network).eval()


def _write_programs(folder: Path, network: nn.Module, inputs: tuple[Tensor, ...], kind: str, onnx: bool) -> list[str]:
    """Write the programs, for images of any height and width where the network computes these; return messages."""
    batches = [_batch(inputs, count) for count in (len(inputs[0]), 1, 3)]
    if kind == "noise" or inputs[0].ndim != 4:
        return _write_program(folder, network, inputs, batches, kind, onnx)
    height, width = inputs[0].shape[2:]
    sized = [_batch((inputs[0].repeat(1, 1, *times), *inputs[1:]), 1) for times in ((2, 1), (1, 3))]
    try:
        with torch.no_grad():
            for batch in sized:
                network(*batch)
    except Exception as error:  # a network for one size raises any error at others
        reason = f"the network cannot compute {_operation(error)}"
    else:
        reasons = _write_program(folder, network, inputs, [*batches, *sized], kind, onnx)
        if not reasons or "it needs" in reasons[0]:
            return reasons
        reason = reasons[0].partition(", ")[2]  # without the names of the files
    messages = _write_program(folder, network, inputs, batches, kind, onnx)
    written = " and ".join(name for name in (PROGRAM, ONNX) if (folder / name).is_file())
    return [*messages, *([f"{written}: for images of {height}x{width} {FIXED_SIZE}, since {reason}"] if written else [])]


def _write_program(
    folder: Path, network: nn.Module, inputs: tuple[Tensor, ...], batches: list[tuple[Tensor, ...]], kind: str, onnx: bool
) -> list[str]:
    """Write programs that are compared with the network on `batches`: of any size if these have several sizes."""
    try:
        program = traced(network, inputs, sizes=any(batch[0].shape[1:] != inputs[0].shape[1:] for batch in batches))
        _remove_paths(program)
        torch.export.save(program, folder / PROGRAM)
        _compare(folder / PROGRAM, torch.export.load(folder / PROGRAM).module(), network, batches)
    except Exception as error:  # torch.export raises many types
        if of_disk := as_os_error(error, folder / PROGRAM):
            raise of_disk from error
        (folder / PROGRAM).unlink(missing_ok=True)
        files = f"{PROGRAM} and {ONNX} are" if onnx else f"{PROGRAM} is"
        return [f"{files} not written, torch.export cannot trace {_operation(error)}"]
    if not onnx:
        return []
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        return [f"{ONNX} is not written, it needs {' and '.join(missing)}: {install_line('gan')}"]
    try:
        names = [kind, "labels"][: len(inputs)]
        write_onnx(folder / ONNX, program, inputs, names, ["images"], external_data=False)
        if importlib.util.find_spec("onnxruntime") is not None:
            _compare(folder / ONNX, open_onnx(folder / ONNX), network, batches)
    except Exception as error:  # an operation without an ONNX equivalent
        if of_disk := as_os_error(error, folder / ONNX):
            raise of_disk from error
        (folder / ONNX).unlink(missing_ok=True)
        return [f"{ONNX} is not written, the exporter cannot convert the program: {error_summary(error)}"]
    return []


def _batch(inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The first `count` of the inputs, up to twice as many as there are."""
    return tuple(torch.cat([tensor, tensor])[:count] for tensor in inputs)


def _remove_paths(program: torch.export.ExportedProgram) -> None:
    """Remove stack traces, which contain file paths of this machine."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def open_onnx(path: Path) -> Any:
    """An ONNX file as a callable on the CPU; needs onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def network(*inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True)))[0])

    return network


def _compare(path: Path, written: Any, network: nn.Module, batches: list[tuple[Tensor, ...]]) -> None:
    """Compare the images of the same inputs.

    Raises:
        ValueError: the images differ.
    """
    for batch in batches:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for networks that sample noise
            images = image_in(written(*batch))
            torch.manual_seed(0)
            expected = network(*batch)
        error = (images - expected).abs().max().item() if images.shape == expected.shape else float("inf")
        if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
            shape = "x".join(map(str, batch[0].shape))
            raise ValueError(f"{path.name}: the images differ from those of the network by {error:.2g} for inputs of {shape}")


def _operation(error: Exception) -> str:
    """The operation that cannot be traced and its position: the last stack frame outside of torch."""
    if "specialized it to be a constant" in str(error):
        if "size()[0]" in str(error):
            return "the network, as its code fixes the batch size (len(x) does, x.shape[0] does not)"
        return "the network, as its code fixes the height or width (range(x.shape[2]) does)"
    torch_folder = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((torch_folder, "<")) and not frame.filename.endswith(OWN_FILES)
    ]
    where = f"`{frames[-1].line}` ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else "the network"
    return f"{where}: {error_summary(error)}"
