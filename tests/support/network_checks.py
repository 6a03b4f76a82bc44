"""What every built-in network is held to."""

import inspect

import torch


def assert_saves_and_loads(network, inputs, folder):
    """A folder of safetensors from which the same network comes back, down to the last bit of what it makes."""
    network.eval()
    network.save_pretrained(folder)
    assert [path.name for path in folder.iterdir() if path.suffix != ".json"] == ["diffusion_pytorch_model.safetensors"]
    loaded = type(network).from_pretrained(folder).eval()
    for name in inspect.signature(type(network).__init__).parameters.keys() - {"self"}:
        assert list_of(loaded.config[name]) == list_of(network.config[name])
    with torch.no_grad():
        assert torch.equal(loaded(*inputs), network(*inputs))


def list_of(setting):
    return list(setting) if isinstance(setting, tuple) else setting


def assert_exports(network, inputs):
    """`torch.export` makes a program of it that takes any batch and makes the same images."""
    network.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)).module()
    for size in (1, 3, len(inputs[0])):
        some = tuple(x[:size] for x in inputs)
        torch.testing.assert_close(program(*some), network(*some), rtol=0, atol=1e-5)


def assert_hinge_steps(generator, discriminator, inputs, labels=None, real=None):
    """One step of each network by the hinge loss: every parameter has a finite gradient, and the weights move."""
    of_class = () if labels is None else (labels,)
    generator.train(), discriminator.train()
    optimizers = [torch.optim.Adam(network.parameters(), 1e-3) for network in (generator, discriminator)]
    fake = generator(inputs, *of_class)
    real = torch.rand_like(fake) * 2 - 1 if real is None else real
    loss = (
        torch.relu(1 - discriminator(real, *of_class)).mean() + torch.relu(1 + discriminator(fake.detach(), *of_class)).mean()
    )
    assert_step(discriminator, loss, optimizers[1])
    assert_step(generator, -discriminator(fake, *of_class).mean(), optimizers[0])


def assert_step(network, loss, optimizer):
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    optimizer.zero_grad()
    loss.backward()
    lame = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not lame
    optimizer.step()
    assert any(not torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def assert_spectral_norms(network, feed, passes=60):
    """After some passes in training mode the largest singular value of every weight is 1, whatever it was."""
    network.train()
    weights = [layer for layer in network.modules() if hasattr(layer, "parametrizations")]
    assert weights
    with torch.no_grad():
        for layer in weights:
            layer.parametrizations.weight.original.mul_(5)
        for _ in range(passes):
            network(*feed)
    for layer in weights:
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        torch.testing.assert_close(norm, torch.tensor(1.0), rtol=0.02, atol=0)
