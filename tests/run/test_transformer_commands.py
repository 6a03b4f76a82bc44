"""Every command on a student of Stable Diffusion 3 and of Flux: planned, sampled, served, evaluated and compared."""

import contextlib
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import settings_of

from gendistill import cli
from gendistill.run.distill import distill
from gendistill.sampling.load import ON_CPU
from gendistill.serve.image_request import RequestLimits, read_request
from gendistill.serve.studio import open_models, studio_of

FEW = ["--reference", "assets/emoji/heldout-*.tar.gz", "--caption", "subcategory", "--num", "4", "--device", "cpu"]


@pytest.fixture(scope="module", params=["sd3", "flux"])
def run(request, family_folder, tmp_path_factory):
    """The folder of a run of one step."""
    place, sized = tmp_path_factory.mktemp("run"), {"data__resolution": 32} if request.param == "flux" else {}
    config = settings_of(place, family_folder(request.param), "run", trainer__max_steps=1, trainer__num_validation=2, **sized)
    distill(config)
    return place / "run"


@pytest.fixture
def command(monkeypatch, capsys):
    """command(...): what a command writes to standard output."""

    def of(*arguments):
        monkeypatch.setattr(sys, "argv", ["gendistill", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            cli.main()
        shown = capsys.readouterr()
        assert "error: " not in shown.err, shown.err
        return shown.out

    return of


def test_it_is_planned_and_sampled_from_prompts_and_images(run, command, tmp_path):
    student, image = run / "student", tmp_path / "image.png"
    assert json.loads(command("plan", student, "--json"))
    command("sample", student, "--prompt", "food", "--device", "cpu", "--out", image)
    assert Image.open(image).size == (32, 32)
    changed = "sample", student, "--prompt", "food", "--device", "cpu", "--input", image, "--strength", "0.5"
    command(*changed, "--out", tmp_path / "changed.npy")
    changed = np.load(tmp_path / "changed.npy")
    assert changed.shape == (1, 32, 32, 3)
    assert np.abs(changed[0] - np.asarray(Image.open(image)) / 255).max() > 0.01


def test_it_is_served_next_to_its_teacher(run):
    models, notes = open_models(str(run / "student"), None, ON_CPU)
    assert (list(models), notes) == (["student", "teacher"], [])
    with studio_of(models, RequestLimits()) as studio:
        fields = {"prompt": "food", "seed": 3, "size": "32x32"}
        start = Image.effect_noise((40, 30), 50).convert("RGB")
        changes = [{}, {"image": start, "strength": 0.5}, {"model": "teacher", "steps": 2}]
        requests = [read_request({**fields, **change}, studio.offers, studio.limits) for change in changes]
        images = [studio.worker.submit(request).result().images for request in requests]
    assert [image.shape for image in images] == [(1, 32, 32, 3)] * 3
    assert not torch.equal(images[0], images[1])


@pytest.mark.slow
def test_it_is_evaluated_and_compared_with_its_teacher(run, command, tmp_path):
    places = ["--cache", tmp_path / "cache", "--out", tmp_path / "out"]
    found = json.loads(command("evaluate", run, *FEW, *places, "--json"))
    assert [row["network_calls"] for row in found["student"]] == [2]
    assert max(row["network_calls"] for row in found["teacher"]) >= 50
    command("compare", run, *FEW, *places, "--quick")
    assert (tmp_path / "out" / "report.html").exists()
