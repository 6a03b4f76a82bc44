"""A student's folder: gendistill, torch alone and onnxruntime generate the same images with it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import UNet2DModel
from test_opening import tiny_gan
from torch import nn
from warm_process import ran_warm

from gendistill.gan import gan_export as export
from gendistill.gan.architectures.rrdb import RRDBGenerator
from gendistill.gan.gan_export import export_student
from gendistill.gan.gan_folder import Gan, NetworkSource, open_gan
from gendistill.gan.generator import Generator, GeneratorSpec

HERE = "test_gan_export"


class Wrapped(nn.Module):
    """An image in an object, spectral norm, and a range of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 12, 3, padding=1))
        self.up = nn.PixelShuffle(2)

    def forward(self, low):
        return SimpleNamespace(sample=self.up(self.conv(low)).sigmoid())


class Branching(nn.Module):
    """What it does depends on what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 12)

    def forward(self, z):
        if z.mean() > 0:
            z = -z
        return self.fc(z).view(-1, 3, 2, 2)


class Counting(Branching):
    """len() makes a number of the size of a batch, which a program then takes for a constant."""

    def forward(self, z):
        return self.fc(z).view(len(z), 3, 2, 2)


class Noisy(Branching):
    """It samples noise of its own."""

    def forward(self, z):
        return self.fc(z + torch.randn_like(z)).view(-1, 3, 2, 2)


class Positioned(nn.Module):
    """Attention over the positions of 8x8 pixels, as TransGAN's and SwinIR's: no other size can be added to them."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, 64, 3))

    def forward(self, image):
        tokens = image.flatten(2).transpose(1, 2) + self.positions
        return (tokens @ tokens.transpose(1, 2) @ tokens).transpose(1, 2).unflatten(2, (8, 8))


class RowByRow(nn.Module):
    """It runs for any size, but a program of its loop has a fixed number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, image):
        return torch.cat([self.conv(image[:, :, k : k + 1]) for k in range(image.shape[2])], 2)


class Unet(UNet2DModel):
    """diffusers' network as an image-to-image generator: an output object, in which the image is the sample."""

    def forward(self, sample):
        return super().forward(sample, 0)


def open_program(path):
    return torch.export.load(path).module()


def gan_of(network, spec, **arguments):
    return Gan(Generator(network.eval(), spec), NetworkSource(f"{HERE}:{type(network).__name__}", arguments))


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student") / "tiny"
    provenance = {"teacher": "assets/tiny-gan", "licence": "apache-2.0", "MACs an image": "1,234 | of 5,678", "seed": 3}
    assert export_student(folder, tiny_gan(), provenance) == []
    return folder


def test_every_way_of_opening_generates_the_same_at_any_batch_size(student):
    generator = open_gan(student).generator
    program = open_program(student / "generator.pt2")
    session = onnxruntime.InferenceSession(student / "generator.onnx")
    assert [each.name for each in session.get_inputs()] == ["noise", "labels"]
    for count in (1, 2, 7):
        noise, labels = generator.example(count)
        images = tiny_gan().generator(noise, labels)
        for of in (generator(noise, labels), program(noise, labels)):
            torch.testing.assert_close(of, images, atol=1e-4, rtol=0)
        (of,) = session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})
        np.testing.assert_allclose(of, images.detach().numpy(), atol=1e-4)


def test_torch_alone_opens_the_program_as_the_card_says(student):
    card = (student / "README.md").read_text()
    (code,) = [block for block in card.split("```python\n")[1:] if "torch.export.load" in block]
    code = code.split("```")[0].replace("PATH_OF_THIS_FOLDER", str(student))
    check = "\nimport sys\nassert tuple(images.shape) == (4, 3, 16, 16)\nassert 'gendistill' not in sys.modules"
    opened = ran_warm(code + check, folder="/")
    assert opened.returncode == 0, opened.stderr


def test_the_card_opens_it_with_gendistill_and_onnxruntime_too(student):
    card = (student / "README.md").read_text().replace("PATH_OF_THIS_FOLDER", str(student))
    blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == 3
    for block in (blocks[0], blocks[2]):
        names = {}
        exec(block, names)
        assert names["images"].shape == (4, 3, 16, 16)
    assert "| MACs an image | 1,234 \\| of 5,678 |" in card
    assert "base_model: assets/tiny-gan" in card
    assert "license: apache-2.0" in card
    assert "0: a; 1: b; 2: c" in card


def test_no_path_of_this_machine_is_in_the_files(student):
    for file in student.rglob("*.*"):
        assert not any(part in file.read_bytes() for part in (b"site-packages", b"resnet.py", str(student.parent).encode()))


def test_a_network_that_wraps_its_image_and_norms_its_weights_is_exported(tmp_path):
    torch.manual_seed(0)
    gan = gan_of(Wrapped(), GeneratorSpec("image", (3, 6, 6), (3, 12, 12), output_range=(0.0, 1.0)))
    assert export_student(tmp_path / "s", gan, {}, onnx=False, dtype=torch.float16) == []
    assert not (tmp_path / "s" / "generator.onnx").exists()
    low = gan.generator.example(5)[0]
    program = Generator(open_program(tmp_path / "s" / "generator.pt2"), gan.generator.spec)
    torch.testing.assert_close(program(low), gan.generator(low), atol=5e-3, rtol=0)  # weights were rounded
    torch.testing.assert_close(program(low), open_gan(tmp_path / "s").generator(low), atol=1e-4, rtol=0)
    assert gan.generator.network.conv.parametrizations  # the student itself is left as it was
    assert f"the module `{HERE}` must be importable" in (tmp_path / "s" / "README.md").read_text()


