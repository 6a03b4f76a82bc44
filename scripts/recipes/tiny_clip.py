"""Train `assets/tiny-clip`: an open_clip model of the emoji, for the CLIP score where no larger one is at hand.

    OMP_NUM_THREADS=1 python scripts/recipes/tiny_clip.py        # about 12 minutes on one CPU core; run again to resume

A ViT over 4-pixel patches and a causal text transformer with a byte-pair vocabulary of its own, trained with the
contrastive loss of Radford et al. 2021; half of the patches are dropped in training (Li et al. 2023, FLIP). It is a
metric network: nothing that is evaluated by it may be trained with it or share its seed.
Its card, README.md, is written by hand, with the figures that are printed.
"""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from emoji import ASSETS, LEVELS, Emoji, load_emoji
from emoji_features import shifted
from resumable import ResumableRun, recipe_parser

RUN = Path("runs/recipes/tiny-clip")
LEVEL_PROBABILITY = (0.65, 0.25, 0.1)  # name, subcategory, category
VOCABULARY = 2048
CONTEXT = 24  # the longest caption has 23 tokens
PATCH_DROPOUT = 0.5
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 128, "head_width": 32, "layers": 3},
    "text_cfg": {
        "context_length": CONTEXT,
        "vocab_size": VOCABULARY,
        "hf_tokenizer_name": "tiny-clip",  # any name: open_clip reads the tokenizer of the local folder
        "width": 96,
        "heads": 3,
        "layers": 2,
        "pool_type": "argmax",  # <|endoftext|> has the highest id, as in CLIP
    },
}
PREPROCESS = {"size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


def build_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding of lower-case words, with CLIP's special tokens; learned on the training captions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftext|>", "<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        model_max_length=CONTEXT,
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> torch.Tensor:
    """Token ids (N, CONTEXT) int64, padded by 0."""
    padding = {"padding": "max_length", "truncation": True, "max_length": CONTEXT}
    return tokenizer(captions, return_tensors="pt", **padding).input_ids


def contrastive_loss(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """Symmetric cross entropy over unit features (B, D); pairs with equal captions (`same` (B, B)) share the target."""
    logits = scale * image @ text.T
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def top1_among(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, emoji: Emoji, seed: int, among: int = 64, draws: int = 40
) -> float:
    """How often an image's own name is the nearest among `among` different names; mean over `samples`, in [0, 1]."""
    image = torch.cat([model.encode_image(batch, normalize=True) for batch in emoji.images.split(128)])
    tokens = tokenize(tokenizer, [c["name"] for c in emoji.captions])
    text = torch.cat([model.encode_text(batch, normalize=True) for batch in tokens.split(128)])
    different = torch.tensor(list({c["name"]: i for i, c in enumerate(emoji.captions)}.values()))
    generator = torch.Generator().manual_seed(seed)
    hits = 0
    for _ in range(draws):
        chosen = different[torch.randperm(len(different), generator=generator)[:among]]
        hits += int(((image[chosen] @ text[chosen].T).argmax(dim=1) == torch.arange(among)).sum())
    return hits / (draws * among)


def save(model: nn.Module, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """What `open_clip.create_model_from_pretrained("local-dir:...")` reads; weights in float16."""
    out.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save_pretrained(out)
    saved = json.loads((out / "tokenizer_config.json").read_text())
    saved["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 and 5 both know
    (out / "tokenizer_config.json").write_text(json.dumps(saved, indent=2) + "\n")
    weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, out / "open_clip_model.safetensors")


def main() -> None:
    parser = recipe_parser(__doc__, RUN, steps=1200, batch=128, learning_rate=2e-3, seed=23)
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny-clip")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, held_out = load_emoji("train"), load_emoji("heldout")
    captions = [[caption[level] for level in LEVELS] for caption in train.captions]
    tokenizer = build_tokenizer([text for texts in captions for text in texts])
    tokens = torch.stack([tokenize(tokenizer, list(texts)) for texts in zip(*captions, strict=True)])  # (3, N, CONTEXT)
    model = open_clip.CLIP(**MODEL, output_dict=False)
    model.visual.patch_dropout = open_clip.transformer.PatchDropout(PATCH_DROPOUT)
    run = ResumableRun(args, model, warmup=100, weight_decay=0.1, ema_decay=0.99)
    probabilities = torch.tensor(LEVEL_PROBABILITY)
    for step in run:
        torch.manual_seed(args.seed * 1_000_003 + step)  # the patches that are dropped
        chosen = torch.randperm(len(train), generator=run.generator)[: args.batch]
        level = torch.multinomial(probabilities, args.batch, replacement=True, generator=run.generator)
        text_tokens = tokens[level, chosen]
        image, text, scale = model(shifted(train.images[chosen], run.generator), text_tokens)
        same = (text_tokens[:, None] == text_tokens[None]).all(dim=2).float()
        loss = contrastive_loss(image, text, scale.clamp(max=100), same)
        loss.backward()
        run.record(loss)
        if step % 250 == 249:
            model.eval()
            print(f"held-out top-1 among 64: {top1_among(model, tokenizer, held_out, args.seed):.3f}", flush=True)
            model.train()
    run.use_ema()
    save(model, tokenizer, args.out)

    saved, _ = open_clip.create_model_from_pretrained(f"local-dir:{args.out}")
    figures = {
        name: top1_among(saved, tokenizer, split, args.seed) for name, split in {"held_in": train, "held_out": held_out}.items()
    }
    print(f"{figures} in {args.out}")


if __name__ == "__main__":
    main()
