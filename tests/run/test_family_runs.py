"""Every family from a teacher's folder to a student that plain diffusers samples from."""

import dataclasses
import json
import os
import subprocess
import sys

import plain_calls
import pytest
import torch
from original_checkpoint import save_checkpoint
from PIL import Image
from plain_calls import plain_images, plain_pipeline
from tiny_families import TINY, TRANSFORMER_FAMILIES
from tiny_multimodal import MULTIMODAL
from tiny_pipeline import CAPTIONS

from gendistill.diffusion.trained_networks import adapter_parameters
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.loading import open_pipeline
from gendistill.sampling.generate import generate

SEEDS = [3, 1, 4]
UNCONDITIONAL, CLASSES = [""] * 3, ["2", "0", "1"]
PROMPTS = dict.fromkeys(("unconditional", "edm", "rgba", "ldm"), UNCONDITIONAL)
PROMPTS |= {"classes": CLASSES, "grey": CLASSES, "dit": ["shark", "0", "1"]}


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
    given |= {name.replace("__", "."): value for name, value in changes.items()}
    return load_config(None, {name: value for name, value in given.items() if value is not None})


def own_images(folder, family):
    return torch.cat(
        list(FewStepSampler.from_pretrained(folder).images(PROMPTS.get(family, CAPTIONS[:3]), SEEDS, batch_size=1))
    )


def assert_plain_diffusers_draws_the_same(folder, family):
    plain, spec = plain_pipeline(folder)
    assert type(plain.scheduler).__name__ == spec["scheduler_class"]
    theirs = plain_images(plain, spec, family, PROMPTS.get(family, CAPTIONS[:3]), SEEDS)
    torch.testing.assert_close(own_images(folder, family), theirs, atol=1e-5, rtol=0)
    return plain


LORA = {"lora__enabled": True, "lora__rank": 4}
RUNS = {
    "sd1, full, baked": ("sd1", {"data__prompts": True, "solvers": ["tcd"]}),
    "sd2, full, embedded": ("sd2", {"data__path": True, "guidance__mode": "embedded"}),
    "sd2, LoRA, baked": ("sd2", {"data__path": True, **LORA}),
    "sdxl, full, embedded": ("sdxl", {"data__prompts": True, "guidance__mode": "embedded"}),
    "sdxl, LoRA, cfg": (
        "sdxl",
        {"data__path": True, **LORA, "guidance__mode": "cfg", "solvers": ["tcd"]},
    ),
    "unconditional, from images": ("unconditional", {"data__path": True}),
    "unconditional, from nothing": ("unconditional", {"solvers": ["tcd"]}),
    "classes, from labelled images": ("classes", {"data__path": True, "data__caption": "label"}),
    "classes, from nothing": ("classes", {"solvers": ["tcd"]}),
    "EDM, LoRA": ("playground", {"data__path": True, **LORA}),
    "EDM in pixels": ("edm", {}),
    "RGBA, not square, with a learned variance": ("rgba", {"data__path": True}),
    "latent, unconditional": ("ldm", {"data__path": True}),
    "pixart-alpha, full": ("pixart-alpha", {"data__path": True, "solvers": ["tcd"]}),
    "pixart-sigma, full, cfg": ("pixart-sigma", {"data__prompts": True, "guidance__mode": "cfg"}),
    "dit, full, from nothing": ("dit", {}),
    "sana, full": ("sana", {"data__path": True}),
    "sana, LoRA": ("sana", {"data__prompts": True, **LORA}),
    "auraflow, full, cfg": ("auraflow", {"data__path": True, "guidance__mode": "cfg"}),
    "auraflow, LoRA": ("auraflow", {"data__prompts": True, **LORA}),
    "lumina2, full": ("lumina2", {"data__path": True}),
    "lumina2, LoRA, cfg": ("lumina2", {"data__prompts": True, "guidance__mode": "cfg", **LORA}),
    "sd3, full": ("sd3", {"data__prompts": True}),
    "sd3, LoRA, cfg, without T5": (
        "sd3-without-t5",
        {"data__path": True, "guidance__mode": "cfg", "solvers": ["ddim"], **LORA},
    ),
    "flux, full, embedded": ("flux", {"data__path": True, "data__resolution": 32, "guidance__mode": "embedded"}),
    "flux, LoRA": ("flux", {"data__prompts": True, "data__resolution": 32, **LORA}),
    "classes, distribution matching": ("classes", {"method": "distribution_matching", "solvers": ["tcd"]}),
    "classes, adversarial": ("classes", {"method": "adversarial"}),
    "dit, adversarial": ("dit", {"method": "adversarial"}),
    "flux, LoRA, adversarial": (
        "flux",
        {"data__prompts": True, "data__resolution": 32, "method": "adversarial", **LORA},
    ),
    "sd3, LoRA, distribution matching": (
        "sd3",
        {
            "data__prompts": True,
            "method": "distribution_matching",
            "solvers": ["lcm"],
            "adversarial__weight": 0.1,
            "adversarial__features": "fake_score",
            **LORA,
        },
    ),
    "flux2-klein, full": ("flux2-klein", {"data__prompts": True, "data__resolution": 32, "solvers": ["ddim"]}),
    "flux2, LoRA, embedded": (
        "flux2",
        {"data__path": True, "data__resolution": 32, "guidance__mode": "embedded", "solvers": ["ddim"], **LORA},
    ),
}
METHODS = {
    "consistency": {},
    "distribution matching": {"method": "distribution_matching", "steps": [2, 1]},
    "progressive": {"method": "progressive", "steps": [1], "progressive.start_steps": 2, "solvers": None},
    "alignment": {"method": "latent_alignment", "solvers": None, "align.trajectories": 4, "align.trajectory_steps": 2},
}


