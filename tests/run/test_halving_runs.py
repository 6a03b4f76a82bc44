"""Progressive step-halving, from a teacher's folder to the students of its stages."""

import json

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from tiny_pipeline import CAPTIONS

from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler

SEEDS = [3, 1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images with captions."""
    place = tmp_path_factory.mktemp("progressive")
    (place / "images").mkdir()
    rows = []
    for number in range(12):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(place / "images" / f"{number:02d}.png")
        rows.append({"file_name": f"{number:02d}.png", "text": CAPTIONS[number % 4], "label": str(number % 3)})
    (place / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def settings(place, teacher, out, **changes):
    given = {
        "teacher": str(teacher),
        "method": "progressive",
        "out": str(out),
        "device": "cpu",
        "steps": [2, 1],
        "progressive.start_steps": 8,
        "data.path": str(place / "images"),
        "data.cache": str(place / "cache"),
        "trainer.max_steps": 3,
        "trainer.batch_size": 2,
        "trainer.num_validation": 4,
        "trainer.trackers": [],
        "trainer.log_every": 1,
    }
    return load_config(None, given | {name.replace("__", "."): value for name, value in changes.items()})


FROM_8 = {"progressive__start_steps": 8}  # with a first stage that makes no student
RUNS = {
    "sd1, baked": ("sd1", FROM_8, "v_prediction"),
    "sd1, LoRA, cfg": ("sd1", {"lora__enabled": True, "lora__rank": 4, "guidance__mode": "cfg"}, "v_prediction"),
    "sd1, LoRA, baked, x_0": ("sd1", {"lora__enabled": True, "progressive__prediction_type": "sample"}, "sample"),
    "sd2, embedded": ("sd2", {"guidance__mode": "embedded"}, "v_prediction"),
    "sdxl, noise": ("sdxl", {"progressive__prediction_type": "epsilon"}, "epsilon"),
    "sd1, stochastic": ("sd1", FROM_8 | {"progressive__sampler": "stochastic", "steps": [4, 2]}, "v_prediction"),
    "sd1, a grid": ("sd1", FROM_8 | {"progressive__grid": [999, 310]}, "v_prediction"),
    "unconditional": ("unconditional", {}, "v_prediction"),
    "classes": ("classes", {"data__caption": "label"}, "v_prediction"),
}


@pytest.mark.parametrize("run", RUNS)
def test_every_stage_leaves_what_its_step_count_asks_for_and_plain_diffusers_samples_from_it(family_folder, place, run):
    family, changes, dialect = RUNS[run]
    out = place / run.replace(" ", "-")
    result = distill(settings(place, family_folder(family), out, **{"progressive__start_steps": 4, **changes}))
    stages = {path.name for path in (out / "stages").iterdir()}
    unguided = changes.get("guidance__mode") == "cfg" or family in ("unconditional", "classes")
    steps_of_students = changes.get("steps", [2, 1])
    first = {"8", "4"} if "stochastic" in run else {"4", "2"} if "progressive__start_steps" in changes else {"2"}
    assert stages - {"guidance_distillation"} == {*first, str(steps_of_students[-1])}
    assert ("guidance_distillation" in stages) == (not unguided or dialect != "epsilon")
    assert {path.name for path in out.glob("student-*")} == {f"student-{steps}" for steps in steps_of_students}
    assert result.student_folder == out / f"student-{steps_of_students[0]}"
    prompts = ["0", "2"] if family == "classes" else CAPTIONS[:2]
    for steps in steps_of_students:
        sampler = FewStepSampler.from_pretrained(out / f"student-{steps}")
        spec = sampler.spec
        ours_alone = {"sd1, stochastic": "StochasticDDIMScheduler", "sd1, a grid": "GridDDIMScheduler"}
        assert spec.scheduler_class == ours_alone.get(run, "DDIMScheduler")
        assert (spec.method, spec.num_inference_steps, spec.prediction_type) == ("progressive", (steps,), dialect)
        assert sampler.pipeline.scheduler.config.prediction_type == dialect
        ours = torch.cat(list(sampler.images(prompts, SEEDS, batch_size=1)))
        plain = plain_pipeline(out / f"student-{steps}", spec)
        for image, prompt, seed in zip(ours, prompts, SEEDS, strict=True):
            (theirs,) = plain(
                **asked(family, prompt, spec),
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
            ).images
            torch.testing.assert_close(image, torch.from_numpy(theirs).permute(2, 0, 1), atol=1e-5, rtol=0)


def asked(family, prompt, spec):
    """What a pipeline of the family is called with."""
    if family == "unconditional":
        return {}
    if family == "classes":
        return {"class_labels": int(prompt)}
    return {"prompt": prompt, "guidance_scale": spec.pipeline_guidance_scale}


def plain_pipeline(folder, spec):
    """The student as a program opens it that has never heard of gendistill."""
    pipeline = DiffusionPipeline.from_pretrained(spec.teacher if spec.lora else folder)
    if spec.lora:
        pipeline.load_lora_weights(folder)
        pipeline.scheduler = getattr(diffusers, spec.scheduler_class).from_pretrained(folder, subfolder="scheduler")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


class Killed(Exception):
    """What ends a run here, as a killed process would."""


def weights(run):
    return {path.relative_to(run): load_file(path) for path in sorted(run.rglob("*.safetensors")) if "student" in str(path)}


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_killed_in_its_third_stage_goes_on_to_the_same_bits(family_folder, place, tmp_path, monkeypatch, lora):
    from gendistill.methods.progressive import StepHalving

    def config(name):
        return settings(
            place, family_folder("sd1"), tmp_path / name, trainer__checkpoint_every=1, lora__enabled=lora, lora__rank=4
        )

    distill(config("straight"))
    after_step = StepHalving.after_step

    def killing(method, step, skipped):
        after_step(method, step, skipped)
        if len(method.times) == 2 and step == 2:  # imitation, 4, then 2
            raise Killed

    monkeypatch.setattr(StepHalving, "after_step", killing)
    with pytest.raises(Killed):
        distill(config("killed"))
    monkeypatch.undo()
    assert not (tmp_path / "killed" / "student-2").exists()
    with pytest.raises(ValueError, match="holds a run already"):
        distill(config("killed"))
    distill(config("killed"), resume=True)
    straight, killed = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert straight.keys() == killed.keys()
    for path, tensors in straight.items():
        assert all(torch.equal(tensor, killed[path][name]) for name, tensor in tensors.items()), path


def test_steps_that_are_never_visited_are_refused_with_those_that_are(place):
    with pytest.raises(ValueError, match=r"steps \[6, 3\]: expects values from \[32, 16, 8, 4, 3\]"):
        settings(place, "teacher", "run", steps=[6, 3], progressive__start_steps=64)


def test_a_student_that_still_changes_its_prediction_type_is_not_exported(tiny_folder, place, tmp_path):
    """The time limit ends both stages after a step. The figures of the first are those of the mix that its student predicts."""
    limits = {"trainer__max_steps": 1000, "trainer__max_minutes": 1e-6, "steps": [4]}
    with pytest.raises(
        ValueError, match=r"^student-4: training ended at step 1, before its change from epsilon to v_prediction"
    ):
        distill(settings(place, tiny_folder, tmp_path / "run", **limits))
    logs = [(tmp_path / "run" / "stages" / stage / "log.jsonl").read_text() for stage in ("guidance_distillation", "4")]
    assert all("validation" in log for log in logs)
    assert not (tmp_path / "run" / "student-4").exists()
