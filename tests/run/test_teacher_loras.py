"""`distill TEACHER --teacher-lora FILE`: the LoRA is part of the teacher, and the student has the form that is requested."""

import copy
import json
import re
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from PIL import Image
from plain_calls import plain_pipeline
from safetensors.torch import load_file, save_file
from tiny_families import TRANSFORMER_FAMILIES
from tiny_runs import logged, settings_of
from typer.testing import CliRunner

from gendistill.cli import app
from gendistill.diffusion.added_loras import AddedLoras, CompatibleSettings
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import lora_config, lora_networks
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.export.formats import export
from gendistill.export.kohya import kohya_weights, write_kohya_file
from gendistill.export.low_rank import factors, merged_weights
from gendistill.export.student_folder import save_lora
from gendistill.run.distill import distill
from gendistill.run.student_outputs import lora_student
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.layouts.unet_layout import StableDiffusionLayout
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.provenance import weights_fingerprint
from gendistill.samplers.weighted_lora import WeightedLora

TARGETS = ["to_q", "to_v", "conv1", "time_embedding.linear_1"]  # the last one is not of those that the family trains
PROMPTS, SEEDS = ["food", "animals"], [3, 1]
WEIGHT = 0.5
WITHOUT = ("dit", "pixart")  # families into which diffusers loads no LoRA


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


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "sd3" else pytest.mark.slow)
        for name in ("sdxl", *TRANSFORMER_FAMILIES)
        if not name.startswith(WITHOUT)
    ],
)
def test_loras_of_every_family_are_merged(family_folder, tmp_path, name):
    folder = family_folder(name)
    pipeline = open_pipeline(folder)
    family, network = family_of(pipeline), network_of(pipeline)
    network.add_adapter(lora_config(family.lora_targets, 2, 4), "style")
    torch.manual_seed(0)
    for parameter in (each for path, each in network.named_parameters() if "lora_B" in path):
        parameter.data.normal_(0, 0.1)
    save_lora(pipeline, "style", tmp_path, torch.float32)
    files = [tmp_path]
    state = get_peft_model_state_dict(network, adapter_name="style")
    (tmp_path / "peft").mkdir()
    prefixed = {f"base_model.model.{path}": each for path, each in state.items()}
    save_file(prefixed, tmp_path / "peft" / "adapter_model.safetensors")
    network.peft_config["style"].save_pretrained(tmp_path / "peft")
    files.append(tmp_path / "peft")
    if family.original_layout is not None:
        files.append(tmp_path / "kohya.safetensors")
        save_file(kohya_weights(pipeline, family.original_layout, "style", torch.float32), files[-1])
    expected = {path: each + WEIGHT * layer_change(network, path) for path, each in merged_weights(network).items()}
    for file in files:
        merged = network_of(open_pipeline(folder, loras=[WeightedLora.parse(f"{file}:{WEIGHT}")])).state_dict()
        assert merged.keys() == expected.keys()
        assert all(torch.allclose(each, expected[path], atol=1e-5) for path, each in merged.items()), file


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
def student(tiny_folder, loras, tmp_path_factory):
    """student(kind, form): a student of the merged teacher, trained as a LoRA or with all weights."""
    place, lora = tmp_path_factory.mktemp("students"), loras[0] / "diffusers"
    fast = {"trainer__max_steps": 1, "trainer__learning_rate": 1e-3, "lora__rank": 32, "trainer__num_validation": 2}

    @cache
    def trained(kind, form):
        return run_of(place, tiny_folder, f"{kind}-{form}", lora, output=form, lora__enabled=kind == "lora", **fast)

    return trained


@pytest.mark.slow
def test_every_form_of_a_lora_student_generates_its_images_in_plain_diffusers(student, loras):
    expected = images(student("lora", "as-trained").student_folder)
    style = (loras[0] / "diffusers", WEIGHT)
    for form, files in {"as-trained": [style], "folder": [], "base-lora": [], "steps-lora": [style]}.items():
        folder = student("lora", form).student_folder
        torch.testing.assert_close(plain_images(folder, files), images(folder), atol=1e-5, rtol=0)
        torch.testing.assert_close(images(folder), expected, atol=2e-3, rtol=0)  # weights are saved in float16


