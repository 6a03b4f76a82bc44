"""GAN folders from the command line: sampled from and evaluated, in fresh processes."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import gendistill
from PIL import Image
from random_gans import CLASSES

from gendistill.evaluation.class_captions import class_caption
from gendistill.gan.gan_folder import open_gan, save_gan
from gendistill.gan.generator import slerp
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import extract, load_extractor
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.metrics.pairs.fidelity import psnr
from gendistill.samplers import to_uint8
from gendistill.sampling.load import open_sampler, open_teacher_of

ROOT = Path(__file__).parents[2]
HELD_OUT = "assets/emoji/heldout-*.tar.gz"
NUM = 60


def ran(arguments, place, code=0):
    process = gendistill([*arguments, "--device", "cpu"], place / "printed", folder=ROOT)
    assert process.wait() == code, process.text
    assert "Traceback" not in process.text
    return process.text


@pytest.fixture(scope="module")
def evaluated(gans, evaluation_cache, tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluated")
    few = ["--reference", HELD_OUT, "--caption", "category", "--num", str(NUM), "--cache", evaluation_cache]
    printed = ran(["evaluate", gans["student"], *few, "--out", place / "out"], place)
    return place, printed, json.loads((place / "out" / "evaluation.json").read_text())


def test_a_grid_has_a_row_a_class_and_image_k_is_of_seed_k(gans, tmp_path):
    printed = ran(["sample", gans["teacher"], "--num", "3", "--seed", "5", "--out", tmp_path / "grid.png"], tmp_path)
    assert "60 images of 1 step" in printed
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (3 * 34 + 2, 20 * 34 + 2)
    row, column = 7, 1
    (image,) = open_sampler(gans["teacher"]).images([CLASSES[row]], [5 + 3 * row + column])
    shown = np.asarray(grid)[2 + 34 * row : 34 * (row + 1), 2 + 34 * column : 34 * (column + 1)]
    assert np.abs(shown.astype(int) - to_uint8(image)[0].permute(1, 2, 0).numpy()).max() <= 1


def test_classes_are_asked_for_by_name_or_number_in_any_batch_size(gans, tmp_path):
    generated = {}
    for batch in (1, 16):
        prompts = ["--prompt", CLASSES[4], "--prompt", "4", "--num", "2", "--batch-size", str(batch)]
        ran(["sample", gans["teacher"], *prompts, "--out", tmp_path / f"{batch}.npy"], tmp_path)
        generated[batch] = np.load(tmp_path / f"{batch}.npy")
    assert generated[1].shape == (4, 32, 32, 3)
    np.testing.assert_allclose(generated[1], generated[16], atol=1e-5, rtol=0)


def test_strips_go_from_one_noise_to_another_on_the_great_circle(gans, tmp_path):
    arguments = ["--prompt", CLASSES[2], "--interpolate", "5", "--num", "2", "--seed", "9", "--out", tmp_path / "strips.npy"]
    ran(["sample", gans["teacher"], *arguments], tmp_path)
    strips = torch.from_numpy(np.load(tmp_path / "strips.npy")).unflatten(0, (2, 5))
    sampler = open_sampler(gans["teacher"])
    a, b = (torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in (11, 12))
    with torch.no_grad():
        middle = sampler.generator(slerp(a, b, torch.tensor([[0.5]])), torch.tensor([2]))[0] / 2 + 0.5
    torch.testing.assert_close(strips[1, 2].permute(2, 0, 1), middle, atol=1e-5, rtol=0)


def test_a_generator_of_images_generates_a_folder(gans, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.effect_noise((20, 16), 30 + number).convert("RGB").save(tmp_path / "in" / f"{number}.png")
    out = ["--out", tmp_path / "generated"]
    ran(["sample", gans["painter"], "--input", tmp_path / "in", *out], tmp_path)
    assert [Image.open(file).size for file in sorted((tmp_path / "generated").glob("*.png"))] == [(32, 32)] * 3


ARGUMENTS = ("latent_dim", "num_classes", "channels", "class_dim")
MISTAKES = [
    (("sample", "teacher", "--steps", "4"), "steps 4: expects 1, a generator samples in one call"),
    (("sample", "teacher", "--guidance-scale", "2"), "guidance_scale 2: a generator has no guidance; expects 1"),
    (("sample", "teacher", "--interpolate", "3", "--guidance-scale", "2"), "guidance_scale 2: a generator has no guidance"),
    (("sample", "teacher", "--prompt", "flag"), "prompt 'flag': .* the nearest is 'google emoji of flags'"),
    (("sample", "painter"), "--input: expects images, which .* translates"),
    (("sample", "teacher", "--input", "."), "--input .: the model samples images from classes; expects no --input"),
    (("sample", "assets/tiny-sd", "--prompt", "a", "--interpolate", "3"), "interpolate 3: expects a GAN; this is a StableDif"),
    (("evaluate", "teacher", "--steps", "4"), "steps 4: expects 1, a generator samples in one call"),
    (
        ("evaluate", "student", "--teacher", "nowhere"),
        "teacher nowhere: expects a GAN folder .*; there is no such file or folder",
    ),
    (("evaluate", "student", "--teacher", "plain"), "its output_shape is .1, 12, 24. and the student's .3, 32, 32."),
    (("evaluate", "teacher", "--caption", "subcategory"), "prompt 'google emoji of .*': the generator expects one of its 20"),
    (("evaluate", "painter"), "--input: expects the images that the generator is to translate"),
    (("compare", "painter"), "translates input images and has no prompts; expects gendistill evaluate --input FOLDER"),
    (("compare", "teacher", "--steps", "4,2"), r"steps \[4, 2\]: .* is a GAN, with a step count of 1; expects one of them"),
]


@pytest.mark.parametrize(("command", "sentence"), MISTAKES, ids=[" ".join(command) for command, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(gans, command, sentence, evaluation_cache, tmp_path):
    arguments = [str(gans.get(part, part)) for part in command]
    if command[0] == "sample":
        arguments += ["--out", str(tmp_path / "out.png")]
    else:
        arguments += ["--reference", HELD_OUT, "--num", "20", "--out", tmp_path / "out", "--cache", evaluation_cache]
    told = ran(arguments, tmp_path, code=2)
    assert re.search(r"error: .*" + sentence, told)


def test_an_evaluation_has_a_row_of_the_student_and_one_of_its_teacher(evaluated):
    _, printed, result = evaluated
    (student,), (teacher,) = result["student"], result["teacher"]
    assert (student["model"], teacher["model"]) == ("student", "teacher")
    both = {"fd-emoji", "kd-emoji", "precision", "recall", "density", "coverage", "vendi", "diversity", "clip_score"}
    for row in (student, teacher):
        assert both < row["scores"].keys() == row["intervals"].keys()
        assert row["network_calls"] == row["protocol"]["num_inference_steps"] == 1
    assert {"psnr", "ssim", "feature_cosine"} == student["scores"].keys() - teacher["scores"].keys()
    ratio = student["scores"]["fd-emoji"] / teacher["scores"]["fd-emoji"]
    assert result["fd_ratio"] == pytest.approx(ratio)
    assert f"{ratio:.2f}× the teacher's" in printed
    assert result["test"]["n"] == NUM


def test_costs_are_counted_and_timed_side_by_side(evaluated, gans):
    _, _, result = evaluated
    for row in (*result["student"], *result["teacher"]):
        network = open_sampler(gans[row["model"]]).generator.network
        assert row["costs"]["parameters"] == sum(parameter.numel() for parameter in network.parameters())
        assert row["costs"]["macs"] > 32 * 32 * network.out.weight.numel()  # of the last convolution, by hand
    assert result["compression"]["macs"] > 1
    assert [of["batch_size"] for of in result["side_by_side"]] == [1, 16]
    for of in result["side_by_side"]:
        medians = {name: float(np.median(rounds)) for name, rounds in of["rounds"].items()}
        assert result["speed_up"][str(of["batch_size"])] == pytest.approx(medians["teacher"] / medians["student"])


def test_the_figures_are_those_of_the_images_that_were_sampled(evaluated, gans, evaluation_cache):
    """Generated once more by hand: prompts by frequency, the seeds of the evaluation."""
    from gendistill.evaluation.evaluation_config import EvaluationConfig
    from gendistill.evaluation.evaluator import build_evaluator

    _, _, result = evaluated
    evaluator = build_evaluator(EvaluationConfig(HELD_OUT, caption="category", num=NUM, cache=str(evaluation_cache)))
    generated = {}
    for name in ("teacher", "student"):
        images = open_sampler(gans[name]).images(evaluator.prompts, evaluator.seeds)
        generated[name] = to_uint8(torch.cat(list(images)))
    features = extract(load_extractor("emoji"), generated["student"])
    distance = frechet_distance(gaussian_statistics(features), evaluator.reference.statistics)
    scores = result["student"][0]["scores"]
    assert scores["fd-emoji"] == pytest.approx(distance, rel=1e-2)
    assert scores["psnr"] == pytest.approx(psnr(generated["student"], generated["teacher"]).mean().item(), abs=0.05)
    clip = load_scorer("assets/tiny-clip").score(generated["student"], evaluator.prompts).mean().item()
    assert scores["clip_score"] == pytest.approx(clip, abs=0.1)


def test_the_report_shows_both_from_the_same_noise_and_between_noises_and_loads_nothing(evaluated):
    place, _, _ = evaluated
    page = (place / "out" / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page)
    for title, images in (("Figures", 0), ("The same noise", 2), ("Interpolations", 2)):
        section = page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]
        assert section.count("<img") == images
        assert "teacher" in section
        assert "student" in section


def test_a_teacher_alone_is_evaluated_into_rows_and_its_caption_field_is_found(gans, evaluation_cache, tmp_path):
    few = ["--reference", HELD_OUT, "--num", "20", "--cache", evaluation_cache, "--out", tmp_path / "out", "--json"]
    ran(["evaluate", gans["teacher"], *few], tmp_path)
    (row,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert row["model"] == "teacher"
    assert row["protocol"]["prompts"].startswith("20 prompts sampled by frequency from the category captions of")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["evaluation.json"]


def test_a_student_is_held_against_a_teacher_that_is_a_class_of_the_users_own(gans, tmp_path):
    teacher, student = open_sampler(gans["teacher"]), open_gan(gans["student"])
    weights = gans["teacher"] / "generator" / "diffusion_pytorch_model.safetensors"
    network = teacher.generator.network
    (tmp_path / "arguments.json").write_text(json.dumps({name: network.config[name] for name in ARGUMENTS}))
    path = "gendistill.gan.architectures.resnet:ResNetGenerator"
    told = {**student.student, "teacher": path, "teacher_config": str(tmp_path / "arguments.json")}
    told["generator"] = {"weights": str(weights), "num_classes": 20, "input_shape": [16]}
    save_gan(tmp_path / "student", dataclasses.replace(student, student=told))
    opened = open_teacher_of(open_sampler(tmp_path / "student"))
    assert opened.weights_hash == teacher.weights_hash


def test_the_field_that_names_a_gans_classes_is_the_one_that_holds_nothing_else(gans):
    teacher, plain = open_sampler(gans["teacher"]), open_sampler(gans["plain"])
    assert class_caption(HELD_OUT, [teacher, plain]) == "category"
    assert class_caption(HELD_OUT, [plain]) is None
    few = open_sampler(gans["few"])
    with pytest.raises(ValueError, match=r"caption: no field of .* names the model's classes \('cat', 'dog', ...\)"):
        class_caption(HELD_OUT, [few])


def test_a_generator_of_oblong_images_without_classes_is_evaluated_without_clip(gans, evaluation_cache, tmp_path):
    few = ["--reference", HELD_OUT, "--num", "20", "--cache", evaluation_cache, "--out", tmp_path / "out"]
    ran(["evaluate", gans["plain"], "--extractor", "emoji", *few], tmp_path)
    (row,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "clip_score" not in row["scores"]
    assert row["protocol"]["clip_model"] is None
