"""Every family from a teacher's folder to a student that plain diffusers samples from."""

import dataclasses
import json

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from original_checkpoint import save_checkpoint
from PIL import Image
from tiny_pipeline import CAPTIONS

from gendistill.diffusion.trained_networks import adapter_parameters
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.samplers.loading import open_pipeline
from gendistill.sampling.generate import generate

SEEDS = [3, 1, 4]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images with captions and class labels, and prompts."""
    place = tmp_path_factory.mktemp("families")
    (place / "images").mkdir()
    rows = []
    for number in range(12):
        Image.effect_noise((40, 32), 20 + number).convert("RGB").save(place / "images" / f"{number:02d}.png")
        rows.append({"file_name": f"{number:02d}.png", "text": CAPTIONS[number % 4], "label": number % 3})
    (place / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (place / "prompts.txt").write_text("\n".join(CAPTIONS))
    return place


def settings(place, teacher, name, **changes):
    given = {
        "teacher": str(teacher),
        "out": str(place / name),
        "device": "cpu",
        "steps": [2],
        "solvers": ["ddim", "lcm"],
        "data.cache": str(place / "cache"),
        "data.num_synthetic": 4,
        "data.synthetic_steps": 2,
        "trainer.max_steps": 20,
        "trainer.batch_size": 2,
        "trainer.num_validation": 4,
        "trainer.trackers": [],
    }
    return load_config(None, given | {name.replace("__", "."): value for name, value in changes.items()})


def plain_pipeline(folder, spec):
    """The student as a program opens it that has never heard of gendistill."""
    if not spec.lora:
        return DiffusionPipeline.from_pretrained(folder)
    pipeline = DiffusionPipeline.from_pretrained(spec.teacher)
    pipeline.load_lora_weights(folder)
    pipeline.scheduler = getattr(diffusers, spec.scheduler_class).from_pretrained(folder, subfolder="scheduler")
    return pipeline


def in_rgb(image):
    """A grey image in three channels, and an RGBA image on white."""
    return image[:3] * image[3:] + 1 - image[3:] if len(image) == 4 else image.expand(3, -1, -1)


def assert_plain_diffusers_draws_the_same(folder, prompts, call):
    sampler = FewStepSampler.from_pretrained(folder)
    ours = torch.cat(list(sampler.images(prompts, SEEDS, batch_size=1)))
    plain = plain_pipeline(folder, sampler.spec)
    assert type(plain.scheduler).__name__ == sampler.spec.scheduler_class
    plain.set_progress_bar_config(disable=True)
    for image, prompt, seed in zip(ours, prompts, SEEDS, strict=True):
        (theirs,) = plain(
            **call(prompt, sampler.spec.pipeline_guidance_scale),
            **({"eta": sampler.spec.eta} if sampler.spec.eta else {}),
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images
        torch.testing.assert_close(image, in_rgb(torch.from_numpy(theirs).permute(2, 0, 1)), atol=1e-5, rtol=0)
    return plain


def with_text(prompt, scale):
    return {"prompt": prompt, "guidance_scale": scale}


def with_class(prompt, scale):
    return {"class_labels": int(prompt)}


def with_nothing(prompt, scale):
    return {}


LORA = {"lora__enabled": True, "lora__rank": 4}
ALIGNMENT = {"method": "latent_alignment", "align__trajectories": 4, "align__trajectory_steps": 4}
PROGRESSIVE = {"method": "progressive", "progressive__start_steps": 4}
RUNS = {
    "sd1, full, baked": ("sd1", with_text, {"data__prompts": True, "solvers": ["tcd"]}),
    "sd2, full, embedded": ("sd2", with_text, {"data__path": True, "guidance__mode": "embedded"}),
    "sd2, LoRA, baked": ("sd2", with_text, {"data__path": True, "lora__enabled": True, "lora__rank": 4}),
    "sdxl, full, embedded": ("sdxl", with_text, {"data__prompts": True, "guidance__mode": "embedded"}),
    "sdxl, LoRA, cfg": (
        "sdxl",
        with_text,
        {"data__path": True, "lora__enabled": True, "lora__rank": 4, "guidance__mode": "cfg", "solvers": ["tcd"]},
    ),
    "EDM, full, embedded": ("playground", with_text, {"data__path": True, "guidance__mode": "embedded"}),
    "EDM, LoRA, baked": ("playground", with_text, {"data__prompts": True, **LORA}),
    "EDM, LoRA, alignment": ("playground", with_text, {"data__prompts": True, **LORA, **ALIGNMENT}),
    "EDM, LoRA, progressive": ("playground", with_text, {"data__prompts": True, **LORA, **PROGRESSIVE}),
    "EDM, full, alignment": ("playground", with_text, {"data__prompts": True, **ALIGNMENT}),
    "EDM, full, progressive": ("playground", with_text, {"data__prompts": True, **PROGRESSIVE}),
    "EDM in pixels, consistency": ("edm", with_nothing, {"data__path": True}),
    "EDM in pixels, progressive": ("edm", with_nothing, PROGRESSIVE),
    "EDM in pixels, alignment": ("edm", with_nothing, ALIGNMENT),
    "unconditional, from images": ("unconditional", with_nothing, {"data__path": True}),
    "unconditional, from nothing": ("unconditional", with_nothing, {"solvers": ["tcd"]}),
    "classes, from labelled images": ("classes", with_class, {"data__path": True, "data__caption": "label"}),
    "grey, from images": ("grey", with_class, {"data__path": True, "data__caption": "label"}),
    "RGBA, not square, learned variance": ("rgba", with_nothing, {"data__path": True}),
    "latent, unconditional": ("ldm", with_nothing, {"data__path": True, "solvers": ["ddim"]}),
    "classes, from nothing": ("classes", with_class, {"solvers": ["tcd"]}),
}


SLOW = {
    *("EDM, full, embedded", "EDM, LoRA, baked", "EDM, LoRA, progressive", "EDM, full, alignment", "EDM, full, progressive"),
    *("EDM in pixels, consistency", "EDM in pixels, alignment", "grey, from images"),
}


@pytest.mark.parametrize("run", [pytest.param(run, marks=pytest.mark.slow) if run in SLOW else run for run in RUNS])
def test_a_teacher_of_every_family_becomes_a_student_that_plain_diffusers_samples_from(family_folder, place, run):
    family, call, changes = RUNS[run]
    paths = {"data__path": str(place / "images"), "data__prompts": str(place / "prompts.txt")}
    changes = {name: paths.get(name, value) for name, value in changes.items()}
    result = distill(settings(place, family_folder(family), run, **changes))
    assert result.training.steps == 20
    assert any(not torch.equal(p, result.networks.averaged[name]) for name, p in result.networks.trained.items())
    prompts = {with_text: CAPTIONS[:3], with_class: ["2", "0", "1"], with_nothing: [""] * 3}[call]
    plain = assert_plain_diffusers_draws_the_same(result.student_folder, prompts, call)
    assert plain.scheduler.config.prediction_type == ("v_prediction" if family in ("sd2", "edm") else "epsilon")
    assert bool(plain.scheduler.config.get("rescale_betas_zero_snr")) == (family == "sd2")
    assert bool(plain.scheduler.config.get("clip_sample")) == (family in ("unconditional", "classes", "grey", "rgba"))
    if result.exported.lora:
        (adapter,) = plain.get_active_adapters()
        loaded = dict(adapter_parameters(plain.unet, adapter))
        assert loaded.keys() == result.networks.averaged.keys()
        assert all(torch.equal(p, result.networks.averaged[name].half().float()) for name, p in loaded.items())
    card = (result.student_folder / "README.md").read_text()
    assert (result.exported.guidance == "embedded") == ("an input of the network" in card)
    assert not list(result.student_folder.rglob("*.bin"))


def test_a_lora_of_a_checkpoint_finds_its_checkpoint_again(tiny_folder, place):
    save_checkpoint(open_pipeline(tiny_folder), place / "tiny.safetensors")
    changes = {"teacher_config": str(tiny_folder), "data__path": str(place / "images"), "lora__enabled": True}
    config = settings(place, place / "tiny.safetensors", "of a checkpoint", **changes, trainer__max_steps=2)
    result = distill(config)
    sampler = FewStepSampler.from_pretrained(result.student_folder)
    assert sampler.spec.teacher_config == str(tiny_folder)
    assert next(sampler.images(["food"], [0])).shape == (1, 3, 32, 32)
    assert 'StableDiffusionPipeline.from_single_file("' in (result.student_folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "changes", "sentence"),
    [
        ("unconditional", {"guidance__scale": 3.0}, r"\(DDPMPipeline\) has no guidance; expects the mode 'baked'"),
        ("classes", {"guidance__mode": "embedded"}, r"\(ConsistencyModelPipeline\) has no guidance"),
        ("unconditional", {"lora__enabled": True}, r"loads no LoRA into teacher .* expects false"),
        ("classes", {"data__path": True, "data__caption": "text"}, "prompt '.*': the model expects the number of a class"),
        ("sd1", {}, "data.path and data.prompts: expects one of them"),
    ],
)
def test_what_a_family_cannot_do_is_one_sentence(family_folder, place, tmp_path, family, changes, sentence):
    if "data__path" in changes:
        changes = {**changes, "data__path": str(place / "images")}
    with pytest.raises(ValueError, match=sentence) as error:
        distill(settings(tmp_path, family_folder(family), "run", **changes))
    assert "\n" not in str(error.value)


def test_the_config_that_a_run_writes_starts_the_same_run_where_there_is_no_guidance(family_folder, tmp_path):
    config = settings(tmp_path, family_folder("unconditional"), "run", trainer__max_steps=1)
    distill(config)
    written = load_config(tmp_path / "run" / "config.yaml")
    assert written.guidance.scale == 1.0
    assert distill(written, resume=True).training.steps == 1


def test_images_are_sampled_without_prompts_where_a_model_knows_them_all(family_folder, tmp_path):
    assert generate(str(family_folder("classes")), None, tmp_path / "classes", steps=1, num=2).images == 6
    assert generate(str(family_folder("unconditional")), None, tmp_path / "any", steps=1, num=2).images == 2
    with pytest.raises(ValueError, match="--prompt and --prompts: expects one of them"):
        generate(str(family_folder("sd1")), None, tmp_path / "none", steps=1)


def test_a_model_without_guidance_is_evaluated_without_it_and_without_a_clip_score(family_folder, place, tmp_path):
    folder = family_folder("unconditional")
    config = EvaluationConfig(str(place / "images"), num=4, extractor="emoji", out=tmp_path, device="cpu")
    rows = evaluate(str(folder), config).teacher
    assert {row.protocol.guidance_scale for row in rows} == {1.0}
    assert all(list(row.scores) == ["fd-emoji"] for row in rows)


def test_a_spec_of_an_older_student_still_opens(tmp_path):
    spec = StudentSpec("consistency", "t", (4,), "ddim", "DDIMScheduler", {}, "baked", 3.0)
    stored = dataclasses.asdict(spec)
    del stored["teacher_config"], stored["teacher_revision"]
    (tmp_path / "gendistill.json").write_text(json.dumps(stored))
    assert StudentSpec.load(tmp_path) == spec
