"""A student for ONNX Runtime and OpenVINO: each of its networks as a program, in folders named as those of `optimum`.

`text_encoder/`, `unet/`, `vae_decoder/`, `vae_encoder/` hold `model.onnx` or `openvino_model.xml`, beside the tokenizer, the
scheduler and the configs of the pipeline. The programs take any batch, and images of the size that the model samples by itself.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from gendistill.runtime.exporter import traced, write_onnx
from gendistill.runtime.extras import install_line
from gendistill.samplers import FewStepSampler

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
STATES = ("last_hidden_state", "pooled", "before_last")
Run = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class ExportedPart:
    """A network as a program, and what the program stands for.

    Attributes:
        folder: of the program; component: of the pipeline; method: that the program computes: `forward`, `encode`, `decode`.
        call: (network, *inputs) -> outputs, what is exported.
        inputs: what it is called with, by name; outputs: the names of what it gives.
        stand_in: (run, *args, **given), called by the pipeline as the method is.
    """

    folder: str
    component: str
    method: str
    call: Callable[..., Any]
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    stand_in: Callable[..., Any]


def require_runtime(kind: str) -> None:
    """Raise ValueError where a package is missing that writes or opens `kind`."""
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format {kind}: needs {', '.join(missing)}; {install_line(kind)}")


def write_programs(sampler: FewStepSampler, pipeline: Any, out: Path, kind: str) -> None:
    """The programs of a pipeline of float32 networks, for `kind`, and its configs.

    Raises:
        ValueError: the model samples from no texts.
    """
    if not sampler.texts:
        raise ValueError(f"--format {kind}: expects a text-to-image model; this is a {sampler.kind}")
    out.mkdir(parents=True)
    for part in parts_of(sampler, pipeline):
        folder = out / part.folder
        folder.mkdir()
        network = _Called(getattr(pipeline, part.component), part.call).eval()
        inputs = tuple(part.inputs.values())
        with torch.no_grad():
            program = traced(network, inputs)
            write_onnx(folder / FILES["onnx"], program, inputs, list(part.inputs), list(part.outputs), external_data=True)
        if kind == "openvino":
            import openvino

            model = _openvino().read_model(str(folder / FILES["onnx"]))
            openvino.save_model(model, folder / FILES[kind], compress_to_fp16=False)
            del model  # it holds the files open
            for file in folder.glob("model.onnx*"):
                file.unlink()
        config = getattr(pipeline, part.component).config
        stored = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        told = {key: value for key, value in stored.items() if not key.startswith("_name_or_path")}
        (folder / "config.json").write_text(json.dumps(told, indent=2, default=str) + "\n")
    for name, of in pipeline.components.items():
        if name.startswith(("tokenizer", "scheduler")) and of is not None:
            of.save_pretrained(out / name)
    pipeline.save_config(out)
    if sampler.spec is not None:
        replace(sampler.spec, lora=False).save(out)


def open_programs(sampler: FewStepSampler, out: Path, kind: str) -> FewStepSampler:
    """The sampler's pipeline with its networks run by ONNX Runtime or OpenVINO."""
    pipeline = copy.copy(sampler.pipeline)
    for part in parts_of(sampler, sampler.pipeline):
        run = _open(out / part.folder / FILES[kind], kind, tuple(part.inputs))
        running = copy.copy(getattr(pipeline, part.component))
        setattr(running, part.method, partial(part.stand_in, run))
        setattr(pipeline, part.component, running)
    return FewStepSampler(pipeline, sampler.spec)


