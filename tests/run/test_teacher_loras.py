"""`distill TEACHER --teacher-lora FILE`: the LoRA is part of the teacher, and the student has the form that is requested."""

import copy
import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from plain_calls import plain_pipeline
from safetensors.torch import load_file, save_file
from tiny_runs import logged, settings_of
from typer.testing import CliRunner

from gendistill.cli import app
from gendistill.diffusion.teacher import load_teacher
from gendistill.export.kohya import kohya_weights
from gendistill.export.low_rank import factors, merged_weights
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.samplers.layouts.unet_layout import StableDiffusionLayout
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.provenance import weights_fingerprint
from gendistill.samplers.weighted_lora import WeightedLora

TARGETS = ["to_q", "to_v", "conv1", "time_embedding.linear_1"]  # the last one is not of those that the family trains
PROMPTS, SEEDS = ["food", "animals"], [3, 1]
WEIGHT = 0.5


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def loras(tiny_folder, tmp_path_factory):
    """One LoRA of random weights, with alpha 4 at rank 2, in the formats of diffusers, kohya and PEFT."""
    place = tmp_path_factory.mktemp("loras")
    pipeline = DiffusionPipeline.from_pretrained(tiny_folder)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS)
    adapted = get_peft_model(copy.deepcopy(pipeline.unet), config)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(place / "peft")
    pipeline.unet.add_adapter(config, "style")
    layers = {name.removeprefix("base_model.model."): each for name, each in adapted.named_modules()}
    for name, layer in pipeline.unet.named_modules():
        if isinstance(layer, LoraLayer):
            for matrix in ("lora_A", "lora_B"):
                getattr(layer, matrix)["style"].weight.data = getattr(layers[name], matrix)["default"].weight.data.clone()
    weights = get_peft_model_state_dict(pipeline.unet, adapter_name="style")
    settings = pipeline.unet.peft_config["style"].to_dict()
    StableDiffusionPipeline.save_lora_weights(
        place / "diffusers", unet_lora_layers=weights, unet_lora_adapter_metadata={**settings, "target_modules": TARGETS}
    )
    save_file(kohya_weights(pipeline, StableDiffusionLayout(), "style", torch.float32), place / "kohya.safetensors")
    expected = {
        name: tensor + 0.5 * layer_change(pipeline.unet, name) for name, tensor in merged_weights(pipeline.unet).items()
    }
    return place, expected


def layer_change(unet, name):
    layer = unet.get_submodule(name.rpartition(".")[0]) if name.endswith(".weight") else None
    return layer.get_delta_weight("style").detach() if isinstance(layer, LoraLayer) else 0


@pytest.mark.parametrize("file", ["diffusers", "kohya.safetensors", "peft"])
def test_a_lora_of_every_format_is_merged_into_the_teacher_with_its_alpha_and_weight(tiny_folder, loras, file):
    place, expected = loras
    teacher = load_teacher(tiny_folder, loras=[WeightedLora.parse(f"{place / file}:{WEIGHT}")])
    merged = teacher.network.state_dict()
    assert merged.keys() == expected.keys()
    assert all(torch.allclose(tensor, expected[name], atol=1e-6) for name, tensor in merged.items())
    assert teacher.fingerprint() != load_teacher(tiny_folder).fingerprint()


def run_of(place, tiny_folder, name, lora, **changes):
    return distill(settings_of(place, tiny_folder, name, teacher_loras=[f"{lora}:{WEIGHT}"], **changes))


def images(folder):
    return torch.cat(list(FewStepSampler.from_pretrained(folder).images(PROMPTS, SEEDS)))


def plain_images(folder, lora_files=()):
    """Images of plain diffusers from a folder, after LoRAs were loaded into the teacher."""
    spec = json.loads((folder / "gendistill.json").read_text())
    if spec["lora"]:
        pipeline = DiffusionPipeline.from_pretrained(spec["teacher"])
        names = []
        for number, (file, weight) in enumerate([*lora_files, (folder, 1.0)]):
            names.append((f"lora-{number}", weight))
            pipeline.load_lora_weights(file, adapter_name=names[-1][0])
        pipeline.set_adapters([name for name, _ in names], [weight for _, weight in names])
        pipeline.scheduler = StudentSpec.load(folder).scheduler()
    else:
        pipeline, _ = plain_pipeline(folder)
    return torch.cat(list(FewStepSampler(pipeline, StudentSpec.load(folder)).images(PROMPTS, SEEDS)))