def test_at_full_rank_one_lora_of_the_base_is_the_student(student, tiny_folder, loras):
    result = student("lora", "base-lora")
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


@pytest.mark.parametrize("form", ["steps-lora", pytest.param("base-lora", marks=pytest.mark.slow)])
def test_a_student_with_all_weights_becomes_a_lora(student, loras, form):
    folder = student("full", form).student_folder
    files = [(loras[0] / "diffusers", WEIGHT)] if form == "steps-lora" else []
    torch.testing.assert_close(plain_images(folder, files), images(folder), atol=1e-5, rtol=0)
    (error,) = logged(folder.parent, "lora_relative_error")
    assert 0 < error < 0.9  # biases and normalisations are not in a LoRA


@pytest.fixture(scope="module")
def with_text_encoder(loras, tmp_path_factory):
    """The LoRA in kohya's format, which adapts the text encoder, too."""
    path, generator = "text_model.encoder.layers.0", torch.Generator().manual_seed(0)
    layers = {f"{path}.self_attn.q_proj": (2, 32, 32), f"{path}.mlp.fc1": (2, 32, 64)}
    state = load_file(loras[0] / "kohya.safetensors")
    for name, (rank, inputs, outputs) in layers.items():
        key = f"lora_te_{name.replace('.', '_')}"
        state[f"{key}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator)
        state[f"{key}.lora_up.weight"] = 0.1 * torch.randn(outputs, rank, generator=generator)
        state[f"{key}.alpha"] = torch.tensor(1.0)
    file = tmp_path_factory.mktemp("with-text-encoder") / "style.safetensors"
    save_file(state, file)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "kohya", "diffusers"])
def test_a_lora_of_the_base_with_a_text_encoder_is_exported(with_text_encoder, tiny_folder, tmp_path, kind):
    fast = {"trainer__max_steps": 1, "trainer__num_validation": 2, "lora__enabled": True, "lora__rank": 32}
    student = run_of(tmp_path, tiny_folder, "run", with_text_encoder, output="base-lora", **fast).student_folder
    exported = export(str(student), kind, tmp_path / ("out" if kind == "diffusers" else "out.safetensors"), dtype="float32")
    assert exported.max_error < 1e-3


def test_one_lora_of_the_base_carries_the_text_encoders_of_the_teachers_loras(with_text_encoder, tiny_folder, tmp_path):
    files = [f"{with_text_encoder}:{WEIGHT}"] * 2
    config = settings_of(
        tmp_path, tiny_folder, "run", teacher_loras=files, output="base-lora", lora__enabled=True, lora__rank=32
    )
    teacher = load_teacher(tiny_folder, loras=[WeightedLora.parse(file) for file in files])
    plain = load_teacher(tiny_folder)
    assert teacher.prompt_encoder.fingerprint() != plain.prompt_encoder.fingerprint()
    networks = lora_networks(teacher.denoiser, lora_config(teacher.family.lora_targets, 2))
    lora = lora_student(config, teacher, networks)
    save_lora(lora.pipeline, lora.adapter, tmp_path, torch.float32, encoders=lora.encoders)
    write_kohya_file(lora.pipeline, lora.adapter, tmp_path, torch.float32, lora.encoders)
    for file in ("pytorch_lora_weights.safetensors", "kohya/lora.safetensors"):
        pipeline = DiffusionPipeline.from_pretrained(tiny_folder)
        pipeline.load_lora_weights(tmp_path, weight_name=file)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
        for part in ("unet", "text_encoder"):
            expected = getattr(teacher.pipeline, part)
            weights = merged_weights(expected)
            found = getattr(pipeline, part).state_dict()
            assert found.keys() == weights.keys()
            assert all(torch.allclose(each, weights[name], atol=1e-4) for name, each in found.items()), (file, part)


