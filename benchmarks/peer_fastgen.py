"""The losses of distribution matching compared with those of NVIDIA's FastGen, on the same tensors.

    git clone https://github.com/NVlabs/FastGen
    python benchmarks/peer_fastgen.py FastGen

Values and gradients must agree to 1e-5: the loss with the gradient of the reverse KL, the losses of the fake score for all
prediction types, the softplus losses of generator and discriminator, and the weights of f-divergences. FastGen's
`common_loss.py` and the table of `f_distill.py` are read from the checkout; the rest of FastGen, with its dependencies, is not
imported. The exit code is 1 if there is a difference.
"""

import argparse
import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from gendistill.losses.adversarial import discriminator_loss, generator_loss
from gendistill.losses.score_matching import divergence_weights, loss_with_gradient, reverse_kl_gradient
from gendistill.schedulers import NoiseSchedule, Prediction, from_prediction

SCHEDULE = NoiseSchedule.from_scheduler(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
PREDICTION_TYPES = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow": "flow"}
DIVERGENCES = {
    "reverse_kl": "rkl",
    "forward_kl": "kl",
    "jeffreys": "jf",
    "jensen_shannon": "js",
    "softened_reverse_kl": "sf",
    "squared_hellinger": "sh",
}


def common_loss(checkout: Path) -> Any:
    """FastGen's `methods/common_loss.py`, with stand-ins for the names that it imports: a type, and a function of shapes."""
    names = {"fastgen": {}, "fastgen.networks": {}, "fastgen.networks.noise_schedule": {"BaseNoiseSchedule": object}}
    names |= {"fastgen.utils": {"expand_like": lambda x, like: x.reshape(x.shape + (1,) * (like.ndim - x.ndim))}}
    for name, members in names.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(members)
    spec = importlib.util.spec_from_file_location("common_loss", checkout / "fastgen" / "methods" / "common_loss.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def divergence_table(checkout: Path) -> Any:
    """The table of weights in FastGen's `f_distill.py`."""
    file = checkout / "fastgen" / "methods" / "distribution_matching" / "f_distill.py"
    table = next(node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Assign))
    return eval(compile(ast.Expression(table.value), str(file), "eval"), {"torch": torch})


def pairs(fastgen: Any, weights: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, gendistill's value and the peer's, of all losses, gradients and weights."""
    generator = torch.Generator().manual_seed(0)
    x, fake, real, noise = torch.randn(4, 8, 4, 16, 16, generator=generator)
    t = torch.randint(20, 980, (8,), generator=generator)
    x.requires_grad_()
    value = loss_with_gradient(x, reverse_kl_gradient(x, fake, real).detach())
    peer = fastgen.variational_score_distillation_loss(x, real, fake)
    yield "distribution matching", value, peer
    yield "its gradient", *(torch.autograd.grad(loss, x)[0] * x.numel() for loss in (value, peer))
    for name, peer_name in PREDICTION_TYPES.items():
        target = from_prediction(Prediction(x.detach(), noise), t, name, SCHEDULE)
        peer = fastgen.denoising_score_matching_loss(peer_name, fake, x.detach(), noise, SCHEDULE, t)
        yield f"fake score, {name}", (fake - target).square().mean(), peer
    logits, real_logits = torch.randn(2, 8, 3, generator=generator)
    yield "generator", generator_loss(logits, "logistic"), fastgen.gan_loss_generator(logits)
    peer = fastgen.gan_loss_discriminator(real_logits, logits)
    yield "discriminator", discriminator_loss(real_logits, logits, "logistic"), peer
    for name, peer_name in DIVERGENCES.items():
        peer = weights[peer_name](logits[:, 0].exp()).expand(len(logits))
        yield f"weights, {name}", divergence_weights(logits[:, 0], name), peer / peer.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of NVIDIA's FastGen")
    checkout = parser.parse_args().checkout
    largest = 0.0
    for name, value, peer in pairs(common_loss(checkout), divergence_table(checkout)):
        difference = float(((value - peer).abs().max() / peer.abs().max()).detach())
        largest = max(largest, difference)
        print(f"{name:32} {difference:.1e}")
    sys.exit(int(largest > 1e-5))


if __name__ == "__main__":
    main()
