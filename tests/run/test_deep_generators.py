"""ESRGAN in small: a deep generator is compressed 10 times, with fewer blocks, by the command that people run."""

import statistics
import time
from pathlib import Path

import pytest
import torch
from fresh_process import gendistill

from gendistill.gan.architectures.rrdb import RRDBGenerator
from gendistill.gan.gan_export import open_onnx
from gendistill.gan.gan_folder import Gan, NetworkSource, open_gan, save_gan
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.networks import counting
from gendistill.networks.pruning.pruned_architecture import RemovedBlock

ROOT = Path(__file__).parents[2]
ARGUMENTS = {"channels": 32, "growth": 16, "num_blocks": 23}
SETTINGS = {
    "data.path": str(ROOT / "assets/emoji/heldout-*.tar.gz"),
    "data.caption": "category",
    "gan.adversarial": 0,
    "gan.features.hints": 0,
    "gan.output.perceptual": 0,
    "trainer.batch_size": 4,
    "trainer.learning_rate": 1e-3,
    "trainer.warmup_steps": 0,
    "trainer.validate_every": 20,
    "trainer.checkpoint_every": 20,
    "trainer.num_validation": 16,
}


def seconds(generator, image):
    started = time.process_time()
    generator(image)
    return time.process_time() - started


@pytest.mark.slow
@torch.inference_mode()
def test_esrgan_is_compressed_10_times_with_fewer_blocks_and_is_6_times_as_fast(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts/recipes")
    from train_esrgan import start_as_interpolation

    torch.manual_seed(0)
    network = RRDBGenerator(**ARGUMENTS)
    start_as_interpolation(network)
    source = NetworkSource("gendistill.gan.architectures.rrdb:RRDBGenerator", ARGUMENTS)
    teacher = Generator(network.eval(), GeneratorSpec("image", (3, 8, 8), (3, 32, 32)))
    save_gan(tmp_path / "teacher", Gan(teacher, source))
    given = {**SETTINGS, "data.cache": str(tmp_path / "cache"), "trainer.max_steps": 40}
    arguments = ["distill", str(tmp_path / "teacher"), "--method", "gan", "--compress", "10", "--device", "cpu"]
    arguments += ["--out", str(tmp_path / "run"), *(f"--set={name}={value}" for name, value in given.items())]
    for more in ([], ["--set=trainer.max_steps=60", "--resume"]):  # the same blocks are removed when it resumes
        process = gendistill([*arguments, *more], tmp_path / "log.txt", folder=tmp_path)
        assert process.wait() == 0, process.text

    student = open_gan(tmp_path / "run" / "student").generator
    assert sum(isinstance(module, RemovedBlock) for module in student.network.modules()) == 20
    assert counting.macs(network, teacher.example()) / counting.macs(student.network, student.example()) > 9
    for edge in (64, 128):
        image = torch.rand(1, 3, edge // 4, edge // 4) * 2 - 1
        times = [(seconds(teacher, image), seconds(student, image)) for _ in range(9)][2:]
        assert statistics.median(large / small for large, small in times) > 6
    programs = torch.export.load(tmp_path / "run" / "student" / "generator.pt2").module()
    for program in (programs, open_onnx(tmp_path / "run" / "student" / "generator.onnx")):
        for size in ((8, 8), (24, 16), (20, 31)):
            image = torch.rand(2, 3, *size) * 2 - 1
            torch.testing.assert_close(program(image), student(image), atol=1e-4, rtol=0)
    image = torch.rand(8, 3, 8, 8) * 2 - 1
    assert (student(image) - teacher(image)).abs().mean() < 0.5
