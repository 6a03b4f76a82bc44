"""Built-in generators and discriminators, saved and loaded with diffusers' `save_pretrained` and `from_pretrained`.

Generators are called `generator(inputs, labels)`, discriminators `discriminator(images, labels)`; images are in [-1, 1].
"""

from gendistill.gan.architectures.dcgan import DCGANDiscriminator, DCGANGenerator
from gendistill.gan.architectures.fresh import discriminator_for, fresh_discriminator
from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.architectures.rrdb import RRDBGenerator
from gendistill.gan.architectures.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from gendistill.gan.architectures.translation import PatchDiscriminator, ResNetTranslator

# By class name, which is `_class_name` in diffusers' `config.json`.
GENERATORS = {
    cls.__name__: cls for cls in (DCGANGenerator, ResNetGenerator, StyleGAN2Generator, ResNetTranslator, RRDBGenerator)
}
DISCRIMINATORS = {
    cls.__name__: cls for cls in (DCGANDiscriminator, ResNetDiscriminator, StyleGAN2Discriminator, PatchDiscriminator)
}

__all__ = ["DISCRIMINATORS", "GENERATORS", "discriminator_for", "fresh_discriminator"]
