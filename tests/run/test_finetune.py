"""`gendistill finetune`: a few-step student learns new images, and stays a few-step student."""

import json
import re
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from tiny_runs import logged, settings_of

from gendistill import cli
from gendistill.run.distill import distill

SMALL = ("trainer.batch_size=2", "trainer.num_validation=4", "trainer.trackers=[]", "trainer.max_steps=2", "lora.rank=2")
SMALL = (*SMALL, "data.num_prior=4", "data.synthetic_steps=2", "trainer.log_every=1", "trainer.learning_rate=1e-3")


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    """A folder with a student of two steps, one image of a new style, and prompts."""
    place = tmp_path_factory.mktemp("finetune")
    distill(settings_of(place, tiny_folder, "run", trainer__max_steps=1))
    (place / "one").mkdir()
    Image.effect_noise((32, 32), 60).convert("RGB").save(place / "one" / "new.png")
    return place


@pytest.fixture
def finetune(place, monkeypatch, capsys):
    """finetune(name, *options): runs the command line here; gives the run folder, or the sentence of an error."""

    def run(name, *options, code=0, student="run/student", data="one"):
        given = [f"--set={setting}" for setting in (*SMALL, f"data.cache={place / 'cache'}")]
        common = ["--prior-prompts", str(place / "prompts.txt"), "--trigger", "sks", "--device", "cpu", *given]
        arguments = [str(place / student), "--data", str(place / data), "--out", str(place / name), *common, *options]
        monkeypatch.setattr(sys, "argv", ["gendistill", "finetune", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert end.value.code in (code, None), shown.err
        return place / name if not code else shown.err

    return run


def spec_of(folder):
    return json.loads((folder / "gendistill.json").read_text())


def test_a_student_of_one_image_and_a_trigger_opens_in_diffusers_with_its_steps(finetune, place):
    run = finetune("full")
    before, after = spec_of(place / "run" / "student"), spec_of(run / "student")
    for name in ("num_inference_steps", "scheduler_class", "scheduler_config", "solver", "guidance_scale", "teacher"):
        assert after[name] == before[name]
    pipeline = DiffusionPipeline.from_pretrained(run / "student")
    assert pipeline("sks", num_inference_steps=2, guidance_scale=1, output_type="np").images.shape == (1, 32, 32, 3)
    card = (run / "student" / "README.md").read_text()
    assert "trigger 'sks'" in card
    assert "4 images of the teacher" in card


def test_a_lora_of_a_student_opens_on_it_in_diffusers(finetune, place):
    run = finetune("lora", "--lora")
    assert spec_of(run / "student")["teacher"] == str(place / "run" / "student")
    pipeline = StableDiffusionPipeline.from_pretrained(place / "run" / "student", safety_checker=None)
    before = pipeline("sks", num_inference_steps=2, guidance_scale=1, output_type="pt", generator=torch.manual_seed(0)).images
    pipeline.load_lora_weights(run / "student")
    after = pipeline("sks", num_inference_steps=2, guidance_scale=1, output_type="pt", generator=torch.manual_seed(0)).images
    assert not torch.equal(before, after)


@pytest.mark.parametrize("keep", ["distill", "adversarial", "plain"])
def test_every_candidate_trains(keep, finetune):
    run = finetune(keep, "--keep", keep)
    assert spec_of(run / "student")["num_inference_steps"] == [2]
    assert (run / "stages" / "teacher").is_dir() == (keep == "distill")


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["distill", "carry_distill", "adversarial", "plain"])
def test_every_candidate_trains_a_lora(keep, finetune):
    run = finetune(f"lora-{keep}", "--keep", keep, "--lora")
    assert spec_of(run / "student")["lora"]


@pytest.mark.slow
def test_a_lora_and_a_student_with_a_guidance_input_are_fine_tuned_with_all_weights(finetune, place, tiny_folder, halved_run):
    distill(settings_of(place, tiny_folder, "adapter", trainer__max_steps=1, lora__enabled=True, lora__rank=2))
    assert not spec_of(finetune("of-lora", student="adapter/student") / "student")["lora"]
    assert "is a LoRA itself" in finetune("of-lora-2", "--lora", student="adapter/student", code=2)
    slider = halved_run / "student-2"
    assert "it predicts v_prediction, and the teacher epsilon" in " ".join(finetune("v", student=slider, code=2).split())
    for keep in ("distill", "plain"):
        spec = spec_of(finetune(f"of-slider-{keep}", "--keep", keep, student=slider) / "student")
        assert spec["guidance"] == "embedded"
        assert spec["prediction_type"] == "v_prediction"


@pytest.mark.slow
def test_a_run_that_ended_early_resumes_in_its_second_stage(finetune):
    run = finetune("resumed", "--keep", "carry_distill")
    first = logged(run / "stages" / "teacher", "loss")
    (run / "student").rename(run / "former")
    finetune("resumed", "--keep", "carry_distill", "--set=trainer.max_steps=6", "--resume")
    assert logged(run / "stages" / "teacher", "loss")[: len(first)] == first
    assert len(logged(run, "loss")) == len(logged(run / "stages" / "teacher", "loss")) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "empty"}, "empty' holds no image, no shard and no parquet"),
        ({"data": "nowhere"}, "data: '.*nowhere'"),
        ({"student": "run"}, "student .* has no gendistill.json \\(there is .*student\\); expects the folder of a student"),
        ({"options": ("--prior-fraction", "1")}, "setting data.prior_fraction is 1.0; expects less than 1"),
        (
            {"options": ("--teacher", "{sd2}")},
            "keep carry: the teacher's change cannot be added .* as its weight .*expects distill",
        ),
    ],
    ids=["no image", "no folder", "no student", "no new image in a batch", "another teacher"],
)
def test_mistakes_are_one_sentence(options, sentence, finetune, place, family_folder):
    (place / "empty").mkdir(exist_ok=True)
    more = [str(family_folder("sd2")) if part == "{sd2}" else part for part in options.get("options", ())]
    places = {name: value for name, value in options.items() if name != "options"}
    shown = " ".join(finetune(f"mistake-{sentence[:4].strip()}", *more, code=2, **places).split())
    assert re.search(sentence, shown), shown
    assert "Traceback" not in shown
