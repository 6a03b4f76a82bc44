"""Write student folders, which plain diffusers opens as a pipeline or as a LoRA of the teacher."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE

from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import AVERAGE, AdapterView, Networks
from gendistill.export.kohya import write_kohya_file
from gendistill.export.low_rank import LoraStudent, equal_ranks, merged_network
from gendistill.export.model_card import model_card
from gendistill.runtime.files import updated_folder
from gendistill.samplers import StudentSpec
from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.loras import Matrices

ENCODER_PAIR = ("lora_linear_layer.down", "lora_linear_layer.up")  # diffusers' names of A and B in text encoders
PREFIX = "text_model."  # of the weights of CLIP's text encoder in all published checkpoints


@contextmanager
def student_pipeline(teacher: Teacher, networks: Networks) -> Iterator[Any]:
    """The teacher's pipeline with the EMA of the student as its network; all other components are shared.

    In LoRA mode the adapter of the EMA is active while the context is open.

    A stock pipeline computes in one dtype. If the EMA is in float32 and the teacher in half precision, the pipeline has a copy
    of the EMA in the teacher's dtype.
    """
    network, dtype = networks.average.network, next(teacher.network.parameters()).dtype
    with ExitStack() as stack:
        if isinstance(network, AdapterView):
            stack.enter_context(network.shared.using(network.adapter))
            network = network.base
        elif next(network.parameters()).dtype != dtype:
            network = copy.deepcopy(network).to(dtype)
        pipeline = teacher.family.student_pipeline(teacher.pipeline, {teacher.family.network_part: network})
        pipeline.set_progress_bar_config(disable=True)
        stack.enter_context(networks.average.converting(network))
        yield pipeline


def export_student(
    folder: Path,
    teacher: Teacher,
    networks: Networks,
    spec: StudentSpec,
    scheduler: Any,
    provenance: dict[str, Any],
    dtype: torch.dtype = torch.float16,
    lora: LoraStudent | None = None,
) -> None:
    """Write the student to `folder` atomically, replacing a previous one; files in it that are not of a student are kept.

    Args:
        scheduler: the stock diffusers scheduler for sampling.
        provenance: rows of the model card: teacher, data, seeds, versions, figures.
        dtype: of the saved weights; diffusers opens them in the `torch_dtype` of its caller.
        lora: the adapter of a student that is a LoRA, if it is not the one that was trained; it is also written in kohya's
            format, where the family has one.
    """
    with updated_folder(folder) as temporary:
        temporary.mkdir(parents=True)
        network = networks.average.network
        if lora is not None:
            save_lora(lora.pipeline, lora.adapter, temporary, dtype, encoders=lora.encoders)
            write_kohya_file(lora.pipeline, lora.adapter, temporary, dtype, lora.encoders)
            scheduler.save_pretrained(temporary / "scheduler")
        elif spec.lora:
            with student_pipeline(teacher, networks) as adapted:  # of the teacher, or of the student that is trained further
                save_lora(adapted, AVERAGE, temporary, dtype)
            scheduler.save_pretrained(temporary / "scheduler")
        else:
            network = merged_network(network) if isinstance(network, AdapterView) else network
            parts = {
                name: copy.deepcopy(part).to(dtype) if isinstance(part, torch.nn.Module) else part
                for name, part in {**teacher.pipeline.components, teacher.family.network_part: network}.items()
            }
            pipeline = teacher.family.student_pipeline(teacher.pipeline, {**parts, "scheduler": scheduler})
            pipeline.save_pretrained(temporary, safe_serialization=True)
            fit_transformers_4_and_5(temporary)
        spec.save(temporary)
        (temporary / "README.md").write_text(model_card(spec, provenance, teacher.family, _null_parts(teacher.pipeline)))


def _null_parts(pipeline: Any) -> list[str]:
    """The parts that a pipeline lacks, and that diffusers expects in a call of `from_pretrained`."""
    optional = pipeline._optional_components
    return [name for name, part in pipeline.components.items() if part is None and name not in optional]


def save_lora(
    pipeline: Any,
    adapter: str,
    folder: Path,
    dtype: torch.dtype,
    name: str | None = None,
    encoders: Mapping[str, Matrices] | None = None,
) -> None:
    """Write the adapter of a pipeline's network in the format of diffusers and PEFT, with PEFT's config in the file header.

    Args:
        dtype: of the saved weights.
        name: of the file in `folder`; None is diffusers' default.
        encoders: matrices A and B of the layers of text encoders.
    """
    part, network = family_of(pipeline).network_part, network_of(pipeline)
    # with PEFT's names: diffusers would rename only those of attention layers, and then ignore them when it loads the file
    weights = {key: tensor.to(dtype) for key, tensor in get_peft_model_state_dict(network, adapter_name=adapter).items()}
    layers = {f"{part}_lora_layers": weights, f"{part}_lora_adapter_metadata": _settings(network.peft_config[adapter])}
    for encoder, matrices in equal_ranks(pipeline, encoders or {}).items():
        layers[f"{encoder}_lora_layers"] = {
            f"{path}.{key}.weight": matrix.to(dtype).contiguous()
            for path, pair in matrices.items()
            for key, matrix in zip(ENCODER_PAIR, pair, strict=True)
        }
        rank, targets = len(next(iter(matrices.values()))[0]), [path.removeprefix(PREFIX) for path in matrices]
        settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)  # without it diffusers finds no rank
        layers[f"{encoder}_lora_adapter_metadata"] = _settings(settings)
    pipeline.save_lora_weights(folder, weight_name=name, **layers)


def _settings(config: LoraConfig) -> dict[str, Any]:
    """The settings of an adapter that differ from PEFT's defaults: its earlier versions reject a setting that they lack."""
    defaults = LoraConfig().to_dict()
    needed = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
    return {name: value for name, value in config.to_dict().items() if name in needed or value != defaults.get(name)}


