"""Noise-to-image generators of the literature, small, written as their papers and their public code have them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

NORMS: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": spectral_norm,
}


class NormedGenerator(nn.Module):
    """DCGAN (Radford et al. 2016) with weight normalization (Salimans & Kingma 2016) or spectral norm in every layer."""

    def __init__(self, nz: int = 16, width: int = 16, norm: str = "weight_norm") -> None:
        super().__init__()
        normed, layer = NORMS[norm], nn.ConvTranspose2d
        self.main = nn.Sequential(
            *(normed(layer(nz, 4 * width, 4, 1, 0)), nn.BatchNorm2d(4 * width), nn.ReLU(True)),
            *(normed(layer(4 * width, 2 * width, 4, 2, 1)), nn.BatchNorm2d(2 * width), nn.ReLU(True)),
            *(normed(layer(2 * width, width, 4, 2, 1)), nn.LeakyReLU(0.2, True)),
            *(normed(nn.Conv2d(width, 3, 3, 1, 1)), nn.Tanh()),
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None])


class FixedView(nn.Module):
    """A linear layer and a reshape to fixed channels, as most public DCGANs and WGAN-GPs have it.

    Args:
        form: `view`, `reshape`, `unflatten` (the method), `Unflatten` (the module) or `Reshape` (a module of the user).
    """

    def __init__(self, nz: int = 16, form: str = "view") -> None:
        super().__init__()
        self.form = form
        self.fc = nn.Linear(nz, 64 * 16)
        self.fold = {"Unflatten": nn.Unflatten(1, (64, 4, 4)), "Reshape": Reshape(64, 4, 4)}.get(form, nn.Identity())
        self.convs = nn.Sequential(
            *(nn.BatchNorm2d(64), nn.Upsample(scale_factor=2), nn.Conv2d(64, 32, 3, 1, 1), nn.BatchNorm2d(32, 0.8)),
            *(nn.LeakyReLU(0.2, inplace=True), nn.Upsample(scale_factor=2), nn.Conv2d(32, 3, 3, 1, 1), nn.Tanh()),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.fold(F.relu(self.fc(z)))
        if self.form == "view":
            x = x.view(-1, 64, 4, 4)
        elif self.form == "reshape":
            x = torch.reshape(x, (z.shape[0], 64, 4, 4))
        elif self.form == "unflatten":
            x = x.unflatten(1, (64, 4, 4))
        return self.convs(x)


class Reshape(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), *self.shape)


class ConditionalGAN(nn.Module):
    """Noise (B, nz) and one-hot labels (B, n_classes), concatenated (Mirza & Osindero 2014)."""

    def __init__(self, nz: int = 16, n_classes: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(nz + n_classes, 32 * 16), nn.BatchNorm1d(32 * 16), nn.ReLU(True), Reshape(32, 4, 4)),
            *(nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.ReLU(True), nn.Conv2d(32, 3, 3, 1, 1), nn.Tanh()),
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return self.layers(torch.cat([z, labels], 1))


class SelfAttention(nn.Module):
    """SAGAN's attention (Zhang et al. 2019): products of queries, keys and values by bmm, and a learned gate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(channels, channels // 8, 1), nn.Conv2d(channels, channels // 8, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, width, height = x.size()
        query = self.query_conv(x).view(batch, -1, width * height).permute(0, 2, 1)
        key = self.key_conv(x).view(batch, -1, width * height)
        attention = self.softmax(torch.bmm(query, key))
        value = self.value_conv(x).view(batch, -1, width * height)
        out = torch.bmm(value, attention.permute(0, 2, 1)).view(batch, channels, width, height)
        return self.gamma * out + x, attention


