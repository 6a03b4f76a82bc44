"""What the commands of the documentation name: models, students, images and files of their names, all of them tiny."""

import dataclasses
import io
import json
import shutil
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from code_blocks import ROOT, blocks_of
from diffusers import UNet2DConditionModel
from original_checkpoint import save_checkpoint
from PIL import Image
from safetensors.torch import save_file
from tiny_add_ons import save_control, save_lora
from tiny_pipeline import tiny_pipeline
from tiny_runs import settings_of
from unseen_generators import UNSEEN

from gendistill.evaluation import compare, evaluate, sets
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.run import distill
from gendistill.run.config import load_config

IMAGES = 16


@pytest.fixture(scope="session")
def students(tiny_folder, tmp_path_factory):
    """A student with all weights and a LoRA, of one step of training each."""
    place = tmp_path_factory.mktemp("students")
    changes = {"steps": [4, 2, 1], "trainer__max_steps": 1, "data__num_synthetic": 2}
    full = distill.distill(settings_of(place, tiny_folder, "full", **changes))
    lora = distill.distill(settings_of(place, tiny_folder, "lora", lora__enabled=True, lora__rank=2, **changes))
    return SimpleNamespace(full=full.student_folder, lora=lora.student_folder)


@pytest.fixture(scope="session")
def stand_ins(tiny_folder, family_folder, halved_run, gans, students, tmp_path_factory):
    """A folder with everything that the pages name; a page works in a copy, in which large things are links."""
    place = tmp_path_factory.mktemp("stand-ins")
    models = {
        **dict.fromkeys(
            ("my-model", "my-fine-tune", "my-merged-model", "stable-diffusion-v1-5/stable-diffusion-v1-5"), tiny_folder
        ),
        **dict.fromkeys(("my-sdxl-student", "stabilityai/stable-diffusion-xl-base-1.0"), family_folder("sdxl")),
        "my-ddpm": family_folder("unconditional"),
        **dict.fromkeys(
            ("runs/mine/student", "runs/full/student", "runs/alignment/student", "runs/demo/student"), students.full
        ),
        "runs/first/student": students.full,
        "runs/sd15/student": students.lora,
        "runs/gan/student": gans["student"],
        "runs/progressive": halved_run,
        "assets": ROOT / "assets",
        "configs": ROOT / "configs",
    }
    for name, folder in models.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(folder)
    network = UNet2DConditionModel.from_pretrained(tiny_folder / "unet")
    for name in ("my-canny", "my-edges"):
        save_control(network, place / name)
    save_lora(network, place / "style")
    (place / "my-loras").mkdir()
    shutil.copy(place / "style" / "pytorch_lora_weights.safetensors", place / "my-loras" / "other.safetensors")
    shutil.copytree(place / "my-loras", place / "runs" / "recipes" / "style-loras")
    shutil.copy(place / "my-loras" / "other.safetensors", place / "runs" / "recipes" / "style-loras" / "hue.safetensors")
    (place / "runs" / "recipes" / "styles" / "hue").mkdir(parents=True)
    (place / "runs" / "recipes" / "styles" / "hue" / "prompts.txt").write_text("food\nanimals\n")
    shutil.move(place / "style" / "pytorch_lora_weights.safetensors", place / "style.safetensors")
    save_checkpoint(tiny_pipeline(place / "tokenizer"), place / "my-fine-tune.safetensors")
    (place / "prompts.txt").write_text("food\nanimals\n")
    recipe = next(block for block in blocks_of(ROOT / "docs/methods/sequence.md") if block.language == "yaml")
    (place / "sequence.yaml").write_text(recipe.text)
    (place / "mine.yaml").write_text("lora: {enabled: true}\n")
    own = UNSEEN[1]
    save_file(own.build(place).state_dict(), place / "g.safetensors")
    (place / "my_module.py").write_text(f"{own.source}\n\nclass Generator({own.class_name}):\n    pass\n")
    _write_images(place)
    return place


