"""Weights that are in no file are named; those that a library renames, ties or makes by itself are not missing."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from original_checkpoint import save_checkpoint
from PIL import Image
from plain_calls import null_parts
from safetensors.torch import load_file, save_file
from tiny_add_ons import load_style_adapter, save_control, save_lora
from tiny_families import TINY

from gendistill.diffusion.teacher import load_teacher
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.samplers.loading import open_pipeline, open_student
from gendistill.samplers.missing_weights import MissingWeightsError, variant_in
from gendistill.samplers.offload.meta_pipeline import meta_pipeline
from gendistill.sampling.load_add_ons import DoesNotLoadError, open_control, with_lora
from gendistill.sampling.task_inputs import TaskFiles


def copy_of(folder, place):
    """A pipeline's folder, to be changed."""
    DiffusionPipeline.from_pretrained(str(folder)).save_pretrained(place / "copy")
    return place / "copy"


def edited(folder, part, change):
    """The folder, with the weights of a part changed by a function of its tensors by name."""
    [file] = (folder / part).glob("*.safetensors")
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def networks(pipeline):
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TINY)
def test_every_family_opens_with_the_weights_that_diffusers_opens(family_folder, family, dtype):
    ours = networks(open_pipeline(family_folder(family), dtype=dtype))
    folder = str(family_folder(family))
    theirs = networks(DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **null_parts(folder)))
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


CHANGES = {
    "another shape": lambda name, tensor: {name: tensor[:-1].clone()},
    "NaN": lambda name, tensor: {name: tensor * torch.nan},
    "infinite": lambda name, tensor: {name: tensor - torch.inf},
    "an unfused LoRA": lambda name, tensor: {name: tensor, name.replace("bias", "lora_A.default.weight"): tensor.clone()},
    "a layer of PEFT": lambda name, tensor: {name.replace("bias", "base_layer.bias"): tensor},
}
SENTENCES = {
    "another shape": "its {part} cannot be opened: .*{name} expected shape|the weights {name} of its {part} have other shapes",
    "NaN": r"its {part} has weights that are not finite \({name}\); expects an undamaged file",
    "infinite": r"its {part} has weights that are not finite \({name}\)",
    "an unfused LoRA": "its {part} has weights of a LoRA that is not fused",
    "a layer of PEFT": "its {part} has weights of a LoRA that is not fused|lacks 1 of the weights of its {part}",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("part", "name"),
    [("unet", "conv_in.bias"), ("vae", "decoder.conv_in.bias"), ("text_encoder", "encoder.layers.0.mlp.fc1.bias")],
)
def test_weights_of_another_network_or_without_values_are_named_with_their_part(tiny_folder, tmp_path, part, name, change):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    folder = edited(
        tmp_path / "copy",
        part,
        lambda weights: {
            new: value
            for old, tensor in weights.items()
            for new, value in (CHANGES[change](old, tensor) if old.endswith(name) else {old: tensor}).items()
        },
    )
    with pytest.raises(ValueError, match=SENTENCES[change].format(part=part, name=f"(text_model.)?{name}")):
        open_pipeline(folder)