@pytest.fixture(scope="module")
def students(tiny_folder, loras, tmp_path_factory):
    """Students of the merged teacher in all forms, trained as a LoRA and with all weights."""
    place, lora = tmp_path_factory.mktemp("students"), loras[0] / "diffusers"
    fast = {"trainer__max_steps": 2, "trainer__learning_rate": 1e-3, "lora__rank": 32}
    made = {}
    for kind, enabled in (("lora", True), ("full", False)):
        for form in ("as-trained", "folder", "base-lora", "steps-lora"):
            made[kind, form] = run_of(place, tiny_folder, f"{kind}-{form}", lora, output=form, lora__enabled=enabled, **fast)
    return made


def test_every_form_of_a_lora_student_generates_its_images_in_plain_diffusers(students, loras):
    expected = images(students["lora", "as-trained"].student_folder)
    style = (loras[0] / "diffusers", WEIGHT)
    for form, files in {"as-trained": [style], "folder": [], "base-lora": [], "steps-lora": [style]}.items():
        folder = students["lora", form].student_folder
        torch.testing.assert_close(plain_images(folder, files), images(folder), atol=1e-5, rtol=0)
        torch.testing.assert_close(images(folder), expected, atol=2e-3, rtol=0)  # weights are saved in float16


def test_at_full_rank_one_lora_of_the_base_is_the_student(students, tiny_folder, loras):
    result = students["lora", "base-lora"]
    assert "relative error 0.000" in result.description
    assert "relative error 0.000" in (result.student_folder / "README.md").read_text()
    (error,) = logged(result.student_folder.parent, "lora_relative_error")
    assert error < 1e-4
    base = open_pipeline(tiny_folder).unet
    trained = merged_weights(result.networks.average.network)
    adapted = copy.deepcopy(base)
    state = load_file(result.student_folder / "pytorch_lora_weights.safetensors")
    kohya = load_file(result.student_folder / "kohya" / "lora.safetensors")
    assert len([name for name in state if "lora_A" in name]) == len([name for name in kohya if "lora_down" in name])
    for name, down in state.items():
        if name.endswith("lora_A.weight"):
            path = name.removeprefix("unet.").removesuffix(".lora_A.weight")
            up = state[name.replace("lora_A", "lora_B")].float().flatten(1)
            weight = adapted.get_submodule(path).weight
            weight.data += (up @ down.float().flatten(1)).view(weight.shape)
    assert all(torch.allclose(tensor, trained[name], atol=1e-4) for name, tensor in adapted.state_dict().items())


def test_the_few_steps_of_a_full_student_become_a_lora_of_the_teacher(students, loras):
    style = (loras[0] / "diffusers", WEIGHT)
    for form, files in {"folder": [], "base-lora": [], "steps-lora": [style]}.items():
        folder = students["full", form].student_folder
        torch.testing.assert_close(plain_images(folder, files), images(folder), atol=1e-5, rtol=0)
    (error,) = logged(students["full", "steps-lora"].student_folder.parent, "lora_relative_error")
    assert 0 < error < 0.9  # biases and normalisations are not in a LoRA


def test_a_factorisation_is_the_best_of_its_rank():
    change = torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    down, up = factors(change, 4)
    error = change.flatten(1) - up.flatten(1) @ down.flatten(1)
    assert torch.allclose(error.norm(), torch.linalg.svdvals(change.flatten(1))[4:].norm(), rtol=1e-4)


def test_evaluation_opens_the_teacher_with_its_loras(students, tmp_path, loras):
    spec = StudentSpec.load(students["lora", "as-trained"].student_folder)
    opened = open_pipeline(spec.teacher, **spec.teacher_opening)
    networks = students["lora", "as-trained"].networks
    assert weights_fingerprint(opened.unet) == weights_fingerprint(networks.teacher.network.base)
    moved = StudentSpec.load(students["lora", "as-trained"].student_folder).teacher_loras[0]
    gone = WeightedLora(str(tmp_path / "gone.safetensors"), moved.weight, moved.sha256)
    with pytest.raises(ValueError, match="which is merged into the teacher, does not exist; expects the file there"):
        open_pipeline(spec.teacher, loras=[gone])
    changed = WeightedLora(str(loras[0] / "kohya.safetensors"), moved.weight, moved.sha256)
    with pytest.raises(ValueError, match="has changed since the student was trained; expects the file with sha256"):
        open_pipeline(spec.teacher, loras=[changed])
