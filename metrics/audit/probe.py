"""A linear probe that predicts an attribute of an image from its features, fitted to labels from captions.

The probe makes errors, so its accuracy on held-out images is reported with its predictions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from gendistill.metrics.features.matrix import Features


@dataclass(frozen=True)
class AttributeRule:
    """The words in a caption that name the values of an attribute.

    Attributes:
        values: value -> one phrase or several, matched as complete words in any case. The longest phrase has precedence: in
            "medium-dark skin tone" neither "dark skin tone" nor "medium skin tone" is found.
        otherwise: the value of captions with none of the phrases; None: these have no label.
    """

    name: str
    values: Mapping[str, str | Sequence[str]]
    otherwise: str | None = None

    def label(self, caption: str) -> str | None:
        """The value that the caption names; None if it names several, or none and there is no `otherwise`."""
        rest, found = caption.lower(), set()
        phrases = [(p.lower(), value) for value, ps in self.values.items() for p in ([ps] if isinstance(ps, str) else ps)]
        for phrase, value in sorted(phrases, key=lambda pair: -len(pair[0])):
            # A hyphen joins words: "dark" does not match in "medium-dark".
            rest, times = re.subn(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", " ", rest)
            if times:
                found.add(value)
        return found.pop() if len(found) == 1 else None if found else self.otherwise

    def labels(self, captions: Sequence[str]) -> list[str | None]:
        """The label of each caption."""
        return [self.label(caption) for caption in captions]


def colour_histogram(images: torch.Tensor, bins: int = 8) -> torch.Tensor:
    """Square roots of the fractions of pixels in each of bins^3 cells of RGB, float32 (N, bins^3), of uint8 (N, 3, H, W).

    For attributes that are a colour, such as a skin tone, which the features of an object classifier partly lose. With the
    square roots, Euclidean distances are Hellinger distances, so that a few coloured pixels on white count.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: got {images.dtype} {tuple(images.shape)}, expects torch.uint8 (N, 3, H, W).")
    parts = []
    for batch in images.split(256):
        level = (batch.long() * bins) // 256
        cell = ((level[:, 0] * bins + level[:, 1]) * bins + level[:, 2]).flatten(1)
        counts = torch.zeros(len(batch), bins**3).scatter_add_(1, cell, torch.ones(cell.shape))
        parts.append((counts / cell.shape[1]).sqrt())
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A multinomial logistic regression over standardised features, with its accuracy on held-out images.

    Attributes:
        values: K names.
        confusion: float64 (K, K), the fraction of the test images of value i that were predicted as j.
        count: number of labelled images that it was fitted to.
        tested_on: description of the test images.
    """

    attribute: str
    values: tuple[str, ...]
    accuracy: float
    confusion: NDArray[np.float64]
    count: int
    tested_on: str
    mean: torch.Tensor = field(repr=False)  # (D,)
    scale: torch.Tensor = field(repr=False)  # (D,)
    weight: torch.Tensor = field(repr=False)  # (D + 1, K), the last row the bias

    def probabilities(self, features: Features) -> NDArray[np.float64]:
        """Probabilities of the values, float64 (N, K), from features (N, D)."""
        x = (torch.as_tensor(features).double() - self.mean) / self.scale
        return torch.softmax(x @ self.weight[:-1] + self.weight[-1], dim=1).numpy()

    def predict(self, features: Features) -> list[str]:
        """The likeliest value of each image."""
        return [self.values[k] for k in self.probabilities(features).argmax(axis=1)]

    def tested(self, features: Features, labels: Sequence[str | None], on: str) -> "LinearProbe":
        """The same probe with its accuracy and confusion on other images, described by `on`.

        A probe that was fitted to real images is less accurate on generated ones. Images that the teacher generates from
        prompts with the value measure this: the accuracy on them includes the errors of both the probe and the teacher.

        Raises:
            ValueError: the numbers differ, a label is not one of the probe's values, or a value has no images.
        """
        if len(labels) != len(features) or {label for label in labels if label is not None} != set(self.values):
            got = sorted({str(label) for label in labels if label is not None})
            raise ValueError(
                f"labels: got {len(labels)} of {got} for {len(features)} features, expects one per image, and all of "
                f"{list(self.values)}."
            )
        rows = [k for k, label in enumerate(labels) if label is not None]
        true = np.array([self.values.index(str(labels[k])) for k in rows])
        predicted = self.probabilities(features).argmax(axis=1)[rows]
        accuracy, confusion = float((predicted == true).mean()), _confusion(true, predicted, len(self.values))
        return replace(self, accuracy=accuracy, confusion=confusion, tested_on=on)


def fit_probe(
    features: Features,
    labels: Sequence[str | None],
    *,
    attribute: str = "attribute",
    groups: Sequence[str] | None = None,
    l2: float = 0.01,
    folds: int = 5,
    seed: int = 0,
) -> LinearProbe:
    """Fit a probe to all labelled images; its accuracy and confusion come from cross-validation.

    Every value has the same total weight, however many images have it, so that the predicted fractions are not biased towards
    those of the training images.

    Args:
        features: (N, D).
        labels: N, None for images that are left out.
        groups: N names; images of one group, such as images of one person, are in the same fold. Without them,
            near-duplicates make the accuracy too high.
        l2: penalty on the weights of the standardised features, added to the mean log loss.

    Raises:
        ValueError: the numbers differ, or fewer than two values have images in two folds.
    """
    x = torch.as_tensor(features).double()
    if x.ndim != 2 or len(labels) != len(x) or (groups is not None and len(groups) != len(x)):
        counts = f"{len(labels)} labels" + ("" if groups is None else f" and {len(groups)} groups")
        raise ValueError(f"labels: got {counts} for features {tuple(x.shape)}, expects one per image.")
    rows = [k for k, label in enumerate(labels) if label is not None]
    values, y = np.unique([str(labels[k]) for k in rows], return_inverse=True)
    x = x[rows]
    fold = _folds([groups[k] if groups is not None else str(k) for k in rows], folds, seed)
    if len(values) < 2 or any(len(np.unique(fold[y == k])) < 2 for k in range(len(values))):
        counts_by_value = {str(v): int((y == k).sum()) for k, v in enumerate(values)}
        raise ValueError(f"labels: got {counts_by_value}, expects at least two values with images in at least two groups each.")
    predicted = np.empty(len(y), dtype=int)
    for held_out in np.unique(fold):
        mean, scale, weight = _fit(x[fold != held_out], y[fold != held_out], len(values), l2)
        logits = (x[fold == held_out] - mean) / scale @ weight[:-1] + weight[-1]
        predicted[fold == held_out] = logits.argmax(dim=1).numpy()
    mean, scale, weight = _fit(x, y, len(values), l2)
    return LinearProbe(
        attribute=attribute,
        values=tuple(values.tolist()),
        accuracy=float((predicted == y).mean()),
        confusion=_confusion(y, predicted, len(values)),
        count=len(y),
        tested_on="held-out real images",
        mean=mean,
        scale=scale,
        weight=weight,
    )


def _confusion(true: NDArray[np.int64], predicted: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    confusion = np.zeros((count, count))
    np.add.at(confusion, (true, predicted), 1)
    return confusion / confusion.sum(axis=1, keepdims=True)


def _folds(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each image, the same within a group."""
    names, number = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.random.default_rng(seed).permutation(np.arange(len(names)) % folds)[number]


def _fit(x: torch.Tensor, y: NDArray[np.int64], count: int, l2: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean (D,), scale (D,) and weight (D + 1, K) that minimise the penalised log loss, by L-BFGS in float64."""
    mean, scale = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(scale > 1e-12, scale, 1.0)  # a constant feature is not scaled
    target = torch.from_numpy(y)
    class_weight = len(y) / (count * torch.bincount(target, minlength=count).double().clamp(min=1))
    z = (x - mean) / scale
    weight = torch.zeros(x.shape[1] + 1, count, dtype=torch.double, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=200, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(z @ weight[:-1] + weight[-1], target, class_weight)
        value = value + l2 / 2 * weight[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return mean, scale, weight.detach()