@pytest.mark.parametrize("run", [run for run, (family, _) in RUNS.items() if family in TINY])
def test_a_teacher_of_every_family_becomes_a_student_that_plain_diffusers_samples_from(family_folder, place, run):
    family, changes = RUNS[run]
    paths = {"data__path": str(place / "images"), "data__prompts": str(place / "prompts.txt")}
    changes = {name: paths.get(name, value) for name, value in changes.items()}
    result = distill(settings(place, family_folder(family), run, **changes))
    assert result.training.steps == 20
    assert any(not torch.equal(p, result.networks.averaged[name]) for name, p in result.networks.trained.items())
    plain = assert_plain_diffusers_draws_the_same(result.student_folder, family)
    assert network_of(plain).config.out_channels == result.networks.teacher.network.config.out_channels
    schedule = family_of(plain).schedule_of(plain)
    assert (schedule.kind == "flow") == (family in ("sana", "auraflow", "lumina2", *MULTIMODAL))
    if schedule.kind == "vp":
        assert plain.scheduler.config.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")
        assert bool(plain.scheduler.config.rescale_betas_zero_snr) == (family == "sd2")
        assert bool(plain.scheduler.config.clip_sample) == (family in ("unconditional", "classes", "rgba"))
    if result.exported.lora:
        (adapter,) = plain.get_active_adapters()
        loaded = dict(adapter_parameters(network_of(plain), adapter))
        assert loaded.keys() == result.networks.averaged.keys()
        assert all(torch.equal(p, result.networks.averaged[name].half().float()) for name, p in loaded.items())
    card = (result.student_folder / "README.md").read_text()
    assert (result.exported.guidance == "embedded" or family in ("flux", "flux2")) == ("an input of the network" in card)
    assert ("text_encoder_3=None, tokenizer_3=None" in card) == (family == "sd3-without-t5")
    assert ("height=32, width=32" in card) == family.startswith(("flux", "sana", "auraflow"))
    assert not list(result.student_folder.rglob("*.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("family", [*TRANSFORMER_FAMILIES, "playground", "edm", "unconditional", "grey", "rgba", "ldm"])
def test_every_method_makes_students_that_a_fresh_process_samples_the_same(family_folder, place, family):
    teacher, requests = family_folder(family), []
    prompts = {} if family in PROMPTS else {"data.prompts": str(place / "prompts.txt")}  # whose prompts are known
    prompts |= {"data.resolution": 32} if family.startswith("flux") else {}
    for method, changes in METHODS.items():
        for lora in [{}, LORA] if family_of(open_pipeline(teacher)).lora else [{}]:
            config = settings(place, teacher, f"{family}, {method}, {len(lora)}", **prompts, **changes, **lora)
            result = distill(config)
            assert result.training.steps == 20
            requests.append([str(result.student_folder), family, PROMPTS.get(family, CAPTIONS[:3]), SEEDS])
    program = [sys.executable, plain_calls.__file__, json.dumps(requests), str(place / "images.pt")]
    subprocess.run(program, check=True, env={**os.environ, "PYTHONPATH": ""})
    for (folder, *_), images in zip(requests, torch.load(place / "images.pt"), strict=True):
        torch.testing.assert_close(own_images(folder, family), images, atol=1e-5, rtol=0)


def test_a_student_of_a_network_of_one_size_is_trained_further(family_folder, place):
    changes = {"trainer__max_steps": 1, "solvers": ["ddim"]}
    first = distill(settings(place, family_folder("dit"), "first", trainer__learning_rate=1.0, **changes))
    start = {"start": str(first.student_folder), "trainer__learning_rate": 1e-9}
    second = distill(settings(place, family_folder("dit"), "second", **start, **changes))
    teacher = first.networks.teacher.network.state_dict()
    moved = {name: weight for name, weight in first.networks.averaged.items() if (weight - teacher[name]).abs().max() > 0.01}
    assert moved
    for name, weight in moved.items():
        assert (second.networks.averaged[name] - weight).abs().max() < 1e-3  # the folder has float16


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
        ("flux", {"guidance__mode": "cfg"}, r"cfg: guidance is an input of the network .* expects baked or embedded"),
        ("flux", {"data__resolution": 36}, "data.resolution 36: expects a multiple of 8, such as 32 or 40"),
        ("sd3", {"data__resolution": 36}, "data.resolution 36: expects a multiple of 8, such as 32 or 40"),
        ("sd3", {"data__resolution": 104}, "data.resolution 104: expects at most 96 pixels, for which the network has pos"),
        ("sd3", {"guidance__mode": "embedded"}, "the network of .* has no guidance scale input; expects baked or cfg"),
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
