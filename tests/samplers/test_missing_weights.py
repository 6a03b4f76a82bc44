"""Weights that are in no file are named; those that a library renames, ties or makes by itself are not missing."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from original_checkpoint import save_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_add_ons import save_control
from tiny_pipeline import TINY

from gendistill.samplers import FewStepSampler
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.missing_weights import MissingWeightsError
from gendistill.sampling.load_add_ons import DoesNotLoadError, open_control
from gendistill.sampling.task_inputs import TaskFiles


def copy_of(folder, place):
    """A pipeline's folder, to be changed."""
    DiffusionPipeline.from_pretrained(str(folder)).save_pretrained(place / "copy")
    return place / "copy"


def networks(pipeline):
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TINY)
def test_every_family_opens_with_the_weights_that_diffusers_opens(family_folder, family, dtype):
    ours = networks(open_pipeline(family_folder(family), dtype=dtype))
    theirs = networks(DiffusionPipeline.from_pretrained(str(family_folder(family)), torch_dtype=dtype))
    assert ours.keys() == theirs.keys()
    for name, part in theirs.items():
        state = ours[name].state_dict()
        assert all(torch.equal(of, state[key]) and of.dtype == state[key].dtype for key, of in part.state_dict().items())
        assert not ours[name].training


def test_names_of_an_older_transformers_and_buffers_that_it_saved_are_not_missing(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder, tmp_path)
    file = folder / "text_encoder" / "model.safetensors"
    older = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    older["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    save_file(older, file, metadata={"format": "pt"})
    opened, expected = (open_pipeline(of).text_encoder.state_dict() for of in (folder, tiny_folder))
    assert all(torch.equal(tensor, opened[name]) for name, tensor in expected.items())


def test_a_file_in_shards_is_read_as_one_and_a_shard_without_its_weights_is_not(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder, tmp_path)
    opened = open_pipeline(tiny_folder)
    for part in ("unet", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
        getattr(opened, part).save_pretrained(folder / part, max_shard_size="40KB")
        assert len(list((folder / part).glob("*.safetensors"))) > 1
    assert torch.equal(open_pipeline(folder).unet.conv_in.weight, opened.unet.conv_in.weight)
    index = json.loads((folder / "text_encoder" / "model.safetensors.index.json").read_text())
    name, shard = next(iter(index["weight_map"].items()))
    tensors = load_file(folder / "text_encoder" / shard)
    del tensors[name]
    save_file(tensors, folder / "text_encoder" / shard, metadata={"format": "pt"})
    with pytest.raises(MissingWeightsError, match="lacks 1 of the weights of its text_encoder"):
        open_pipeline(folder)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("time_embed.2.weight", r"lacks 1 of the weights of its unet \(time_embedding.linear_2.weight\)"),
        ("decoder.conv_in.bias", r"lacks 1 of the weights of its vae \(decoder.conv_in.bias\)"),
        ("layers.0.mlp.fc1", r"lacks 2 of the weights of its text_encoder \((text_model.)?encoder.layers.0.mlp.fc1.bias, "),
    ],
)
def test_a_checkpoint_without_some_weights_is_refused(tiny_folder, tmp_path, words, sentence):
    save_checkpoint(open_pipeline(tiny_folder), tmp_path / "whole.safetensors")
    whole = load_file(tmp_path / "whole.safetensors")
    save_file({name: of for name, of in whole.items() if words not in name}, tmp_path / "part.safetensors")
    with pytest.raises(MissingWeightsError, match=sentence):
        open_pipeline(tmp_path / "part.safetensors", config=str(tiny_folder))


def test_a_controlnet_without_some_weights_is_refused(tiny_folder, tmp_path):
    sampler = FewStepSampler(open_pipeline(tiny_folder))
    control = save_control(sampler.pipeline.unet, tmp_path / "control")
    file = control / "diffusion_pytorch_model.safetensors"
    save_file({name: of for name, of in load_file(file).items() if "conv_in" not in name}, file)
    Image.new("RGB", sampler.size).save(tmp_path / "edges.png")
    missing = r"lacks 4 of the weights of its controlnet \(controlnet_cond_embedding.conv_in.bias, "
    with pytest.raises(MissingWeightsError, match=missing):
        TaskFiles(control=(str(control), tmp_path / "edges.png")).read(sampler, 1)
    with pytest.raises(DoesNotLoadError, match=missing):
        open_control(sampler.pipeline, control)
