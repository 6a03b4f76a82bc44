"""A student for ONNX Runtime and OpenVINO: each of its networks as a program, in folders named as those of `optimum`.

`text_encoder/`, `unet/`, `vae_decoder/`, `vae_encoder/` hold `model.onnx` or `openvino_model.xml`, beside the tokenizer, the
scheduler and the configs of the pipeline. The programs take any batch, and pictures of the size that the model draws by itself.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from gendistill.runtime.exporter_logs import silent_exporters
from gendistill.samplers import FewStepSampler

NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
FILES = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
FOLDERS = {"vae": ("vae_decoder", "vae_encoder")}  # of components that are called otherwise
Run = Callable[..., list[np.ndarray]]


@dataclass(frozen=True)
class ExportedPart:
    """A network as a program: its folder, what it is called with, by name, and the names of what it gives."""

    folder: str
    network: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def require_runtime(kind: str) -> None:
    """Raise ValueError where a package is missing that writes or opens `kind`."""
    missing = [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"--format {kind}: needs {', '.join(missing)}; pip install 'gendistill[{kind}]'")


def write_programs(sampler: FewStepSampler, pipeline: Any, out: Path, kind: str) -> None:
    """The programs of a pipeline of float32 networks, for `kind`, and its configs.

    Raises:
        ValueError: a package is missing, or the model draws from no texts.
    """
    require_runtime(kind)
    if not sampler.texts:
        raise ValueError(f"--format {kind}: takes a text-to-image model; this is a {sampler.kind}")
    out.mkdir(parents=True)
    for part in parts_of(sampler, pipeline):
        folder = out / part.folder
        folder.mkdir()
        _write_onnx(part, folder / FILES["onnx"])
        if kind == "openvino":
            import openvino

            model = _openvino().read_model(str(folder / FILES["onnx"]))
            openvino.save_model(model, folder / FILES[kind], compress_to_fp16=False)
            del model  # it holds the files open
            for file in folder.glob("model.onnx*"):
                file.unlink()
    for name, of in pipeline.components.items():
        if name.startswith(("tokenizer", "scheduler")) and of is not None:
            of.save_pretrained(out / name)
    for component in (sampler.family.network_part, "vae", *sampler.family.encoders(pipeline)):
        config = getattr(pipeline, component).config
        stored = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        told = {key: value for key, value in stored.items() if not key.startswith("_name_or_path")}
        for name in FOLDERS.get(component, (component,)):
            (out / name / "config.json").write_text(json.dumps(told, indent=2, default=str) + "\n")
    pipeline.save_config(out)
    if sampler.spec is not None:
        replace(sampler.spec, lora=False).save(out)


def open_programs(sampler: FewStepSampler, out: Path, kind: str) -> FewStepSampler:
    """The sampler's pipeline with its networks run by ONNX Runtime or OpenVINO."""
    pipeline = copy.copy(sampler.pipeline)
    for part in parts_of(sampler, sampler.pipeline):
        run = _open(out / part.folder / FILES[kind], kind, tuple(part.inputs))
        component = next((of for of, folders in FOLDERS.items() if part.folder in folders), part.folder)
        setattr(pipeline, component, _running(getattr(pipeline, component), part.folder, run))
    return FewStepSampler(pipeline, sampler.spec)


