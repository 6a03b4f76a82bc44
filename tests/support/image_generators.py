"""Image-to-image generators of the literature, small, written as their papers and their public code have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class DenseBlock(nn.Module):
    """ESRGAN's dense block: five convolutions, each reads all before it; in place activations, residual scaling."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, growth, 3, 1, 1)
        self.conv2 = nn.Conv2d(width + growth, growth, 3, 1, 1)
        self.conv3 = nn.Conv2d(width + 2 * growth, growth, 3, 1, 1)
        self.conv4 = nn.Conv2d(width + 3 * growth, growth, 3, 1, 1)
        self.conv5 = nn.Conv2d(width + 4 * growth, width, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(width, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * 0.2 + x


class RRDBNet(nn.Module):
    """Images (B, 3, H, W) to (B, 3, scale H, scale W) (Wang et al. 2018, ESRGAN; 2021, Real-ESRGAN).

    Args:
        scale: below 4, the input is first unshuffled to fewer pixels (Real-ESRGAN).
        shuffle: upsample by pixel shuffle instead of nearest neighbours.
    """

    def __init__(self, num_blocks: int = 7, width: int = 16, growth: int = 8, scale: int = 4, shuffle: bool = False) -> None:
        super().__init__()
        self.scale, self.shuffle = scale, shuffle
        self.conv_first = nn.Conv2d(3 * (4 // scale) ** 2, width, 3, 1, 1)
        self.body = nn.Sequential(*[RRDB(width, growth) for _ in range(num_blocks)])
        self.conv_body = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_up1 = nn.Conv2d(width, width * (4 if shuffle else 1), 3, 1, 1)
        self.conv_up2 = nn.Conv2d(width, width * (4 if shuffle else 1), 3, 1, 1)
        self.conv_hr = nn.Conv2d(width, width, 3, 1, 1)
        self.conv_last = nn.Conv2d(width, 3, 3, 1, 1)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv_first(F.pixel_unshuffle(x, 4 // self.scale) if self.scale < 4 else x)
        features = features + self.conv_body(self.body(features))
        for conv in (self.conv_up1, self.conv_up2):
            if self.shuffle:
                features = self.lrelu(F.pixel_shuffle(conv(features), 2))
            else:
                features = self.lrelu(conv(F.interpolate(features, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.conv_hr(features)))


class DeepResidual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width, affine=True), nn.ReLU(True)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width, affine=True)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class CycleGAN(nn.Module):
    """Images (B, 3, H, W) to images of the same size, H and W multiples of 4 (Zhu et al. 2017); affine instance norms."""

    def __init__(self, width: int = 16, num_blocks: int = 2, colours: int = 3) -> None:
        super().__init__()

        def stage(layer: nn.Module, channels: int) -> list[nn.Module]:
            return [layer, nn.InstanceNorm2d(channels, affine=True), nn.ReLU(True)]

        self.model = nn.Sequential(
            *(nn.ReflectionPad2d(3), *stage(nn.Conv2d(colours, width, 7), width)),
            *stage(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width),
            *stage(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), 4 * width),
            *[DeepResidual(4 * width) for _ in range(num_blocks)],
            *stage(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), 2 * width),
            *stage(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), width),
            *(nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class SkipBlock(nn.Module):
    """pix2pix's recursive block: down, the block inside, up, and the input concatenated; the first activation is in place."""

    def __init__(self, outer: int, inner: int, inside: nn.Module | None, outermost: bool = False, colours: int = 3) -> None:
        super().__init__()
        self.outermost = outermost
        norm, down = nn.InstanceNorm2d, nn.Conv2d(colours if outermost else outer, inner, 4, 2, 1)
        up = nn.ConvTranspose2d(inner if inside is None else 2 * inner, outer, 4, 2, 1)
        if outermost:
            layers = [down, inside, nn.ReLU(True), up, nn.Tanh()]
        elif inside is None:
            layers = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, norm(outer, affine=True)]
        else:
            layers = [
                nn.LeakyReLU(0.2, True),
                down,
                norm(inner, affine=True),
                inside,
                nn.ReLU(True),
                up,
                norm(outer, affine=True),
            ]
        self.model = nn.Sequential(*[layer for layer in layers if layer is not None])

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Pix2Pix(nn.Module):
    """Images (B, 3, H, W) to images of the same size, H and W multiples of 16 (Isola et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        block = SkipBlock(4 * width, 4 * width, None)
        for outer in (2 * width, width):
            block = SkipBlock(outer, 2 * outer, block)
        self.model = SkipBlock(3, width, block, outermost=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class StarGAN(nn.Module):
    """Images (B, 3, H, W) and attributes (B, c_dim) to images; the attributes are concatenated as maps (Choi et al. 2018)."""

    def __init__(self, width: int = 16, c_dim: int = 5, num_blocks: int = 2) -> None:
        super().__init__()
        self.c_dim, self.main = c_dim, CycleGAN(width, num_blocks, 3 + c_dim)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c.view(c.size(0), c.size(1), 1, 1)
        c = c.repeat(1, 1, x.size(2), x.size(3))
        return self.main(torch.cat([x, c], dim=1))


class AdaILN(nn.Module):
    """Instance and layer norm mixed by rho, with scale and shift from outside (Kim et al. 2020, U-GAT-IT)."""

    def __init__(self, channels: int, eps: float = 1e-5, own: bool = False) -> None:
        super().__init__()
        self.eps, self.rho = eps, nn.Parameter(torch.full((1, channels, 1, 1), 0.0 if own else 0.9))
        if own:
            self.gamma, self.beta = nn.Parameter(torch.ones(1, channels, 1, 1)), nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None) -> Tensor:
        in_mean, in_var = torch.mean(x, dim=[2, 3], keepdim=True), torch.var(x, dim=[2, 3], keepdim=True)
        out_in = (x - in_mean) / torch.sqrt(in_var + self.eps)
        ln_mean, ln_var = torch.mean(x, dim=[1, 2, 3], keepdim=True), torch.var(x, dim=[1, 2, 3], keepdim=True)
        out_ln = (x - ln_mean) / torch.sqrt(ln_var + self.eps)
        out = self.rho.expand(x.shape[0], -1, -1, -1) * out_in + (1 - self.rho.expand(x.shape[0], -1, -1, -1)) * out_ln
        if gamma is None or beta is None:
            return out * self.gamma.expand(x.shape[0], -1, -1, -1) + self.beta.expand(x.shape[0], -1, -1, -1)
        return out * gamma.unsqueeze(2).unsqueeze(3) + beta.unsqueeze(2).unsqueeze(3)


class AdaILNBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pad1, self.conv1, self.norm1 = nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3, bias=False), AdaILN(dim)
        self.relu1 = nn.ReLU(True)
        self.pad2, self.conv2, self.norm2 = nn.ReflectionPad2d(1), nn.Conv2d(dim, dim, 3, bias=False), AdaILN(dim)

    def forward(self, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        out = self.relu1(self.norm1(self.conv1(self.pad1(x)), gamma, beta))
        return self.norm2(self.conv2(self.pad2(out)), gamma, beta) + x


class UGATIT(nn.Module):
    """Images (B, 3, H, W) to images of the same size; with class activation maps, whose linear weights scale features."""

    def __init__(self, ngf: int = 16, light: bool = True, img_size: int = 16) -> None:
        super().__init__()
        self.light, width = light, 4 * ngf
        self.down = nn.Sequential(
            *(nn.ReflectionPad2d(3), nn.Conv2d(3, ngf, 7, bias=False), nn.InstanceNorm2d(ngf), nn.ReLU(True)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(ngf, 2 * ngf, 3, 2, bias=False), nn.InstanceNorm2d(2 * ngf), nn.ReLU(True)),
            *(nn.ReflectionPad2d(1), nn.Conv2d(2 * ngf, width, 3, 2, bias=False), nn.InstanceNorm2d(width), nn.ReLU(True)),
        )
        self.gap_fc, self.gmp_fc = nn.Linear(width, 1, bias=False), nn.Linear(width, 1, bias=False)
        self.conv1x1, self.relu = nn.Conv2d(2 * width, width, 1), nn.ReLU(True)
        size = width if light else (img_size // 4) ** 2 * width
        self.FC = nn.Sequential(
            nn.Linear(size, width, bias=False), nn.ReLU(True), nn.Linear(width, width, bias=False), nn.ReLU(True)
        )
        self.gamma, self.beta = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.UpBlock1_1, self.UpBlock1_2 = AdaILNBlock(width), AdaILNBlock(width)
        self.UpBlock2 = nn.Sequential(
            *(nn.Upsample(scale_factor=2, mode="nearest"), nn.ReflectionPad2d(1), nn.Conv2d(width, 2 * ngf, 3, bias=False)),
            *(AdaILN(2 * ngf, own=True), nn.ReLU(True)),
            *(nn.Upsample(scale_factor=2, mode="nearest"), nn.ReflectionPad2d(1), nn.Conv2d(2 * ngf, ngf, 3, bias=False)),
            *(AdaILN(ngf, own=True), nn.ReLU(True)),
            *(nn.ReflectionPad2d(3), nn.Conv2d(ngf, 3, 7, bias=False), nn.Tanh()),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.down(x)
        gap = F.adaptive_avg_pool2d(x, 1)
        gap_logit = self.gap_fc(gap.view(x.shape[0], -1))
        gap_weight = next(iter(self.gap_fc.parameters()))
        gap = x * gap_weight.unsqueeze(2).unsqueeze(3)
        gmp = F.adaptive_max_pool2d(x, 1)
        gmp_logit = self.gmp_fc(gmp.view(x.shape[0], -1))
        gmp_weight = next(iter(self.gmp_fc.parameters()))
        gmp = x * gmp_weight.unsqueeze(2).unsqueeze(3)
        cam_logit = torch.cat([gap_logit, gmp_logit], 1)
        x = self.relu(self.conv1x1(torch.cat([gap, gmp], 1)))
        heatmap = torch.sum(x, dim=1, keepdim=True)
        pooled = F.adaptive_avg_pool2d(x, 1) if self.light else x
        features = self.FC(pooled.view(pooled.shape[0], -1))
        gamma, beta = self.gamma(features), self.beta(features)
        for block in (self.UpBlock1_1, self.UpBlock1_2):
            x = block(x, gamma, beta)
        return self.UpBlock2(x), cam_logit, heatmap


class SPADE(nn.Module):
    """Normalization whose scale and shift are maps convolved from the semantic layout (Park et al. 2019)."""

    def __init__(self, channels: int, layout: int, hidden: int = 16) -> None:
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(layout, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = nn.Conv2d(hidden, channels, 3, padding=1), nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        actv = self.mlp_shared(F.interpolate(segmap, size=x.size()[2:], mode="nearest"))
        return self.param_free_norm(x) * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class SPADEBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, layout: int) -> None:
        super().__init__()
        middle, normed = min(inputs, outputs), parametrizations.spectral_norm
        self.conv_0, self.conv_1 = (
            normed(nn.Conv2d(inputs, middle, 3, padding=1)),
            normed(nn.Conv2d(middle, outputs, 3, padding=1)),
        )
        self.conv_s = normed(nn.Conv2d(inputs, outputs, 1, bias=False)) if inputs != outputs else None
        self.norm_0, self.norm_1 = SPADE(inputs, layout), SPADE(middle, layout)
        self.norm_s = SPADE(inputs, layout) if inputs != outputs else None

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        shortcut = x if self.conv_s is None else self.conv_s(self.norm_s(x, seg))
        dx = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 2e-1))
        return shortcut + self.conv_1(F.leaky_relu(self.norm_1(dx, seg), 2e-1))


class SPADEGenerator(nn.Module):
    """A layout as an image (B, 3, H, W) to images of the same size, H and W multiples of 4 (Park et al. 2019, GauGAN)."""

    def __init__(self, nf: int = 16, input_nc: int = 3) -> None:
        super().__init__()
        self.fc = nn.Conv2d(input_nc, 4 * nf, 3, padding=1)
        self.head_0 = SPADEBlock(4 * nf, 4 * nf, input_nc)
        self.up_0, self.up_1 = SPADEBlock(4 * nf, 2 * nf, input_nc), SPADEBlock(2 * nf, nf, input_nc)
        self.conv_img, self.up = nn.Conv2d(nf, 3, 3, padding=1), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        seg = x
        x = self.fc(F.interpolate(seg, scale_factor=0.25))
        x = self.head_0(x, seg)
        x = self.up_0(self.up(x), seg)
        x = self.up_1(self.up(x), seg)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 2e-1)))