def test_a_factorisation_is_the_best_of_its_rank():
    change = torch.randn(12, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    down, up = factors(change, 4)
    error = change.flatten(1) - up.flatten(1) @ down.flatten(1)
    assert torch.allclose(error.norm(), torch.linalg.svdvals(change.flatten(1))[4:].norm(), rtol=1e-4)


def test_a_student_names_the_loras_of_its_teacher_and_is_evaluated_with_them(student, tmp_path, loras):
    result = student("full", "steps-lora")
    spec = StudentSpec.load(result.student_folder)
    opened = open_pipeline(spec.teacher, **spec.teacher_opening)
    assert weights_fingerprint(opened.unet) == weights_fingerprint(result.networks.teacher.network)
    card = (result.student_folder / "README.md").read_text()
    (lora,) = spec.teacher_loras
    assert f"pytorch_lora_weights.safetensors, weight 0.5, sha256 {lora.sha256[:16]}" in card
    assert 'set_adapters(["teacher-1", "steps"], [0.5, 1])' in card
    for path, words in {
        tmp_path / "gone.safetensors": "does not exist; expects the file there",
        loras[0] / "kohya.safetensors": "has changed since the student was trained; expects the file with sha256",
    }.items():
        with pytest.raises(ValueError, match=f"which is merged into the teacher, {words}"):
            open_pipeline(spec.teacher, loras=[replace(lora, path=str(path))])


@pytest.mark.slow
def test_the_figures_of_a_student_are_compared_with_those_of_its_merged_teacher(student, tmp_path, tiny_folder):
    for number in range(8):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("food")
    config = EvaluationConfig(str(tmp_path), num=4, extractor="emoji", out=tmp_path / "out", device="cpu")
    merged = evaluate(str(student("full", "steps-lora").student_folder), config).teacher
    plain = evaluate(str(tiny_folder), replace(config, out=tmp_path / "plain")).teacher
    assert {row.model for row in merged} == {"pipeline + pytorch_lora_weights"}
    assert merged[0].scores != plain[0].scores


@pytest.fixture
def command(place):
    """The beginning of a command for a run of a step."""
    fast = "trainer.max_steps=1 trainer.batch_size=2 trainer.num_validation=2 data.num_synthetic=4 data.synthetic_steps=2"
    settings = [word for setting in [*fast.split(), "trainer.trackers=[]", "data.cache=cache"] for word in ("--set", setting)]
    return ["distill", "teacher", "--prompts", "prompts.txt", "--out", "run", "--steps", "2", "--device", "cpu", *settings]


@pytest.mark.parametrize(
    ("method", "mode"),
    [("consistency", "--lora")]
    + [
        pytest.param(method, mode, marks=pytest.mark.slow)
        for method in ("consistency", "progressive", "distribution_matching")
        for mode in ("--lora", "")
        if (method, mode) != ("consistency", "--lora")
    ],
)
def test_a_student_trained_with_added_loras_is_free_of_them(command, place, loras, method, mode):
    (place / "others").symlink_to(loras[0])
    words = [*command, *([mode] if mode else []), "--compatible-with", "others", "--method", method]
    words += ["--set", "progressive.start_steps=4", "--set", "distribution_matching.fake_score.steps=1"]
    shown = run(*words, "--set", "compatible.probability=1", "--set", "trainer.gradient_checkpointing=true")
    assert shown.exit_code == 0, shown.output
    student = next((place / "run").glob("student*"))
    state = load_file(next(student.rglob("*_lora_*" if mode == "--lora" else "diffusion*.safetensors")))
    assert not [name for name in state if "time_embedding.linear_1.lora" in name or "style" in name or "merged" in name]
    assert torch.isfinite(images(student)).all()


def test_an_added_lora_changes_a_network_as_a_loaded_one_does_and_only_for_its_micro_batch(tiny_folder, loras):
    pipeline = open_pipeline(tiny_folder)
    settings = CompatibleSettings(loras=str(loras[0] / "peft"), weight=(WEIGHT, WEIGHT), probability=1.0)
    added = AddedLoras.from_folder(pipeline, settings)
    inputs = torch.randn(2, 4, 8, 8), 7, torch.randn(2, 3, 32)
    plain = pipeline.unet(*inputs).sample
    loaded = copy.deepcopy(pipeline.unet)
    loaded.load_state_dict(loras[1])
    student = lora_networks(load_teacher(tiny_folder).denoiser, lora_config(["to_q", "conv1"], 2)).student.network
    with added.added([pipeline.unet, student], PerSampleRandom(0, 3, 0, 2)):
        changed, of_student = pipeline.unet(*inputs).sample, student(*inputs).sample
    torch.testing.assert_close(changed, loaded(*inputs).sample, atol=1e-5, rtol=0)
    torch.testing.assert_close(of_student, changed, atol=1e-5, rtol=0)  # an adapter begins as no change
    assert torch.equal(pipeline.unet(*inputs).sample, plain)


def other_lora(place, kind, tiny_folder):
    """A file that is no LoRA for the tiny pipeline."""
    file = place / f"{kind}.safetensors"
    name, wide = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 640
    weights = {
        "wide": {f"{name}.lora_A.weight": torch.ones(2, wide), f"{name}.lora_B.weight": torch.ones(wide, 2)},
        "flux": {
            f"transformer.transformer_blocks.0.attn.to_q.{matrix}.weight": torch.ones(4, 4) for matrix in ("lora_A", "lora_B")
        },
        "unknown": {
            "unet.no_block.to_q.lora_A.weight": torch.ones(2, 32),
            "unet.no_block.to_q.lora_B.weight": torch.ones(32, 2),
        },
        "dora": {"lora_unet_mid_block.dora_scale": torch.ones(1)},
        "loha": {"lora_unet_mid_block.hada_w1_a": torch.ones(1)},
        "lokr": {"lora_unet_mid_block.lokr_w1": torch.ones(1)},
        "network": {"conv_in.weight": torch.ones(1)},
        "half": {f"{name}.lora_A.weight": torch.ones(2, 32)},
        "peft": {"base_model.model.mid_block.to_q.lora_A.weight": torch.ones(2, 32)},
    }
    save_file(weights[kind], file)
    return file


@pytest.mark.parametrize(
    ("kind", "words"),
    {
        "wide": "is one of another model: 1 of its 1 layers do not fit, such as mid_block",
        "flux": "is not one of a StableDiffusionPipeline",
        "unknown": "is one of another model: the unet of this StableDiffusionPipeline lacks 1 of its 1 layers",
        "dora": "is a DoRA (lora_unet_mid_block.dora_scale), which is not read; expects a plain LoRA",
        "loha": "is a LoHa",
        "lokr": "is a LoKr",
        "network": "has weights that are no low-rank matrices (conv_in.weight); expects a plain LoRA",
        "half": "lacks 1 of its matrices",
        "peft": "expects PEFT's adapter_config.json next to it",
    }.items(),
)
def test_a_lora_that_cannot_be_merged_is_reported_in_one_sentence(tiny_folder, tmp_path, kind, words):
    file = other_lora(tmp_path, kind, tiny_folder)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load_teacher(tiny_folder, loras=[WeightedLora.parse(str(file))])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--teacher-lora", "none.safetensors:0.5"], "lora none.safetensors: expects an existing .safetensors file"),
        (["--save-as", "base-lora"], "lora.rank 64: is greater than the smallest dimension of every layer, at most"),
        (["--save-as", "zip"], "setting output is 'zip'; expects as-trained, folder, base-lora or steps-lora"),
        (["--save-as", "steps-lora", "--compress", "2"], "output steps-lora: a pruned network is no change"),
        (["--compatible-with", "nowhere"], "compatible.loras nowhere: expects a folder with LoRAs"),
        (["--compatible-with", ".", "--method", "latent_alignment"], "does not call the teacher in its steps"),
        (["--compatible-with", ".", "--set", "compatible.weight=[1, 0]"], "expects the lower weight first"),
        (["--teacher-lora", "a", "--method", "decoder"], "teacher_loras: expects a method that trains a denoiser"),
    ],
)
def test_settings_of_loras_that_do_not_fit_are_one_sentence_before_any_work(command, place, words, sentence):
    shown = run(*command, *words)
    assert shown.exit_code != 0
    assert sentence in str(shown.exception)
    assert not (place / "cache").exists()