def test_weights_that_float16_cannot_hold_ask_for_another_dtype(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    folder = edited(tmp_path / "copy", "vae", lambda weights: {name: tensor * 1e6 for name, tensor in weights.items()})
    with pytest.raises(ValueError, match=r"its vae has weights that are not finite .* expects --dtype bfloat16 or float32"):
        open_pipeline(folder, dtype=torch.float16)
    assert open_pipeline(folder, dtype=torch.bfloat16)


def test_an_ip_adapter_that_was_saved_within_a_network_is_reported(tiny_folder, tmp_path, caplog):
    pipeline = DiffusionPipeline.from_pretrained(str(tiny_folder))
    load_style_adapter(pipeline)
    pipeline.save_pretrained(tmp_path)
    opened = open_pipeline(tmp_path)
    assert "weights of an IP-Adapter, which a pipeline loads from a file of its own, in its unet are not used" in caplog.text
    assert opened.image_encoder is not None


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_variant_is_read_where_there_is_nothing_else(family_folder, tmp_path, family):
    """As published repositories have them: some parts in a variant and some without, in one file or in shards."""
    source = DiffusionPipeline.from_pretrained(str(family_folder(family)))
    source.save_pretrained(tmp_path, variant="fp16")
    source.unet.save_pretrained(tmp_path / "shards", variant="fp16", max_shard_size="400KB")
    assert len(list((tmp_path / "shards").glob("*.fp16-*-of-*.safetensors"))) > 1
    shutil.rmtree(tmp_path / "unet")
    (tmp_path / "shards").rename(tmp_path / "unet")
    shutil.rmtree(tmp_path / "vae")
    shutil.copytree(family_folder(family) / "vae", tmp_path / "vae")
    (tmp_path / "text_encoder" / "model.fp16.safetensors").rename(tmp_path / "text_encoder" / "model.bf16.safetensors")
    expected = networks(open_pipeline(family_folder(family)))
    for name, part in networks(open_pipeline(tmp_path)).items():
        assert all(torch.equal(tensor, part.state_dict()[key]) for key, tensor in expected[name].state_dict().items())


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors", "model.fp16.safetensors"], None),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], "fp16"),
        (["diffusion_pytorch_model.non_ema.safetensors"], "non_ema"),
        (["model.bf16-00001-of-00002.safetensors", "model.bf16-00002-of-00002.safetensors"], "bf16"),
        (["diffusion_pytorch_model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["diffusion_pytorch_model-00001-of-00002.safetensors", "model.fp16.bin"], None),
        (["model.bin", "config.json"], None),
    ],
)
def test_the_variant_of_a_folder(tmp_path, names, variant):
    for name in names:
        (tmp_path / name).touch()
    assert variant_in(tmp_path) == variant


def test_plain_weights_come_before_a_variant(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(weights).items()}, weights.with_suffix(".fp16.safetensors"))
    opened = open_pipeline(tmp_path / "copy").unet
    assert torch.equal(opened.conv_in.weight, load_file(weights)["conv_in.weight"])


def test_listed_parts_that_are_not_needed_may_be_absent(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    index = tmp_path / "copy" / "model_index.json"
    listed = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": True,
    }
    index.write_text(json.dumps({**json.loads(index.read_text()), **listed}))
    pipeline, teacher = meta_pipeline(tmp_path / "copy"), load_teacher(tmp_path / "copy")
    assert pipeline.image_encoder is teacher.pipeline.image_encoder is teacher.pipeline.feature_extractor is None
    [sentence] = teacher.not_in_student
    assert sentence.startswith("the student has no safety checker; its users can load the teacher's")


@pytest.fixture
def lora_student(tiny_folder, tmp_path):
    """The folder of a student that is a LoRA of random weights."""
    folder = tmp_path / "student"
    save_lora(open_pipeline(tiny_folder).unet, folder)
    config = {name: value for name, value in DDIMScheduler(clip_sample=False).config.items() if not name.startswith("_")}
    settings = {"scheduler_class": "DDIMScheduler", "scheduler_config": config, "lora": True, "solver": "ddim"}
    StudentSpec("consistency", str(tiny_folder), (2,), guidance="baked", guidance_scale=1, **settings).save(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda name, tensor: {} if "attn1.to_q.lora_A" in name else {name: tensor},
            r"lacks 4 of its matrices \(.*to_q\.lora_A",
        ),
        (lambda name, tensor: {name: tensor * torch.nan}, r"has weights that are not finite \(.*lora_"),
    ],
)
def test_half_a_lora_is_refused(lora_student, tiny_folder, change, sentence):
    assert open_student(lora_student)[1].lora
    file = lora_student / "pytorch_lora_weights.safetensors"
    edited(
        lora_student,
        "",
        lambda weights: {new: value for name, tensor in weights.items() for new, value in change(name, tensor).items()},
    )
    with pytest.raises(ValueError, match=f"cannot be opened as a LoRA of .*: {file.name} {sentence}"):
        open_student(lora_student)
    with pytest.raises(DoesNotLoadError, match=sentence):
        with_lora(open_pipeline(tiny_folder), file)
