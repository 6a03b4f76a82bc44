"""Train the classifier whose pooled layer is the extractor of `fd-emoji`: `assets/emoji-features`.

    OMP_NUM_THREADS=1 python scripts/recipes/emoji_features.py   # about 10 minutes on one CPU core; run again to resume

It is a metric network: nothing that is evaluated by it may be trained with it or share its seed.
Its card, README.md, is written by hand, with the figures that are printed.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from emoji import ASSETS, Emoji, load_emoji
from gendistill.metrics.features.emoji_network import EmojiFeatureNetwork
from resumable import ResumableRun, recipe_parser

RUN = Path("runs/recipes/emoji-features")
CHANNELS = [16, 32, 64, 128]
FREQUENT = 15  # a word of the names is a label if it occurs in so many training images
WORD_WEIGHT = 30.0  # times the mean over words: about the sum over the words that an image could plausibly have


@dataclass(frozen=True)
class Labels:
    category: torch.Tensor  # (N,) int64
    vendor: torch.Tensor  # (N,) int64
    words: torch.Tensor  # (N, W) float, 0 or 1


def subject(caption: str) -> str:
    """`google emoji of red apple` -> `red apple`."""
    return caption.split(" emoji of ", 1)[1]


def words_of(caption: dict[str, str]) -> list[str]:
    return subject(caption["name"]).split()


def frequent_words(captions: list[dict[str, str]]) -> list[str]:
    counts = Counter(word for caption in captions for word in set(words_of(caption)))
    return sorted(word for word, count in counts.items() if count >= FREQUENT)


def labels_of(captions: list[dict[str, str]], network: EmojiFeatureNetwork) -> Labels:
    index = {word: i for i, word in enumerate(network.words)}
    words = torch.zeros(len(captions), len(index))
    for row, caption in enumerate(captions):
        words[row, [index[word] for word in words_of(caption) if word in index]] = 1
    return Labels(
        torch.tensor([network.categories.index(subject(c["category"])) for c in captions]),
        torch.tensor([network.vendors.index(c["vendor"]) for c in captions]),
        words,
    )


def build_network(captions: list[dict[str, str]]) -> EmojiFeatureNetwork:
    categories = sorted({subject(c["category"]) for c in captions})
    vendors = sorted({c["vendor"] for c in captions})
    return EmojiFeatureNetwork(CHANNELS, categories, vendors, frequent_words(captions))


def shifted(images: torch.Tensor, generator: torch.Generator, reach: int = 2) -> torch.Tensor:
    """Each image (B, 3, H, W) moved by up to `reach` pixels either way, white coming in at the edges."""
    batch, _, height, width = images.shape
    padded = F.pad(images, (reach,) * 4, value=1.0)
    offsets = torch.randint(2 * reach + 1, (2, batch, 1), generator=generator)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    chosen = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2)


@torch.no_grad()
def held_out_figures(network: EmojiFeatureNetwork, held_out: Emoji) -> dict[str, float]:
    """Accuracy of the category and vendor heads, and the micro F1 of the words at probability 1/2; all in [0, 1]."""
    labels = labels_of(held_out.captions, network)
    outputs = [network(batch) for batch in held_out.images.split(128)]
    category, vendor, words = (torch.cat(parts) for parts in zip(*outputs, strict=True))
    predicted = (words > 0).float()
    hits = (predicted * labels.words).sum()
    return {
        "category": (category.argmax(1) == labels.category).float().mean().item(),
        "vendor": (vendor.argmax(1) == labels.vendor).float().mean().item(),
        "word_f1": (2 * hits / (predicted.sum() + labels.words.sum())).item(),
    }


def main() -> None:
    parser = recipe_parser(__doc__, RUN, steps=3000, batch=64, learning_rate=2e-3, seed=11)
    parser.add_argument("--out", type=Path, default=ASSETS / "emoji-features")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train, held_out = load_emoji("train"), load_emoji("heldout")
    network = build_network(train.captions).to(memory_format=torch.channels_last)
    labels = labels_of(train.captions, network)
    run = ResumableRun(args, network, warmup=100, weight_decay=0.05, ema_decay=0.99)
    for step in run:
        chosen = torch.randint(len(train), (args.batch,), generator=run.generator)
        category, vendor, words = network(shifted(train.images[chosen], run.generator))
        loss = F.cross_entropy(category, labels.category[chosen])
        loss = loss + F.cross_entropy(vendor, labels.vendor[chosen])
        loss = loss + WORD_WEIGHT * F.binary_cross_entropy_with_logits(words, labels.words[chosen])
        loss.backward()
        run.record(loss)
        if step % 250 == 249:
            print(held_out_figures(network, held_out), flush=True)
    run.use_ema()
    network.save(args.out)
    print(f"{held_out_figures(EmojiFeatureNetwork.load(args.out), held_out)} in {args.out}")


if __name__ == "__main__":
    main()
