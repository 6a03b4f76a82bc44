"""The fit of students to their teacher in `gendistill compare`, with and without LoRAs and ControlNets of the teacher."""

import json
from pathlib import Path

import pytest
import torch
from fresh_process import gendistill
from PIL import Image
from tiny_add_ons import save_control, save_lora
from tiny_pipeline import tiny_pipeline, tiny_unet

from gendistill.cli.shared import parse_controls
from gendistill.evaluation.compare import compare
from gendistill.evaluation.compare_fit import open_add_ons
from gendistill.evaluation.entries import open_entries
from gendistill.evaluation.evaluation_config import ComparisonConfig
from gendistill.samplers import FewStepSampler

ROOT = Path(__file__).parents[2]
HELD_OUT = "assets/emoji/heldout-*.tar.gz"
FEW = ["--steps", "2,1", "--caption", "subcategory", "--quick", "--num", "8", "--reference", HELD_OUT, "--device", "cpu"]


@pytest.fixture(scope="module")
def add_ons(tiny_folder, tmp_path_factory):
    """A folder with a LoRA, a ControlNet and a control image that differs in size from sampled images."""
    place = tmp_path_factory.mktemp("add-ons")
    network = FewStepSampler.from_pretrained(tiny_folder).pipeline.unet
    save_lora(network, place / "style")
    save_control(network, place / "edges")
    pixels = torch.randint(256, (40, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(place / "image.png")
    (place / "probes.yaml").write_text("attributes: {}\n")
    return place


@pytest.fixture(scope="module")
def models(tiny_folder, halved_run, gans):
    """The model entries of a comparison, by name."""
    names = ("teacher", "student", "gan")
    folders = [str(folder) for folder in (tiny_folder, halved_run, gans["teacher"])]
    return dict(zip(names, open_entries(folders, [1]), strict=True))


@pytest.fixture(scope="module")
def command(tiny_folder, halved_run, add_ons):
    given = ["--lora", add_ons / "style", "--control", f"{add_ons / 'edges'}={add_ons / 'image.png'}"]
    where = ["--probes", add_ons / "probes.yaml", "--cache", add_ons / "cache", "--out", add_ons / "out"]
    return ["compare", tiny_folder, halved_run, *FEW, "-w", "2", *given, *where]


@pytest.fixture(scope="module")
def compared(command, add_ons):
    process = gendistill(command, add_ons / "printed", folder=ROOT)
    assert process.wait() == 0, process.text
    return json.loads((add_ons / "out" / "comparison.json").read_text()), process.text


def test_the_figures_are_in_the_json_the_page_and_the_terminal(compared, add_ons):
    result, printed = compared
    fit = result["fits"]["run"]
    assert fit["sampling"] == {"teacher": [50, 2.0], "student": [2, 2.0]}
    assert fit["images"] == [8, 8]
    assert len(fit["layers"]) == 5
    assert [(one["kind"], Path(one["source"]).name) for one in fit["add_ons"]] == [("LoRA", "style"), ("ControlNet", "edges")]
    page = (add_ons / "out" / "report.html").read_text()
    assert "Does run still fit?" in page
    assert "drift of run's latents" in page
    assert "does it still fit? As a replacement of pipeline" in printed
    figures = [fit["latents"]["cosine"], fit["latents"]["procrustes"], *(one["effect"]["kept"] for one in fit["add_ons"])]
    for figure in figures:
        assert f"{figure:.3f}" in printed


def test_too_few_images_for_add_ons_cause_a_warning(compared):
    result, printed = compared
    sentence = "8 images are too few to measure the effects of LoRAs and ControlNets; use 64 or more"
    assert sentence in result["warnings"]
    assert f"warning: {sentence}" in printed


def test_measured_fits_are_cached(compared, command, add_ons):
    (file,) = (add_ons / "cache" / "fits").iterdir()
    kept = json.loads(file.read_text())
    kept["latents"]["cosine"] = 0.125
    file.write_text(json.dumps(kept))
    process = gendistill(command, add_ons / "printed again", folder=ROOT)
    assert process.wait() == 0, process.text
    assert json.loads((add_ons / "out" / "comparison.json").read_text())["fits"]["run"]["latents"]["cosine"] == 0.125


def test_an_add_on_that_was_trained_further_has_other_contents(models, add_ons, tmp_path):
    def contents():
        controls = [(str(add_ons / "edges"), str(add_ons / "image.png"))]
        return [one.contents for one in open_add_ons([str(tmp_path)], controls, [models["teacher"], models["student"]])]

    network = models["teacher"].samplers[1].pipeline.unet
    save_lora(network, tmp_path, strength=0.1)
    once = contents()
    assert contents() == once
    save_lora(network, tmp_path, strength=0.2)
    assert contents() != once


def compared_with(teacher, student, caption, place, add_ons):
    config = ComparisonConfig(
        HELD_OUT,
        caption=caption,
        num=4,
        steps=[2, 1],
        quick=True,
        extractor="emoji",
        probes=add_ons / "probes.yaml",
        cache=str(add_ons / "cache"),
        out=place / "out",
        device="cpu",
    )
    return compare([str(teacher), str(student)], config)


def test_a_student_and_a_model_of_another_latent_space_are_compared_without_a_fit(halved_run, add_ons, tmp_path):
    tiny_pipeline(tmp_path / "tokenizer", tiny_unet(sample_size=4)).save_pretrained(tmp_path / "small")
    found = compared_with(tmp_path / "small", halved_run, "subcategory", tmp_path, add_ons)
    assert found.fits == {}
    assert found.warnings[1:] == [
        "whether run still fits small was not measured: student: has latents of shape (4, 8, 8) and the teacher (4, 4, 4); "
        "expects models of one latent space"
    ]
    assert found.fit_table() is None
    assert "still fit?" not in (tmp_path / "out" / "report.html").read_text()


def test_a_student_and_a_gan_are_compared_without_a_fit(gans, halved_run, add_ons, tmp_path):
    found = compared_with(gans["teacher"], halved_run, "category", tmp_path, add_ons)
    assert found.fits == {}
    assert found.warnings[1:] == [
        "whether run still fits teacher was not measured: expects two diffusion models of one latent space"
    ]


def test_a_missing_lora_is_one_sentence_before_anything_is_sampled(tiny_folder, halved_run, tmp_path):
    where = ["--lora", "nowhere", "--cache", tmp_path / "cache", "--out", tmp_path]
    process = gendistill(["compare", tiny_folder, halved_run, *FEW, *where], tmp_path / "printed", folder=ROOT)
    assert process.wait() == 2, process.text
    assert "error: lora nowhere: expects an existing .safetensors file, or a folder with pytorch_lora" in process.text
    assert "Traceback" not in process.text
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("given", "options", "sentence"),
    [
        (
            "teacher",
            "--lora style",
            "--lora style: expects a diffusion model as the first model, and a student of it after that",
        ),
        ("student teacher", "--control edges=image.png", "--control edges: expects a diffusion model as the first model"),
        ("gan student", "--lora style", "--lora style: expects a diffusion model as the first model"),
        ("teacher gan", "--lora style", "and a student of it after that"),
        ("teacher student", "--control edges", "--control 'edges': expects FOLDER=IMAGE, such as my-edges=edges.png"),
        ("teacher student", "--control edges=no.png", "--control edges=no.png: image: cannot be decoded"),
        ("teacher student", "--control style=image.png", "control style: expects an existing folder of a ControlNet"),
    ],
)
def test_add_ons_that_cannot_be_loaded_are_errors(given, options, sentence, models, add_ons, monkeypatch):
    monkeypatch.chdir(add_ons)
    kind, value = options.split()
    loras, controls = ([value], []) if kind == "--lora" else ([], [value])
    with pytest.raises(ValueError, match=sentence):
        open_add_ons(loras, parse_controls(controls), [models[name] for name in given.split()])


def test_the_folder_of_a_control_net_may_have_any_name():
    assert parse_controls(["runs/lr=1e-4/edges=cat.png"]) == [("runs/lr=1e-4/edges", "cat.png")]
