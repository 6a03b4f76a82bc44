"""What can be wrong with a GAN distillation is exit code 2 and one sentence; nothing of a stranger's file is run."""

import os
import sys

import pytest
import torch
from fresh_process import gendistill
from harmful import Harmful
from PIL import Image
from safetensors.torch import save_file
from tiny_gans import tiny_gan, tiny_translator

from gendistill import cli
from gendistill.gan.architectures.resnet import ResNetDiscriminator
from gendistill.gan.gan_folder import save_gan

# Imported once, so a name that no other test's module has.
MODULE = '''
import torch
from torch import nn


class TrajectoryTeacher(nn.Module):
    """Noise (B, 4) to images (B, 3, 8, 8)."""

    def __init__(self, width=16):
        super().__init__()
        self.start, self.generate = nn.Linear(4, width * 16), nn.ConvTranspose2d(width, 3, 4, 2, 1)

    def forward(self, z):
        return torch.tanh(self.generate(torch.relu(self.start(z)).unflatten(1, (-1, 4, 4))))


class Styled(TrajectoryTeacher):
    def forward(self, z, style_code, strength):
        return super().forward(z) * strength


class Larger(TrajectoryTeacher):
    def forward(self, z):
        return nn.functional.interpolate(super().forward(z), scale_factor=2)


class Other(TrajectoryTeacher):
    """It takes more noise."""

    def __init__(self):
        super().__init__()
        self.start = nn.Linear(5, 16 * 16)
'''


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    """A folder with good teachers and all that can be wrong with them."""
    place = tmp_path_factory.mktemp("gan-mistakes")
    (place / "mistaken_painters.py").write_text(MODULE)
    (place / "mistaken_broken.py").write_text("import a_module_that_nobody_has")
    (place / "diffusion").symlink_to(tiny_folder)
    save_gan(place / "gan", tiny_gan())
    save_gan(place / "translator", tiny_translator())
    ResNetDiscriminator(resolution=32, num_classes=3, channels=[8, 8]).save_pretrained(place / "judge32")
    sys.path.insert(0, str(place))
    import mistaken_painters

    trajectory_teacher = mistaken_painters.TrajectoryTeacher()
    save_file(trajectory_teacher.state_dict(), place / "weights.safetensors")
    save_file(mistaken_painters.TrajectoryTeacher(24).state_dict(), place / "wider.safetensors")
    sys.path.remove(str(place))
    torch.save({"state_dict": trajectory_teacher.state_dict(), "owner": Harmful()}, place / "harmful.pth")
    torch.save(trajectory_teacher, place / "whole.pth")
    torch.jit.trace(trajectory_teacher, torch.zeros(2, 4)).save(str(place / "program.pt"))
    (place / "list.json").write_text("[1, 2]")
    for name, caption in (("birds", "bird"), ("cats", "cat")):
        (place / name).mkdir()
        for number in range(3):
            Image.effect_noise((20, 16), 30 + number).convert("RGB").save(place / name / f"{number}.png")
            (place / name / f"{number}.txt").write_text(caption)
    (place / "prompts.txt").write_text("cat\n")
    return place


