"""Train tiny-sd3: a text-to-image flow-matching transformer in Stable Diffusion 3's format, on the emoji of 64 pixels.

    python scripts/recipes/emoji_data.py --resolution 64 --out runs/recipes/emoji-64
    python scripts/recipes/tiny_vae.py --pipeline tiny-sd3 --images runs/recipes/emoji-64 --init assets/tiny-sd/vae \\
        --run runs/recipes/tiny-sd3-vae --minutes 60 --bfloat16 --batch 4 --scale-equivariance 0.5
    python scripts/recipes/tiny_sd3.py --out runs/recipes/tiny-sd3/pipeline --minutes 240     # on 1 CPU core; resumes
    python scripts/recipes/tiny_sd3.py --init runs/recipes/tiny-sd3/pipeline --run runs/recipes/tiny-sd3-2 --seed 6

Rectified flow (Esser et al. 2024, arXiv:2403.03206): x_t = (1 - t) x_0 + t noise, and the network predicts noise - x_0. Times
are logit-normal (section 3.1) and shifted (section 5.3.2), as the scheduler shifts them when sampling. The text towers are
trained with the transformer; the first one begins as tiny-sd's. T5 is left out: the pipeline appends 256 zero tokens in its
place, and the training computes the same function with one of them (`samplers/families/repeated_tokens.py`).
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from emoji import ASSETS, load_emoji
from gendistill.export.student_folder import fit_transformers_4_and_5
from gendistill.samplers.families.repeated_tokens import last_token_repeated
from resumable import ResumableRun, recipe_parser
from tiny_sd import CaptionSampler, add_caption_arguments, encode_images, sample_latents, tokenize_levels

T5_TOKENS = 256  # the pipeline's default `max_sequence_length`: so many zero tokens stand in for T5
SHIFT = 2.0


def build_text_tower(config: CLIPTextConfig, layers: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(CLIPTextConfig(**{**config.to_dict(), "num_hidden_layers": layers}))


def build_transformer() -> SD3Transformer2DModel:
    """A transformer of 5.1 M parameters; its modulations and its last layer are zero at first, as in DiT (arXiv:2212.09748)."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=48,
        joint_attention_dim=192,
        caption_projection_dim=192,
        pooled_projection_dim=192,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
    )
    for name, layer in transformer.named_modules():
        if name.endswith(("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    return transformer


def copy_fitting(trained: nn.Module, network: nn.Module) -> None:
    """Copy the parameters of a trained network wherever the shapes fit: all but the first and last layer for another patch."""
    parameters = dict(network.named_parameters())
    for name, weight in trained.named_parameters():
        if name in parameters and parameters[name].shape == weight.shape:
            parameters[name].data.copy_(weight)


def matrices_of_layers(networks: nn.Module) -> list[nn.Parameter]:
    """The matrices within the layers of transformer and text towers, which Muon trains."""
    layers = ("transformer_blocks.", "encoder.layers.")
    return [p for name, p in networks.named_parameters() if p.ndim == 2 and any(layer in name for layer in layers)]


@contextmanager
def explicit_attention() -> Iterator[None]:
    """A context in which attention is computed by matrix products.

    The backward pass of torch's kernels is slow in bfloat16 on a CPU: a fifth of a step's time at this size.
    """
    fused = F.scaled_dot_product_attention

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **_: object,
    ) -> torch.Tensor:
        logits = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
        if attn_mask is not None:
            logits = logits + attn_mask
        if is_causal:
            logits = logits + torch.full(logits.shape[-2:], -torch.inf).triu(1)
        return logits.softmax(-1).to(value.dtype) @ value

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def sample_times(batch: int, generator: torch.Generator) -> torch.Tensor:
    """(N,) times in (0, 1) whose logits are normal, shifted towards the noise."""
    times = torch.randn(batch, generator=generator).sigmoid()
    return SHIFT * times / (1 + (SHIFT - 1) * times)


def encode_texts(towers: list[CLIPTextModelWithProjection], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """States (N, L + 1, 192), one zero token last, and pooled states (N, 192) of token ids (N, L)."""
    outputs = [tower(tokens, output_hidden_states=True) for tower in towers]
    states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return F.pad(states, (0, 0, 0, 1)), torch.cat([output.text_embeds for output in outputs], dim=-1)


def main() -> None:
    parser = recipe_parser(__doc__, Path("runs/recipes/tiny-sd3"), steps=12_000, batch=64, learning_rate=1e-3, seed=5)
    parser.add_argument("--images", type=Path, default=Path("runs/recipes/emoji-64"))
    parser.add_argument("--vae", type=Path, help="VAE folder; default: that of --init, or runs/recipes/tiny-sd3-vae/vae")
    parser.add_argument("--init", type=Path, help="pipeline folder for the initial weights, wherever their shapes fit")
    add_caption_arguments(parser, (0.25, 0.45, 0.15))
    parser.add_argument("--float32", action="store_true", help="no autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile of the transformer: minutes at first")
    parser.add_argument("--only-export", action="store_true", help="export the average of the last checkpoint, no training")
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny-sd3")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    transformer = build_transformer()
    text = args.init or ASSETS / "tiny-sd"
    tokenizer = CLIPTokenizer.from_pretrained(text / "tokenizer")
    first = CLIPTextModelWithProjection.from_pretrained(text / "text_encoder", dtype=torch.float32)
    if args.init:
        second = CLIPTextModelWithProjection.from_pretrained(text / "text_encoder_2", dtype=torch.float32)
        copy_fitting(SD3Transformer2DModel.from_pretrained(args.init / "transformer"), transformer)
    else:
        second = build_text_tower(first.config, layers=3)
    networks = nn.ModuleDict({"transformer": transformer, "text_encoder": first, "text_encoder_2": second})
    print({name: f"{sum(p.numel() for p in part.parameters()) / 1e6:.2f} M" for name, part in networks.items()})
    vae = AutoencoderKL.from_pretrained(args.vae or (args.init or Path("runs/recipes/tiny-sd3-vae")) / "vae").eval()

    run = ResumableRun(args, networks, decay_fraction=0.5, muon=matrices_of_layers(networks))
    if not args.only_export:
        train(run, networks, vae, tokenizer, args)
    run.use_ema()
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=first.eval(),
        tokenizer=tokenizer,
        text_encoder_2=second.eval(),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.to(torch.float16).save_pretrained(args.out)
    fit_transformers_4_and_5(args.out)
    print(f"saved {args.out}")


def train(run: ResumableRun, networks: nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer, args: Namespace) -> None:
    emoji = load_emoji("train", args.images)
    latents, tokens = encode_images(vae, emoji.images), tokenize_levels(tokenizer, emoji)
    captions = CaptionSampler(emoji, args.level_probabilities)
    transformer, *towers = networks.values()
    network = torch.compile(transformer, dynamic=False) if args.compile else transformer
    with last_token_repeated(transformer, T5_TOKENS), explicit_attention():
        for _ in run:
            level, rows = captions.sample(args.batch, run.generator)
            clean, noise = sample_latents(latents, rows, run.generator)
            times = sample_times(args.batch, run.generator)
            noisy = torch.lerp(clean, noise, times[:, None, None, None])
            texts, inverse = torch.unique(tokens[level, rows], dim=0, return_inverse=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
                states, pooled = encode_texts(towers, texts)
                velocity = network(noisy, states[inverse], pooled[inverse], 1000 * times).sample
            loss = F.mse_loss(velocity.float(), noise - clean)
            loss.backward()
            run.record(loss)


if __name__ == "__main__":
    main()
