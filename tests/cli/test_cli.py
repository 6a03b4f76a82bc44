"""The command line in fresh processes, from a teacher folder to images sampled by plain diffusers."""

import json

import numpy as np
import pytest
import yaml
from fresh_process import ran
from PIL import Image
from tiny_pipeline import ROOT
from warm_process import ran_warm

from gendistill.samplers import FewStepSampler, StudentSpec

PROMPTS = ["emoji of animals", "food", "a red apple"]
PLAIN_DIFFUSERS = """
import sys, json, numpy, torch, diffusers
for folder, teacher, steps, scale, eta, prompts, out in json.loads(sys.argv[1]):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(teacher or folder)
    if teacher:
        pipeline.load_lora_weights(folder)
        scheduler = json.load(open(folder + "/scheduler/scheduler_config.json"))["_class_name"]
        pipeline.scheduler = getattr(diffusers, scheduler).from_pretrained(folder, subfolder="scheduler")
    images = [
        pipeline(prompt, num_inference_steps=steps, guidance_scale=scale, eta=eta,
                 output_type="np", generator=torch.Generator().manual_seed(7 + k)).images[0]
        for k, prompt in enumerate(prompts)
    ]
    numpy.save(out, numpy.stack(images))
assert "gendistill" not in sys.modules
"""


def run(*arguments):
    done = ran(*arguments, folder=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("cli")
    (place / "images").mkdir()
    for number in range(12):
        Image.effect_noise((40, 32), 20 + number).convert("RGB").save(place / "images" / f"{number:02d}.png")
        (place / "images" / f"{number:02d}.txt").write_text(PROMPTS[number % 3])
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    return place


def distill(place, teacher, name, *arguments):
    settings = ("max_steps=3", "batch_size=4", "num_validation=6", "validate_every=2", "learning_rate=1e-3", "trackers=[]")
    given = [f"--set=trainer.{setting}" for setting in settings] + [f"--set=data.cache={place / 'cache'}"]
    done = run("distill", teacher, "--out", place / name, *given, "--device=cpu", "--json", *arguments)
    return place / name, json.loads(done.stdout)


@pytest.fixture(scope="module")
def full(place, tiny_folder):
    return distill(place, tiny_folder, "full", "--data", place / "images", "--steps=4,2")


@pytest.fixture(scope="module")
def lora(place, tiny_folder):
    return distill(place, tiny_folder, "lora", "--data", place / "images", "--lora", "--set=guidance.mode=cfg")


@pytest.fixture(scope="module")
def embedded(place, tiny_folder):
    made = ("num_synthetic=6", "synthetic_steps=2")
    settings = [f"--set=data.{setting}" for setting in made] + ["--set=guidance.mode=embedded"]
    return distill(place, tiny_folder, "embedded", "--prompts", place / "prompts.txt", *settings)


@pytest.fixture(scope="module")
def by_plain_diffusers(full, lora, embedded, place):
    """What diffusers alone samples from each student, in a process that has never seen gendistill."""
    jobs, generated = [], {}
    for kind, (folder, _) in {"full": full, "lora": lora, "embedded": embedded}.items():
        spec, generated[kind] = StudentSpec.load(folder / "student"), place / f"{kind}-by-diffusers.npy"
        wanted = spec.num_inference_steps[0], spec.pipeline_guidance_scale, spec.eta
        jobs.append((str(folder / "student"), spec.teacher if spec.lora else "", *wanted, PROMPTS, str(generated[kind])))
    done = ran_warm(PLAIN_DIFFUSERS, json.dumps(jobs), folder=place)
    assert done.returncode == 0, done.stderr
    return {kind: np.load(file) for kind, file in generated.items()}


@pytest.mark.parametrize("kind", ["full", "lora", "embedded"])
def test_an_exported_student_samples_in_plain_diffusers_what_gendistill_sample_samples(
    kind, request, place, by_plain_diffusers, tmp_path
):
    folder, result = request.getfixturevalue(kind)
    student, spec = folder / "student", StudentSpec.load(folder / "student")
    assert result["student"] == str(student)
    assert spec.lora == (kind == "lora")
    run("sample", student, "--prompts", place / "prompts.txt", "--seed=7", "--batch-size=2", "--out", tmp_path / "ours.npy")
    ours = np.load(tmp_path / "ours.npy")
    assert ours.shape == (3, 32, 32, 3)
    np.testing.assert_allclose(ours, by_plain_diffusers[kind], atol=1e-5, rtol=0)


def test_a_run_folder_holds_all_that_it_should(full):
    folder, result = full
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation" in line] == [0, 2, 3]
    assert result["steps"] == 3
    best = f"best-{result['best_step']:08d}"
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [best, "step-00000003"]
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["max_steps"] == 3
    assert any((folder / "samples").glob("*.png"))
    spec, card = StudentSpec.load(folder / "student"), (folder / "student" / "README.md").read_text()
    assert spec.num_inference_steps == (4, 2)
    assert f"num_inference_steps=4, guidance_scale={spec.pipeline_guidance_scale:g}" in card
    assert not [path for kind in ("*.bin", "*.pt", "*.pkl") for path in folder.rglob(kind)]


def test_a_data_free_run_makes_its_own_data_and_exports_guidance_as_an_input(embedded):
    folder, result = embedded
    sampler = FewStepSampler.from_pretrained(folder / "student")
    assert result["best_step"] in (0, 2, 3)
    assert sampler.pipeline.unet.config.time_cond_proj_dim == 256
    assert sampler.spec.guidance_range == (1.0, 6.0)


def test_a_finished_run_is_neither_overwritten_nor_changed_by_a_second_start(full, place, tiny_folder):
    folder, _ = full
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = ran("distill", tiny_folder, "--data", place / "images", "--out", folder, "--device=cpu")
    assert done.returncode == 2
    assert done.stderr.strip().endswith("holds a run already; expects --resume, or another folder")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_sample_writes_a_grid_and_a_folder_and_reports_in_json(tiny_folder, tmp_path):
    prompts = ("--prompt", PROMPTS[0], "--prompt", PROMPTS[1], "--steps=2", "--num=3", "--device=cpu", "--json")
    grid = json.loads(run("sample", tiny_folder, *prompts, "--out", tmp_path / "grid.png").stdout)
    assert grid["images"] == 6
    assert Image.open(tmp_path / "grid.png").size == (3 * 34 + 2, 2 * 34 + 2)
    many = json.loads(run("sample", tiny_folder, *prompts, "--out", tmp_path / "many").stdout)
    assert many["files"] == [str(tmp_path / "many" / f"{number:05d}.png") for number in range(6)]
    assert Image.open(many["files"][5]).size == (32, 32)