class SAGAN(nn.Module):
    """Noise (B, nz) to images (B, 3, 16, 16), with spectral norm; it returns the attention maps too."""

    def __init__(self, z_dim: int = 16, width: int = 32) -> None:
        super().__init__()
        normed = parametrizations.spectral_norm

        def stage(inputs: int, outputs: int, *shape: int) -> nn.Sequential:
            return nn.Sequential(normed(nn.ConvTranspose2d(inputs, outputs, *shape)), nn.BatchNorm2d(outputs), nn.ReLU())

        self.l1, self.l2, self.l3 = (
            stage(z_dim, 4 * width, 4),
            stage(4 * width, 2 * width, 4, 2, 1),
            stage(2 * width, width, 3, 1, 1),
        )
        self.attn1, self.attn2 = SelfAttention(2 * width), SelfAttention(width)
        self.last = nn.Sequential(nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.view(z.size(0), z.size(1), 1, 1)
        out, p1 = self.attn1(self.l2(self.l1(z)))
        out, p2 = self.attn2(self.l3(out))
        return self.last(out), p1, p2


class TransGANAttention(nn.Module):
    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads, self.scale, self.fused = heads, (dim // heads) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.fused:
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class TransGANBlock(nn.Module):
    def __init__(self, dim: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), TransGANAttention(dim, heads, fused), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TransGAN(nn.Module):
    """Noise (B, latent_dim) to images (B, 3, 16, 16): tokens upsampled by pixel shuffle (Jiang et al. 2021)."""

    def __init__(
        self, latent_dim: int = 16, embed_dim: int = 128, heads: int = 4, bottom_width: int = 4, fused: bool = False
    ) -> None:
        super().__init__()
        self.bottom_width, self.embed_dim = bottom_width, embed_dim
        self.l1 = nn.Linear(latent_dim, bottom_width**2 * embed_dim)
        self.pos_embed = nn.ParameterList(
            [nn.Parameter(torch.randn(1, bottom_width**2 * 4**k, embed_dim // 4**k)) for k in range(2)]
        )
        self.blocks = nn.ModuleList([TransGANBlock(embed_dim, heads, fused) for _ in range(2)])
        self.upsample_blocks = nn.ModuleList([TransGANBlock(embed_dim // 4, heads, fused)])
        self.deconv = nn.Sequential(nn.Conv2d(embed_dim // 16, 3, 1))

    @staticmethod
    def pixel_upsample(x: Tensor, H: int, W: int) -> tuple[Tensor, int, int]:
        C = x.size(2)
        x = F.pixel_shuffle(x.permute(0, 2, 1).view(-1, C, H, W), 2)
        _, C, H, W = x.size()
        return x.view(-1, C, H * W).permute(0, 2, 1), H, W

    def forward(self, z: Tensor) -> Tensor:
        x = self.l1(z).view(-1, self.bottom_width**2, self.embed_dim) + self.pos_embed[0]
        H = W = self.bottom_width
        for block in self.blocks:
            x = block(x)
        x, H, W = self.pixel_upsample(x, H, W)
        x = x + self.pos_embed[1]
        for block in self.upsample_blocks:
            x = block(x)
        x, H, W = self.pixel_upsample(x, H, W)
        return self.deconv(x.permute(0, 2, 1).view(-1, self.embed_dim // 16, H, W))


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose scale and shift are linear in a class embedding and a part of the noise (Brock et al. 2019, BigGAN)."""

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, affine=False)
        self.gain = parametrizations.spectral_norm(nn.Linear(condition, channels, bias=False))
        self.bias = parametrizations.spectral_norm(nn.Linear(condition, channels, bias=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gain = (1 + self.gain(y)).view(y.size(0), -1, 1, 1)
        return self.bn(x) * gain + self.bias(y).view(y.size(0), -1, 1, 1)


class BigGANBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        normed = parametrizations.spectral_norm
        self.bn1, self.bn2 = ConditionalBatchNorm(inputs, condition), ConditionalBatchNorm(outputs, condition)
        self.conv1, self.conv2 = normed(nn.Conv2d(inputs, outputs, 3, 1, 1)), normed(nn.Conv2d(outputs, outputs, 3, 1, 1))
        self.conv_sc = normed(nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.interpolate(F.relu(self.bn1(x, y)), scale_factor=2)
        h = self.conv2(F.relu(self.bn2(self.conv1(h), y)))
        return h + self.conv_sc(F.interpolate(x, scale_factor=2))


class BigGANAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ch, normed = channels, parametrizations.spectral_norm
        self.theta, self.phi = (normed(nn.Conv2d(channels, channels // 8, 1, bias=False)) for _ in range(2))
        self.g, self.o = (
            normed(nn.Conv2d(channels, channels // 2, 1, bias=False)),
            normed(nn.Conv2d(channels // 2, channels, 1, bias=False)),
        )
        self.gamma = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = self.theta(x), F.max_pool2d(self.phi(x), [2, 2]), F.max_pool2d(self.g(x), [2, 2])
        theta = theta.view(-1, self.ch // 8, x.shape[2] * x.shape[3])
        phi = phi.view(-1, self.ch // 8, x.shape[2] * x.shape[3] // 4)
        g = g.view(-1, self.ch // 2, x.shape[2] * x.shape[3] // 4)
        beta = F.softmax(torch.bmm(theta.transpose(1, 2), phi), -1)
        o = self.o(torch.bmm(g, beta.transpose(1, 2)).view(-1, self.ch // 2, x.shape[2], x.shape[3]))
        return self.gamma * o + x


class BigGAN(nn.Module):
    """Noise (B, dim_z) and classes (B,) to images (B, 3, 16, 16); the noise is split among the blocks."""

    def __init__(self, dim_z: int = 24, n_classes: int = 5, width: int = 32, shared_dim: int = 8) -> None:
        super().__init__()
        self.ch, self.bottom_width, chunk = width, 4, dim_z // 3
        self.z_chunk_size, self.shared = chunk, nn.Embedding(n_classes, shared_dim)
        self.linear = parametrizations.spectral_norm(nn.Linear(chunk, 2 * width * 16))
        self.blocks = nn.ModuleList(
            [BigGANBlock(2 * width, width, shared_dim + chunk), BigGANBlock(width, width, shared_dim + chunk)]
        )
        self.attention = BigGANAttention(width)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(inplace=True), parametrizations.spectral_norm(nn.Conv2d(width, 3, 3, 1, 1))
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        zs, label = torch.split(z, self.z_chunk_size, 1), self.shared(y)
        h = self.linear(zs[0])
        h = h.view(h.size(0), -1, self.bottom_width, self.bottom_width)
        for k, block in enumerate(self.blocks):
            h = block(h, torch.cat([label, zs[k + 1]], 1))
            if k == 0:
                h = self.attention(h)
        return torch.tanh(self.output_layer(h))