def parts_of(sampler: FewStepSampler, pipeline: Any) -> Iterator[ExportedPart]:
    """The networks that an image needs, or one that begins at another, on the CPU, with an example of what each is given."""
    family, network = sampler.family, sampler.family.network(pipeline)
    for name, text in family.encoders(pipeline).items():
        tokens = torch.zeros(2, text.config.max_position_embeddings, dtype=torch.long)
        made = CLIPTextModelOutput if type(text).__name__.endswith("WithProjection") else BaseModelOutputWithPooling
        stand_in = partial(_run_texts, made)
        yield ExportedPart(name, name, "forward", _texts, {"input_ids": tokens}, STATES, stand_in)
    height, width = (edge // pipeline.vae_scale_factor for edge in sampler.size)
    like = family.example_inputs(network.config, 2, (height, width), torch.float32)
    added = like.pop("added_cond_kwargs", {})
    length = next(iter(family.encode(pipeline, [""]).values())).shape[1]
    example = {name: torch.rand(of.shape) for name, of in {**like, **added}.items()}
    example["encoder_hidden_states"] = torch.rand(2, length, example["encoder_hidden_states"].shape[2])
    part, denoise = family.network_part, partial(_denoise, tuple(example))
    yield ExportedPart(part, part, "forward", denoise, example, ("out_sample",), _run_denoise)
    latents = torch.rand(2, pipeline.vae.config.latent_channels, height, width)
    yield ExportedPart("vae_decoder", "vae", "decode", _decode, {"latent_sample": latents}, ("sample",), _run_decode)
    images = torch.rand(2, pipeline.vae.config.in_channels, *sampler.size)
    yield ExportedPart("vae_encoder", "vae", "encode", _encode, {"sample": images}, ("latent_parameters",), _run_encode)


class _Called(nn.Module):
    """A network in the way that its program calls it."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *given: Tensor) -> Any:
        return self.call(self.network, *given)


def _texts(network: Any, *given: Tensor) -> tuple[Tensor, ...]:
    """The last states, the pooled embedding, and the states before the last layer, which SDXL is conditioned on."""
    made = network(*given, output_hidden_states=True)
    return made.last_hidden_state, made[0] if hasattr(made, "text_embeds") else made.pooler_output, made.hidden_states[-2]


def _run_texts(made: Any, run: Run, input_ids: Tensor, *args: Any, **given: Any) -> Any:
    last, pooled, before = run(input_ids)
    name = "text_embeds" if made is CLIPTextModelOutput else "pooler_output"
    return made(last_hidden_state=last, hidden_states=(before, last), **{name: pooled})


def _denoise(names: tuple[str, ...], network: Any, *given: Tensor) -> Tensor:
    named = dict(zip(names, given, strict=True))
    added = {name: named.pop(name) for name in ("text_embeds", "time_ids") if name in named}
    made: Tensor = network(**named, added_cond_kwargs=added or None, return_dict=False)[0]
    return made


def _run_denoise(run: Run, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **given: Any) -> tuple[Tensor]:
    added = given.get("added_cond_kwargs") or {}
    more = (given.get("timestep_cond"), added.get("text_embeds"), added.get("time_ids"))
    times = timestep.float().expand(len(sample))
    return (run(sample, times, encoder_hidden_states, *(of.float() for of in more if of is not None))[0],)


def _decode(vae: Any, *given: Tensor) -> Tensor:
    made: Tensor = vae.decode(*given, return_dict=False)[0]
    return made


def _run_decode(run: Run, latents: Tensor, *args: Any, **given: Any) -> tuple[Tensor]:
    return (run(latents)[0],)


def _encode(vae: Any, *given: Tensor) -> Tensor:
    """Mean and log variance of the latents, one after the other."""
    made: Tensor = vae.encode(*given, return_dict=False)[0].parameters
    return made


def _run_encode(run: Run, images: Tensor, *args: Any, **given: Any) -> AutoencoderKLOutput:
    return AutoencoderKLOutput(DiagonalGaussianDistribution(run(images)[0]))


def _open(file: Path, kind: str, names: tuple[str, ...]) -> Run:
    """What runs a program: called with its inputs in their order."""

    def named(given: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, given, strict=True)}

    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda *given: [torch.from_numpy(of) for of in session.run(None, named(given))]
    compiled = _openvino().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *given: [torch.from_numpy(of.copy()) for of in compiled(named(given)).to_tuple()]


@cache
def _openvino() -> Any:
    """OpenVINO's runtime: one, and for as long as the process lives.

    Each runtime gives the thread a stack for signals and, when it goes, the one that it found: where they do not go in the
    reverse order of how they came, that stack is gone too, and the next signal ends the process.
    """
    import openvino

    return openvino.Core()
