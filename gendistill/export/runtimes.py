"""Export a student to ONNX Runtime and OpenVINO: one program per network, in the folder layout of `optimum`.

`text_encoder/`, `unet/`, `vae_decoder/`, `vae_encoder/` contain `model.onnx` or `openvino_model.xml`; the folder also has the
tokenizer, the scheduler and the configs of the pipeline. The programs support any batch size and the default image size.
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
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from gendistill.export.student_folder import fit_transformers_4_and_5
from gendistill.runtime.exporter import traced, write_onnx
from gendistill.runtime.extras import install_line
from gendistill.samplers import FewStepSampler

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
STATES = ("last_hidden_state", "pooled", "before_last")
Run = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class ExportedPart:
    """A network that is exported as a program.

    Attributes:
        folder: of the program.
        component: the name of the network in the pipeline.
        method: the method that the program computes: `forward`, `encode` or `decode`.
        call: (network, *inputs) -> outputs, the exported function.
        inputs: example inputs by name.
        outputs: the names of the outputs.
        replacement: (run, *args, **kwargs), replaces the method in the pipeline and runs the program.
    """

    folder: str
    component: str
    method: str
    call: Callable[..., Any]
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    replacement: Callable[..., Any]


def require_runtime(kind: str) -> None:
    """Raise ValueError if a package is missing that `kind` needs."""
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format {kind}: needs {', '.join(missing)}; {install_line(kind)}")


def write_programs(sampler: FewStepSampler, pipeline: Any, out: Path, kind: str) -> None:
    """Write the programs and the configs of a pipeline with float32 networks.

    Raises:
        ValueError: the model is not text-to-image, or its network is no U-Net.
    """
    if not sampler.texts or sampler.family.network_part != "unet":
        raise ValueError(f"--format {kind}: expects a text-to-image model with a U-Net; this is a {sampler.kind}")
    out.mkdir(parents=True)
    for part in parts_of(sampler, pipeline):
        folder = out / part.folder
        folder.mkdir()
        network = _Exportable(getattr(pipeline, part.component), part.call).eval()
        inputs = tuple(part.inputs.values())
        with torch.no_grad():
            program = traced(network, inputs)
            write_onnx(folder / FILES["onnx"], program, inputs, list(part.inputs), list(part.outputs), external_data=True)
        if kind == "openvino":
            import openvino

            model = _openvino().read_model(str(folder / FILES["onnx"]))
            openvino.save_model(model, folder / FILES[kind], compress_to_fp16=False)
            del model  # closes the files
            for file in folder.glob("model.onnx*"):
                file.unlink()
        config = getattr(pipeline, part.component).config
        stored = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        public = {key: value for key, value in stored.items() if not key.startswith("_name_or_path")}
        (folder / "config.json").write_text(json.dumps(public, indent=2, default=str) + "\n")
    for name, component in pipeline.components.items():
        if name.startswith(("tokenizer", "scheduler")) and component is not None:
            component.save_pretrained(out / name)
    fit_transformers_4_and_5(out)
    pipeline.save_config(out)
    if sampler.spec is not None:
        replace(sampler.spec, lora=False).save(out)


def open_programs(sampler: FewStepSampler, out: Path, kind: str) -> FewStepSampler:
    """A sampler whose networks run in ONNX Runtime or OpenVINO."""
    pipeline = copy.copy(sampler.pipeline)
    for part in parts_of(sampler, sampler.pipeline):
        run = _open(out / part.folder / FILES[kind], kind, tuple(part.inputs))
        component = copy.copy(getattr(pipeline, part.component))
        setattr(component, part.method, partial(part.replacement, run))
        setattr(pipeline, part.component, component)
    return FewStepSampler(pipeline, sampler.spec)


def parts_of(sampler: FewStepSampler, pipeline: Any) -> Iterator[ExportedPart]:
    """The networks of text-to-image and image-to-image sampling, with example inputs on the CPU."""
    family, network = sampler.family, sampler.family.network(pipeline)
    for name, text in family.encoders(pipeline).items():
        tokens = torch.zeros(2, text.config.max_position_embeddings, dtype=torch.long)
        output = CLIPTextModelOutput if type(text).__name__.endswith("WithProjection") else BaseModelOutputWithPooling
        yield ExportedPart(name, name, "forward", _texts, {"input_ids": tokens}, STATES, partial(_run_texts, output))
    height, width = (edge // pipeline.vae_scale_factor for edge in sampler.size)
    like = family.example_inputs(network.config, 2, (height, width), torch.float32)
    added = like.pop("added_cond_kwargs", {})
    length = next(iter(family.encode(pipeline, [""]).values())).shape[1]
    example = {name: torch.rand(tensor.shape) for name, tensor in {**like, **added}.items()}
    example["encoder_hidden_states"] = torch.rand(2, length, example["encoder_hidden_states"].shape[2])
    part, denoise = family.network_part, partial(_denoise, tuple(example))
    yield ExportedPart(part, part, "forward", denoise, example, ("out_sample",), _run_denoise)
    latents = torch.rand(2, pipeline.vae.config.latent_channels, height, width)
    yield ExportedPart("vae_decoder", "vae", "decode", _decode, {"latent_sample": latents}, ("sample",), _run_decode)
    images = torch.rand(2, pipeline.vae.config.in_channels, *sampler.size)
    is_tiny = type(pipeline.vae).__name__ == "AutoencoderTiny"
    encoded, run = ("latent_sample", _run_tiny_encode) if is_tiny else ("latent_parameters", _run_encode)
    yield ExportedPart("vae_encoder", "vae", "encode", _encode, {"sample": images}, (encoded,), run)


class _Exportable(nn.Module):
    """A module whose forward is the exported function of a network."""

    def __init__(self, network: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.network, *inputs)


def _texts(network: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The last hidden states, the pooled embedding, and the hidden states before the last layer (the condition of SDXL)."""
    output = network(*inputs, output_hidden_states=True)
    pooled = output[0] if hasattr(output, "text_embeds") else output.pooler_output
    return output.last_hidden_state, pooled, output.hidden_states[-2]