def fit_transformers_4_and_5(folder: Path) -> None:
    """Rewrite the text encoders and tokenizers of a saved pipeline so that transformers 4 and 5 read the same networks.

    - Names: transformers 5 saves the weights of CLIP's text encoder without the prefix `text_model.`. transformers 4 finds none
      of them then, and initialises all at random; transformers 5 reads both names.
    - Vocabulary: transformers 5 saves tokenizer.json alone; CLIP's tokenizer of transformers 4 reads vocab.json and merges.txt.
    - Default dtype: transformers 5 opens text encoders in the dtype of the file, and the UNet would reject their half-precision
      states; diffusers opens all other components in float32.
    """
    for config in folder.glob("text_encoder*/config.json"):
        stored = json.loads(config.read_text())
        config.write_text(json.dumps({**stored, "dtype": "float32"}, indent=2) + "\n")
        if stored.get("architectures") == ["CLIPTextModel"]:
            _add_prefix(config.parent)
    for tokenizer in folder.glob("tokenizer*/tokenizer.json"):
        model = Tokenizer.from_file(str(tokenizer)).model
        if isinstance(model, BPE) and not (tokenizer.parent / "merges.txt").exists():
            model.save(str(tokenizer.parent))


def _add_prefix(folder: Path) -> None:
    """Name the weights in a folder, and in the index of its shards, `text_model.NAME`."""
    for file in folder.glob("*.safetensors"):
        weights = load_file(file)
        save_file({_prefixed(name): tensor for name, tensor in weights.items()}, file, metadata={"format": "pt"})
    for index in folder.glob("*.safetensors.index*.json"):
        stored = json.loads(index.read_text())
        stored["weight_map"] = {_prefixed(name): file for name, file in stored["weight_map"].items()}
        index.write_text(json.dumps(stored, indent=2) + "\n")


def _prefixed(name: str) -> str:
    return f"{PREFIX}{name.removeprefix(PREFIX)}"