def test_a_unet_of_diffusers_is_exported(tmp_path):
    arguments = {
        "sample_size": 8,
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "add_attention": False,
    }
    gan = gan_of(Unet(**arguments), GeneratorSpec("image", (3, 8, 8), (3, 8, 8)), **arguments)
    assert export_student(tmp_path / "s", gan, {}, onnx=False) == []
    assert open_gan(tmp_path / "s").generator(torch.zeros(3, 3, 8, 8)).shape == (3, 3, 8, 8)


def test_programs_of_image_to_image_generators_take_any_height_and_width(tmp_path):
    arguments = {"channels": 4, "growth": 2, "num_blocks": 1}
    spec = GeneratorSpec("image", (3, 8, 8), (3, 32, 32))
    source = NetworkSource("gendistill.gan.architectures.rrdb:RRDBGenerator", arguments)
    gan = Gan(Generator(RRDBGenerator(**arguments).eval(), spec), source)
    assert export_student(tmp_path / "s", gan, {}) == []
    program, onnx = open_program(tmp_path / "s" / "generator.pt2"), export.open_onnx(tmp_path / "s" / "generator.onnx")
    for size in ((1, 3, 8, 8), (2, 3, 24, 16), (3, 3, 9, 31)):
        image = torch.rand(size) * 2 - 1
        expected = gan.generator(image)
        for images in (program(image), onnx(image)):
            torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert "images of any height and width" in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Positioned, r"the network cannot compute `tokens = .*: The size of tensor a \(128\) must match"),
        (
            RowByRow,
            r"torch.export cannot trace the network, as its code fixes the height or width \(range\(x.shape\[2\]\) does\)",
        ),
    ],
)
def test_a_network_that_fixes_the_size_is_exported_at_its_own_and_the_log_says_why(network, reason, tmp_path):
    gan = gan_of(network(), GeneratorSpec("image", (3, 8, 8), (3, 8, 8)))
    (message,) = export_student(tmp_path / "s", gan, {}, onnx=False)
    assert re.match(rf"generator\.pt2: for images of 8x8 pixels alone, since {reason}", message)
    image = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(
        open_program(tmp_path / "s" / "generator.pt2")(image), gan.generator(image), atol=1e-4, rtol=1e-4
    )
    assert "any height" not in (tmp_path / "s" / "README.md").read_text()


def test_a_network_that_cannot_be_traced_keeps_its_folder_and_the_log_names_the_operation(tmp_path, caplog):
    gan = gan_of(Branching(), GeneratorSpec("noise", (4,), (3, 2, 2)))
    (said,) = export_student(tmp_path / "s", gan, {})
    assert "`if z.mean() > 0:` (test_gan_export.py, line" in said
    assert "\n" not in said
    assert said in caplog.text
    assert sorted(each.name for each in (tmp_path / "s").iterdir()) == ["README.md", "gan.json", "generator"]
    assert "torch.export.load" not in (tmp_path / "s" / "README.md").read_text()
    assert open_gan(tmp_path / "s").generator(torch.ones(1, 4)).shape == (1, 3, 2, 2)


def test_code_that_fixes_the_batch_size_is_told(tmp_path):
    (said,) = export_student(tmp_path / "s", gan_of(Counting(), GeneratorSpec("noise", (4,), (3, 2, 2))), {})
    assert "fixes the batch size (len(x) does, x.shape[0] does not)" in said


def test_a_network_that_samples_noise_is_compared_with_the_same_noise(tmp_path):
    gan = gan_of(Noisy(), GeneratorSpec("noise", (4,), (3, 2, 2)))
    assert export_student(tmp_path / "s", gan, {}, onnx=False) == []
    program, z = open_program(tmp_path / "s" / "generator.pt2"), torch.zeros(2, 4)
    assert not torch.equal(program(z), program(z))


def test_without_onnx_the_log_says_how_to_install_it(tmp_path, monkeypatch):
    found = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    (said,) = export_student(tmp_path / "s", tiny_gan(), {})
    assert said == "generator.onnx is not written, it needs onnx and onnxscript: pip install 'gendistill[gan]'"
    assert not (tmp_path / "s" / "generator.onnx").exists()


def test_a_student_that_cannot_be_written_leaves_the_one_before(tmp_path):
    gan = tiny_gan()
    export_student(tmp_path / "s", gan, {"teacher": "first"}, onnx=False)
    wrong = Gan(gan.generator, NetworkSource(gan.generator_source.class_path, {"latent_dim": 4}))
    with pytest.raises(ValueError, match="does not fit ResNetGenerator"):
        export_student(tmp_path / "s", wrong, {"teacher": "second"}, onnx=False)
    assert "first" in (tmp_path / "s" / "README.md").read_text()
    assert json.loads((tmp_path / "s" / "gan.json").read_text())["num_classes"] == 3
    assert [each.name for each in tmp_path.iterdir()] == ["s"]
