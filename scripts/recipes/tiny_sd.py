"""Train tiny-sd: a text-to-image latent diffusion pipeline in Stable Diffusion's format, on the emoji.

    python scripts/recipes/tiny_vae.py
    python scripts/recipes/tiny_sd.py --out runs/recipes/tiny-sd/pipeline          # hours on 2 CPU cores; resumes
    python scripts/recipes/tiny_sd.py --init runs/recipes/tiny-sd/pipeline --run runs/recipes/tiny-sd-2 --seed 4 \\
        --steps 8400 --learning-rate 8e-4 --level-probabilities 0.5 0.25 0.1       # names need more training

The text encoder is trained with the UNet. Captions are sampled from three levels, so that the pipeline supports specific and
general prompts, and are dropped with probability 0.15, for classifier-free guidance. With name captions, every emoji is sampled
with equal probability, whatever its number of skin tones.
"""

import json
import shutil
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from emoji import ASSETS, LEVELS, Emoji, load_emoji
from gendistill.export.student_folder import fit_transformers_4_and_5
from resumable import ResumableRun, recipe_parser

SKIN_TONES = {f"1F3F{last}" for last in "BCDEF"}
VOCABULARY = 1400
MAX_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of CLIP's tokenizer


def train_tokenizer(captions: list[str], folder: Path) -> CLIPTokenizer:
    """A byte-level BPE with CLIP's normalisation, trained on the captions, saved as `vocab.json` and `merges.txt`."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY - 2, end_of_word_suffix="</w>", initial_alphabet=alphabet, show_progress=False
        ),
    )
    learned = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for letter in alphabet:  # every byte also at the end of a word, so that no text is unknown
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    for special in (START, END):  # the end token has the highest id, as in CLIP
        vocabulary[special] = len(vocabulary)
    merges = [tuple(pair) if not isinstance(pair, str) else tuple(pair.split(" ")) for pair in learned["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=96,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[64, 128],
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=96,
        attention_head_dim=4,  # the number of heads: diffusers' name is a misnomer
    )


def build_schedulers() -> tuple[DDPMScheduler, PNDMScheduler]:
    """Stable Diffusion 1.5's noise schedule, for training, and the scheduler of its pipeline."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    # clip_sample is read by the schedulers that users make from this config; DDIM's default would clip latents
    shipped: Any = PNDMScheduler.from_config(
        {**betas, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
    )
    return DDPMScheduler(**betas, clip_sample=False), shipped


def emoji_weights(emoji: Emoji) -> torch.Tensor:
    """(N,) weights that make every emoji equally likely, whatever its number of skin tones."""

    def without_skin_tone(caption: dict[str, str]) -> tuple[str, ...]:
        return caption["vendor"], *(code for code in caption["unified"].split("-") if code not in SKIN_TONES)

    count = Counter(without_skin_tone(caption) for caption in emoji.captions)
    return torch.tensor([1 / count[without_skin_tone(caption)] for caption in emoji.captions])


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """Encode images (N, 3, H, W) to means and standard deviations of the posterior, normalised by factors: (N, 2C, 8, 8)."""
    rows = []
    for batch in images.split(256):
        posterior = vae.encode(batch).latent_dist
        mean = posterior.mean - (vae.config.shift_factor or 0.0)
        rows.append(torch.cat([mean, posterior.std], dim=1) * vae.config.scaling_factor)
    return torch.cat(rows)


def sample_latents(latents: torch.Tensor, rows: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents sampled from the posteriors of some rows of `encode_images`, and noise of the same shape."""
    mean, std = latents[rows].chunk(2, dim=1)
    clean = mean + std * torch.randn(mean.shape, generator=generator)
    return clean, torch.randn(mean.shape, generator=generator)


def tokenize_levels(tokenizer: CLIPTokenizer, emoji: Emoji) -> torch.Tensor:
    """Token ids (4, N, MAX_TOKENS) of name, subcategory, category and of the empty prompt."""

    def ids(texts: list[str]) -> torch.Tensor:
        encoded = tokenizer(texts, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        return encoded.input_ids

    levels = [ids([caption[level] for caption in emoji.captions]) for level in LEVELS]
    return torch.stack([*levels, ids([""] * len(emoji))])


class CaptionSampler:
    """Samples (level, row) of captions; names such that every emoji is equally likely, whatever its number of skin tones."""

    def __init__(self, emoji: Emoji, level_probabilities: list[float]) -> None:
        self.rows, self.weights = len(emoji), emoji_weights(emoji)
        self.probabilities = torch.tensor([*level_probabilities, 1 - sum(level_probabilities)])

    def sample(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        level = torch.multinomial(self.probabilities, batch, replacement=True, generator=generator)
        uniform_rows = torch.randint(self.rows, (batch,), generator=generator)
        weighted_rows = torch.multinomial(self.weights, batch, replacement=True, generator=generator)
        return level, torch.where(level == LEVELS.index("name"), weighted_rows, uniform_rows)


def add_caption_arguments(parser: ArgumentParser, level_probabilities: tuple[float, float, float]) -> None:
    parser.add_argument(
        "--level-probabilities",
        type=float,
        nargs=3,
        default=level_probabilities,
        help="probabilities of the name, the subcategory and the category as the caption; else the empty prompt",
    )


def main() -> None:
    parser = recipe_parser(__doc__, Path("runs/recipes/tiny-sd"), steps=8400, batch=64, learning_rate=1e-3, seed=2)
    parser.add_argument("--vae", type=Path, default=Path("runs/recipes/tiny-vae/vae"))
    parser.add_argument("--init", type=Path, help="pipeline folder for the initial weights, instead of random weights")
    add_caption_arguments(parser, (0.20, 0.45, 0.20))
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny-sd")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    emoji = load_emoji("train")
    if args.init:  # the BPE merges vary between runs: the text encoder needs its own tokenizer
        shutil.copytree(args.init / "tokenizer", args.run / "tokenizer", dirs_exist_ok=True)
        tokenizer = CLIPTokenizer.from_pretrained(args.run / "tokenizer")
    else:
        tokenizer = train_tokenizer([c[level] for c in emoji.captions for level in LEVELS], args.run / "tokenizer")
    vae = AutoencoderKL.from_pretrained(args.init / "vae" if args.init else args.vae).eval()
    latents = encode_images(vae, emoji.images)
    tokens = tokenize_levels(tokenizer, emoji)
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    if args.init:
        unet = UNet2DConditionModel.from_pretrained(args.init / "unet")
        text_encoder = CLIPTextModel.from_pretrained(args.init / "text_encoder", dtype=torch.float32)
    noise_scheduler, shipped_scheduler = build_schedulers()
    networks = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
    print({name: f"{sum(p.numel() for p in part.parameters()) / 1e6:.2f} M" for name, part in networks.items()})

    run = ResumableRun(args, networks, decay_fraction=0.3)
    captions = CaptionSampler(emoji, args.level_probabilities)
    for _ in run:
        level, rows = captions.sample(args.batch, run.generator)
        clean, noise = sample_latents(latents, rows, run.generator)
        timesteps = torch.randint(1000, (args.batch,), generator=run.generator)
        texts, inverse = torch.unique(tokens[level, rows], dim=0, return_inverse=True)
        states = text_encoder(texts).last_hidden_state[inverse]
        noisy = noise_scheduler.add_noise(clean, noise, timesteps)
        loss = F.mse_loss(unet(noisy, timesteps, states).sample, noise)
        loss.backward()
        run.record(loss)
    run.use_ema()
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=shipped_scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(args.out)
    fit_transformers_4_and_5(args.out)
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