def parts_of(sampler: FewStepSampler, pipeline: Any) -> Iterator[ExportedPart]:
    """The networks that a picture needs, or one that begins at another, on the CPU, with an example of what each is given."""
    family, network = sampler.family, sampler.family.network(pipeline)
    for name, text in family.encoders(pipeline).items():
        tokens = torch.zeros(2, text.config.max_position_embeddings, dtype=torch.long)
        yield ExportedPart(name, _Texts(text), {"input_ids": tokens}, ("last_hidden_state", "pooled", "before_last"))
    height, width = (edge // pipeline.vae_scale_factor for edge in sampler.size)
    like = family.example_inputs(network.config, 2, (height, width), torch.float32)
    added = like.pop("added_cond_kwargs", {})
    length = next(iter(family.encode(pipeline, [""]).values())).shape[1]
    example = {name: torch.rand(of.shape) for name, of in {**like, **added}.items()}
    example["encoder_hidden_states"] = torch.rand(2, length, example["encoder_hidden_states"].shape[2])
    yield ExportedPart(family.network_part, _Denoises(network, tuple(example)), example, ("out_sample",))
    latents = torch.rand(2, pipeline.vae.config.latent_channels, height, width)
    yield ExportedPart("vae_decoder", _Decodes(pipeline.vae), {"latent_sample": latents}, ("sample",))
    pictures = torch.rand(2, pipeline.vae.config.in_channels, *sampler.size)
    yield ExportedPart("vae_encoder", _Encodes(pipeline.vae), {"sample": pictures}, ("latent_parameters",))


class _Texts(nn.Module):
    """The last states, the pooled embedding, and the states before the last layer, which SDXL is conditioned on."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        made = self.network(*given, output_hidden_states=True)
        return made.last_hidden_state, made[0] if hasattr(made, "text_embeds") else made.pooler_output, made.hidden_states[-2]


class _Denoises(nn.Module):
    def __init__(self, network: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *given: Tensor) -> Tensor:
        named = dict(zip(self.names, given, strict=True))
        added = {name: named.pop(name) for name in ("text_embeds", "time_ids") if name in named}
        made: Tensor = self.network(**named, added_cond_kwargs=added or None, return_dict=False)[0]
        return made


class _Decodes(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *given: Tensor) -> Tensor:
        made: Tensor = self.vae.decode(*given, return_dict=False)[0]
        return made


class _Encodes(nn.Module):
    """Mean and log variance of the latents, one after the other."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, *given: Tensor) -> Tensor:
        made: Tensor = self.vae.encode(*given, return_dict=False)[0].parameters
        return made


def _write_onnx(part: ExportedPart, file: Path) -> None:
    batch = getattr(torch.export.Dim, "DYNAMIC", None) or torch.export.Dim("batch")
    with torch.no_grad(), silent_exporters():
        program = torch.export.export(
            part.network.eval(), tuple(part.inputs.values()), dynamic_shapes=(tuple({0: batch} for _ in part.inputs),)
        )
        torch.onnx.export(
            program,
            tuple(part.inputs.values()),
            str(file),
            dynamo=True,
            external_data=True,
            verbose=False,
            input_names=list(part.inputs),
            output_names=list(part.outputs),
        )


def _open(file: Path, kind: str, names: tuple[str, ...]) -> Run:
    """What runs a program: called with tensors by name."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda *given: session.run(None, dict(zip(names, map(_array, given), strict=True)))
    compiled = _openvino().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *given: [of.copy() for of in compiled(dict(zip(names, map(_array, given), strict=True))).to_tuple()]


@cache
def _openvino() -> Any:
    """OpenVINO's runtime: one, and for as long as the process lives.

    Each runtime gives the thread a stack for signals and, when it goes, the one that it found: where they do not go in the
    reverse order of how they came, that stack is gone too, and the next signal ends the process.
    """
    import openvino

    return openvino.Core()


def _running(network: Any, folder: str, run: Run) -> Any:
    """The network of a pipeline, what the program in a folder does done by it."""

    def denoise(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **given: Any) -> tuple[Tensor]:
        added = given.get("added_cond_kwargs") or {}
        more = (given.get("timestep_cond"), added.get("text_embeds"), added.get("time_ids"))
        times = timestep.float().expand(len(sample))
        return (torch.from_numpy(run(sample, times, encoder_hidden_states, *(of.float() for of in more if of is not None))[0]),)

    def encode(input_ids: Tensor, *args: Any, **given: Any) -> Any:
        last, pooled, before = map(torch.from_numpy, run(input_ids))
        if type(network).__name__.endswith("WithProjection"):
            return CLIPTextModelOutput(text_embeds=pooled, last_hidden_state=last, hidden_states=(before, last))
        return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled, hidden_states=(before, last))

    def decode(latents: Tensor, *args: Any, **given: Any) -> tuple[Tensor]:
        return (torch.from_numpy(run(latents)[0]),)

    def to_latents(pictures: Tensor, *args: Any, **given: Any) -> AutoencoderKLOutput:
        return AutoencoderKLOutput(DiagonalGaussianDistribution(torch.from_numpy(run(pictures)[0])))

    running = copy.copy(network)
    if folder == "vae_decoder":
        running.decode = decode
    elif folder == "vae_encoder":
        running.encode = to_latents
    else:
        running.forward = encode if folder.startswith("text_encoder") else denoise
    return running


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