def _write_images(place):
    """my-images/, real.zip, shards/, few-emoji/ and single images: random pixels of 32 x 32 with captions."""
    random = np.random.default_rng(0)
    (place / "my-images").mkdir()
    (place / "shards").mkdir()
    rows = []
    with zipfile.ZipFile(place / "real.zip", "w") as archive, tarfile.open(place / "shards" / "train-000.tar", "w") as shard:
        for number in range(IMAGES):
            file = place / "my-images" / f"{number}.png"
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file)
            rows.append(json.dumps({"file_name": file.name, "text": f"image of food {number % 4}"}))
            archive.write(file, file.name)
            _add(shard, f"{number:03}.png", file.read_bytes())
            _add(shard, f"{number:03}.txt", b"food")
    (place / "my-images" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    for name, number in {"street.png": 0, "edges.png": 1}.items():
        shutil.copy(place / "my-images" / f"{number}.png", place / name)
    Image.fromarray(np.tile(np.uint8([0, 255]), (32, 16))).save(place / "car.png")
    (place / "few-emoji").mkdir()
    few_emoji = place / "few-emoji" / "train-000.tar"
    with tarfile.open(ROOT / "assets" / "emoji" / "train-000.tar.gz") as emoji, tarfile.open(few_emoji, "w") as few:
        for member, _ in zip(emoji, range(3 * IMAGES), strict=False):
            few.addfile(member, emoji.extractfile(member))


def _add(shard, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


@pytest.fixture
def small(monkeypatch, stand_ins, tmp_path, tiny_folder, gans):
    """The working folder of a page, in which every run is one step of training and every evaluation a few images.

    Commands are read and checked as they stand. Only then their settings are made small, and what they would download or what
    takes minutes (the embedded teachers and their data) gives way to something tiny.
    """
    shutil.copytree(stand_ins, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    emoji = str(stand_ins / "few-emoji" / "train-*.tar")
    embedded = {"assets/tiny-sd": str(tiny_folder), "assets/tiny-gan": str(gans["teacher"])}

    def reference(path):
        return emoji if "assets/emoji" in path else path

    def small_distill(config=None, *, resume=False, _run=distill.distill, **settings):
        config = load_config(None, settings) if config is None else config
        config.teacher = embedded.get(config.teacher, config.teacher)
        if config.data.path:
            config.data.path = reference(config.data.path)
        if config.teacher.endswith(".safetensors"):
            config.teacher_config = str(tiny_folder)
        if (config.start or config.decoder.start) and config.method != "fine_tuning":
            config.start, config.decoder.start = None, None
        _shrink(config)
        AcceleratorState._reset_state(reset_partial_state=True)  # a process of the command line has one run
        student = tmp_path / config.out / "student"
        if student.is_symlink() and not resume:
            student.unlink()  # a stand-in, until a command of the page makes it
        return _run(config, resume=resume and not student.is_symlink())

    def small_evaluation(config):
        few = {"num": 8, "reference": reference(config.reference)}
        if config.extractor in (None, "inception"):
            few["extractor"] = "emoji"  # Inception's weights are a download
        return dataclasses.replace(config, **few)

    def small_evaluate(model, config=None, _run=evaluate.evaluate, **options):
        return _run(model, small_evaluation(EvaluationConfig(**options) if config is None else config))

    def small_compare(models, config, _run=compare.compare):
        counts = [count for count in config.steps or () if count <= 4] or [2, 1]
        few = dataclasses.replace(small_evaluation(config), steps=counts, quick=True)
        return _run([embedded.get(model, model) for model in models], few)

    def small_statistics(images, out, *, extractor=None, _run=sets.save_statistics, **options):
        return _run(images, out, extractor="emoji", **options)

    monkeypatch.setattr(distill, "distill", small_distill)
    monkeypatch.setattr(evaluate, "evaluate", small_evaluate)
    monkeypatch.setattr(compare, "compare", small_compare)
    monkeypatch.setattr(sets, "save_statistics", small_statistics)
    yield tmp_path
    sys.modules.pop("my_module", None)


def _shrink(config):
    """One step of training, of a batch of 2, on a few samples."""
    limits = {"max_steps": 1, "max_minutes": None, "batch_size": 2, "gradient_accumulation_steps": 1, "num_validation": 4}
    config.distribution_matching.fake_score.steps = 1
    config.watch.prompts = 0
    config.sequence.stages = [{**stage, "trainer": {}} for stage in config.sequence.stages]
    config.trainer = config.trainer.model_copy(update={**limits, "trackers": [], "optimizer": "adamw"})
    config.device, config.lora.rank = "cpu", 2
    config.data.num_synthetic, config.data.synthetic_steps, config.data.num_prior = 4, 2, 4
    config.align.trajectories, config.align.trajectory_steps = 4, 2
    config.progressive = config.progressive.model_copy(
        update={"start_steps": 2 * max(config.steps), "stages": {}, "grid": None}
    )
    config.compression.trainer, config.compression.steps = {}, 2
    config.decoder.width, config.decoder.blocks, config.decoder.copies = 8, 1, 1
    config.gan.pairs, config.validation_reference = 0, None
    if config.steps == [50]:
        config.steps = [2]
    torch.manual_seed(0)
