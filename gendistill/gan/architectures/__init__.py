"""The networks that come with gendistill: every one saves and loads by itself (diffusers' `save_pretrained`).

Generators are called `generator(inputs, labels)`, discriminators `discriminator(images, labels)`; images are in [-1, 1].
"""

from gendistill.gan.architectures.dcgan import DCGANDiscriminator, DCGANGenerator
from gendistill.gan.architectures.fresh import discriminator_for, fresh_discriminator
from gendistill.gan.architectures.resnet import ResNetDiscriminator, ResNetGenerator
from gendistill.gan.architectures.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from gendistill.gan.architectures.translation import PatchDiscriminator, ResNetTranslator

# By class name: what diffusers writes into `config.json` as `_class_name`.
GENERATORS = {of.__name__: of for of in (DCGANGenerator, ResNetGenerator, StyleGAN2Generator, ResNetTranslator)}
DISCRIMINATORS = {
    of.__name__: of for of in (DCGANDiscriminator, ResNetDiscriminator, StyleGAN2Discriminator, PatchDiscriminator)
}

__all__ = ["DISCRIMINATORS", "GENERATORS", "discriminator_for", "fresh_discriminator"]