def _run_texts(output: Any, run: Run, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
    last, pooled, before_last = run(input_ids)
    name = "text_embeds" if output is CLIPTextModelOutput else "pooler_output"
    return output(last_hidden_state=last, hidden_states=(before_last, last), **{name: pooled})


def _denoise(names: tuple[str, ...], network: Any, *inputs: Tensor) -> Tensor:
    named = dict(zip(names, inputs, strict=True))
    added = {name: named.pop(name) for name in ("text_embeds", "time_ids") if name in named}
    prediction: Tensor = network(**named, added_cond_kwargs=added or None, return_dict=False)[0]
    return prediction


def _run_denoise(run: Run, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
    added = kwargs.get("added_cond_kwargs") or {}
    optional = (kwargs.get("timestep_cond"), added.get("text_embeds"), added.get("time_ids"))
    conditions = [tensor.float() for tensor in optional if tensor is not None]
    timesteps = timestep.float().expand(len(sample))
    return (run(sample, timesteps, encoder_hidden_states, *conditions)[0],)


def _decode(vae: Any, *inputs: Tensor) -> Tensor:
    images: Tensor = vae.decode(*inputs, return_dict=False)[0]
    return images


def _run_decode(run: Run, latents: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
    return (run(latents)[0],)


def _encode(vae: Any, *inputs: Tensor) -> Tensor:
    """The concatenated mean and log variance of the latents, or the latents of an `AutoencoderTiny`."""
    encoded: Any = vae.encode(*inputs, return_dict=False)[0]
    parameters: Tensor = getattr(encoded, "parameters", encoded)
    return parameters


def _run_encode(run: Run, images: Tensor, *args: Any, **kwargs: Any) -> AutoencoderKLOutput:
    return AutoencoderKLOutput(DiagonalGaussianDistribution(run(images)[0]))


def _run_tiny_encode(run: Run, images: Tensor, *args: Any, **kwargs: Any) -> AutoencoderTinyOutput:
    return AutoencoderTinyOutput(latents=run(images)[0])


def _open(file: Path, kind: str, names: tuple[str, ...]) -> Run:
    """A function that runs a program, with the program's inputs as positional arguments."""

    def named(inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, inputs, strict=True)}

    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda *inputs: [torch.from_numpy(array) for array in session.run(None, named(inputs))]
    compiled = _openvino().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *inputs: [torch.from_numpy(array.copy()) for array in compiled(named(inputs)).to_tuple()]


@cache
def _openvino() -> Any:
    """OpenVINO's runtime, one per process.

    Each runtime installs an alternate signal stack and restores the previous one when destroyed. Runtimes that are not
    destroyed in reverse order of creation leave a freed stack behind, and the next signal terminates the process.
    """
    import openvino

    return openvino.Core()
