"""GAN co-distillation that is real but for its size: 16 pixels, 3 classes, 20 random images, steps of milliseconds."""

import copy
import sys

import torch
from row_cache import write_cache

from gendistill.data.gan_batches import ImageData, NoData
from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.architectures.translation import PatchDiscriminator, ResNetTranslator
from gendistill.gan.gan_folder import Gan, NetworkSource
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.methods.gan_build import build_method
from gendistill.methods.gan_start import Start
from gendistill.run.config import load_config
from gendistill.runtime.random import PerSampleRandom
from gendistill.training.trainer import Trainer
from gendistill.training.trainer_config import TrainerConfig

CLASSES = ("cat", "dog", "fox")
NOISE = GeneratorSpec("noise", (8,), (3, 16, 16), 3, CLASSES)
PICTURE = GeneratorSpec("image", (3, 16, 16), (3, 16, 16))
BATCH = 8


def built(network_class, seed, **arguments):
    """A random network, ready to evaluate, and how it is built."""
    torch.manual_seed(seed)
    return network_class(**arguments).eval(), NetworkSource(f"{network_class.__module__}:{network_class.__name__}", arguments)


def tiny_gan(*, discriminator=True, scale=2.0):
    """A random teacher of noise and classes; `scale` of its weights makes its images differ."""
    network, source = built(ResNetGenerator, 0, latent_dim=8, num_classes=3, channels=[16, 16, 8], class_dim=4)
    for parameter in network.parameters():
        parameter.data.mul_(scale)
    evaluator = (
        built(ResNetDiscriminator, 1, resolution=16, num_classes=3, channels=[8, 8], num_down=2) if discriminator else ()
    )
    return Gan(Generator(network, NOISE), source, *evaluator)


def tiny_translator(*, discriminator=True):
    """A random teacher of images, with a discriminator of patches."""
    network, source = built(ResNetTranslator, 0, channels=8, num_blocks=1)
    evaluator = built(PatchDiscriminator, 1, channels=8, num_layers=1) if discriminator else ()
    return Gan(Generator(network, PICTURE), source, *evaluator)


def tiny_student(gan):
    """A network half as wide, of the same kind."""
    if gan.generator.spec.kind == "image":
        network, source = built(ResNetTranslator, 2, channels=4, num_blocks=1)
    else:
        network, source = built(ResNetGenerator, 2, latent_dim=8, num_classes=3, channels=[8, 8, 8], class_dim=4)
    return Start(network, 1, 1, 2, 2, {}, source)


def tiny_pictures(folder, spec=NOISE, labels=(0, 0, 0, 1, 2)):
    """20 random images whose classes are `labels`, again and again."""
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = {"images": images, "labels": torch.tensor(labels).repeat(20 // len(labels))}
    return ImageData(write_cache(folder, [rows]), spec)


def tiny_method(gan=None, data=None, start=None, more=None, **settings):
    """The method as a run builds it, adversarial from the first step.

    `settings` by dotted name below `gan.`, with __ or dots; `more` by their whole name.
    """
    gan = gan or tiny_gan()
    given = {f"gan.{name.replace('__', '.')}": value for name, value in settings.items()}
    given = {"method": "gan", "device": "cpu", "gan.adversarial": 1, **given}
    config = load_config(None, copy.deepcopy({**given, **(more or {})}))
    torch.manual_seed(7)
    return build_method(config, gan, start or tiny_student(gan), data or NoData(), "cpu")


def tiny_gan_trainer(method, data, folder, *, validate=None, **settings):
    """A fresh one for the run folder `folder`, as a fresh process makes it; `settings` of TrainerConfig."""
    given = {"batch_size": BATCH, "warmup_steps": 2, "log_every": 1, "checkpoint_every": 2, "validate_every": 2}
    config = TrainerConfig(**{**given, "trackers": [], **settings})
    return Trainer(method, data or NoData(), config, folder, seed=5, validate=validate, cpu=True)


def step_of(method, data=None, step=0, learn=None, batch=BATCH):
    """The updates of a step, as a trainer without optimizers sees them; `learn(update)` is called between them."""
    data = data or NoData()
    random = PerSampleRandom(5, step, 0, batch)
    updates = []
    for update in method.updates(data.batch(data.rows_of_step(5, step, batch), random), step, random):
        if learn:
            learn(update)
        updates.append(update)
    return updates


def without_onnx(then=None):
    """In a process of its own: as where onnx is not installed, which a student's export takes longest for; then `then()`."""
    sys.modules["onnx"] = None
    if then is not None:
        then()