COMMON = "--out run --device cpu --set data.cache=cache --set trainer.max_steps=1 --set trainer.trackers=[]"
GAN = f"distill gan --method gan {COMMON}"
OWN = f"distill mistaken_painters:TrajectoryTeacher --method gan {COMMON}"
MISTAKES = {
    "a pickle that would run code": (
        f"{OWN} --compress 2 --weights harmful.pth",
        "harmful.pth: is a pickle that would run code when opened",
    ),
    "a whole network in a pickle": (f"{OWN} --compress 2 --weights whole.pth", "would run code when opened"),
    "weights of another network": (f"{OWN} --compress 2 --weights wider.safetensors", "generator.weights wider.safetensors"),
    "no such weights": (f"{OWN} --compress 2 --weights nowhere.safetensors", "nowhere.safetensors"),
    "weights as the teacher": (
        f"distill weights.safetensors --method gan --compress 2 {COMMON}",
        "expects module:Class as the",
    ),
    "a program as the teacher": (
        f"distill program.pt --method gan --compress 2 {COMMON}",
        "teacher program.pt: is a program (TorchScript or torch.export), and programs are not opened",
    ),
    "a forward with unknown arguments": (
        f"distill mistaken_painters:Styled --method gan --compress 2 {COMMON}",
        "style_code",
    ),
    "a discriminator of another resolution": (
        f"{GAN} --compress 2 --set generator.discriminator=judge32",
        "is for images of 32x32, but the generator outputs 16x16; expects a discriminator for 16x16, or --set generator.discr",
    ),
    "compress 0.5": (f"{GAN} --compress 0.5", "compress 0.5: expects a factor above 1, such as 4"),
    "compress 1": (f"{GAN} --compress 1", "compress 1: expects a factor above 1, such as 4"),
    "compress nan": (f"{GAN} --compress nan", "compress"),
    "no size": (GAN, "compress: expects --compress 4, --student-params, --student-macs or --student module:Class"),
    "two sizes": (
        f"{GAN} --compress 2 --student-params 900",
        "compress.factor: cannot be combined with compress.params or compress.macs",
    ),
    "a size that cannot be reached": (f"{GAN} --compress 100000", "the nearest that can be reached is"),
    "more than the teacher has": (f"{GAN} --student-params 99000000", "and less than the teacher's"),
    "a module to keep that is not there": (f"{GAN} --compress 2 --set compress.keep=[nowhere]", "keep nowhere: "),
    "a diffusion model": (
        f"distill diffusion --method gan --compress 2 {COMMON}",
        "teacher diffusion: is a diffusion model; --method gan expects a GAN folder",
    ),
    "another method for a folder": (
        f"distill gan --method consistency --data cats {COMMON}",
        "teacher gan: is a GAN, which --method consistency cannot distill; expects --method gan",
    ),
    "another method for a class": (
        f"distill mistaken_painters:TrajectoryTeacher --method progressive --data cats {COMMON}",
        "is a GAN, which --method progressive cannot distill; expects --method gan",
    ),
    "captions that are no classes": (f"{GAN} --compress 2 --data birds", "none of 3 images of"),
    "prompts": (f"{GAN} --compress 2 --prompts prompts.txt", "data.prompts prompts.txt: a GAN has no prompts"),
    "prompts as data": (f"{GAN} --compress 2 --data prompts.txt", "data.path prompts.txt is a prompt file; expects images"),
    "no such data": (f"{GAN} --compress 2 --data nowhere", "'nowhere' does not exist"),
    "no images to generate from": (
        f"distill translator --method gan --compress 2 {COMMON}",
        "data.path: not set; an image-to-image generator expects input images",
    ),
    "a LoRA": (f"{GAN} --compress 2 --lora", "lora.enabled: a GAN student has weights of its own; expects false"),
    "half precision": (f"{GAN} --compress 2 --dtype float16", "dtype float16: expects float32 for a GAN teacher"),
    "a missing module": (
        f"distill nowhere.painters:TrajectoryTeacher --method gan --compress 2 {COMMON}",
        "the module nowhere.painters is not importable, neither from the working directory nor installed",
    ),
    "a missing class": (
        f"distill mistaken_painters:TrajectoryTeachr --method gan --compress 2 {COMMON}",
        "has no class TrajectoryTeachr; did you mean TrajectoryTeacher?",
    ),
    "a module that needs another": (
        f"distill mistaken_broken:Net --method gan --compress 2 {COMMON}",
        "mistaken_broken needs a_module_that_nobody_has, which is not installed",
    ),
    "arguments that are none": (
        f"{OWN} --compress 2 --teacher-config list.json",
        "teacher_config list.json: expects a mapping",
    ),
    "no such teacher": (f"distill nowhere --method gan --compress 2 {COMMON}", "teacher nowhere: expects a GAN folder"),
    "a student of other images": (
        f"{OWN} --weights weights.safetensors --student mistaken_painters:Larger",
        "compress.student mistaken_painters:Larger: generates 3x16x16, its teacher 3x8x8",
    ),
    "a student of other noise": (
        f"{OWN} --weights weights.safetensors --student mistaken_painters:Other",
        "compress.student mistaken_painters:Other: cannot be called as its teacher is",
    ),
    "a student of a class and a size": (
        f"{OWN} --compress 2 --student mistaken_painters:TrajectoryTeacher",
        "cannot be combined with a compress factor",
    ),
    "real images that there are not": (
        f"{GAN} --compress 2 --set gan.discriminator.real=data",
        "gan.discriminator.real data: expects data.path",
    ),
    "a trained teacher without data": (
        f"{GAN} --compress 2 --set gan.peer=teacher",
        "gan.peer teacher: trains the teacher further",
    ),
    "a feature network that is none": (
        f"{GAN} --compress 2 --set gan.output.perceptual_network=vgg",
        "gan.output.perceptual_network vgg: expects discriminator, emoji or torchvision:NAME",
    ),
    "a layer that is not there": (
        f'{GAN} --compress 2 --set gan.features.layers={{"nose":"nose"}}',
        "hints nose: the teacher has",
    ),
    "a weight below 0": (f"{GAN} --compress 2 --set gan.adversarial=-1", "expects a number of at least 0, or numbers by"),
    "a schedule that is none": (
        f'{GAN} --compress 2 --set gan.output.l1={{"soon":1}}',
        "a number of at least 0, or numbers by step such",
    ),
    "a temperature of 0": (
        f'{GAN} --compress 2 --set gan.discriminator.temperature={{"0":4,"9":0}}',
        "a number above 0, or numbers by step such",
    ),
    "an augmentation that is none": (f"{GAN} --compress 2 --set gan.discriminator.augment=[blur]", "gan.discriminator.augment"),
    "a typo": (f"{GAN} --compress 2 --set gan.discriminator.stps=2", "did you mean gan.discriminator.steps?"),
    "gradient checkpointing": (
        f"{GAN} --compress 2 --set trainer.gradient_checkpointing=true --set trainer.num_validation=2",
        "trainer.gradient_checkpointing: the student",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(place, monkeypatch, capsys, mistake):
    command, sentence = MISTAKES[mistake]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["gendistill", *command.split()])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    shown = capsys.readouterr()
    assert exit_.value.code == 2, shown.err
    assert sentence in " ".join(shown.err.split()), shown.err
    assert shown.err.count("error: ") == 1
    assert "error: " in shown.err.strip().splitlines()[-1], "it is the last line"
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (place / "owned").exists()
    assert not (place / "run" / "student").exists()
    assert not os.path.exists(place / "run" / "checkpoints")


def test_in_a_fresh_process_a_pickle_that_would_run_code_makes_nothing(place, tmp_path):
    command = [*OWN.split(), "--compress", "2", "--weights", "harmful.pth", "--out", str(tmp_path / "run")]
    process = gendistill(command, tmp_path / "out.txt", folder=place)
    assert process.wait() == 2, process.text
    assert process.text.startswith("error: generator.weights harmful.pth: is a pickle that would run code when opened"), (
        process.text
    )
    assert "Traceback" not in process.text
    assert not (place / "owned").exists()
