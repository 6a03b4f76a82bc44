"""Arguments of a recipe, and a resumable training loop: warm-up, decay, EMA, log and checkpoints."""

import argparse
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

MUON_FACTOR = 6.0  # an update of Muon by the learning rate 0.006 has the size of one by 0.02 in the form of Jordan et al.


def recipe_parser(
    description: str, run: Path, *, steps: int, batch: int, learning_rate: float, seed: int
) -> argparse.ArgumentParser:
    """The arguments of all training recipes, with the defaults of one recipe."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=run, help="folder of checkpoints and log")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="training time: fewer steps, and the decay to fit")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--learning-rate", type=float, default=learning_rate)
    parser.add_argument("--seed", type=int, default=seed)
    return parser


class ResumableRun:
    """Iterates over the steps of a recipe; the loop body of the recipe computes a loss and calls `backward`.

    The data of a step must be sampled with `run.generator`, which is seeded by (seed, step): a resumed run then sees the
    same data as an uninterrupted run.

    Args:
        args: arguments of a `recipe_parser`.
        decay_fraction: last fraction of the steps, over which the learning rate decays to zero by a cosine; constant before.
        muon: matrices that Muon trains (Jordan et al. 2024), at `MUON_FACTOR` times the learning rate; AdamW trains the others.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        network: nn.Module,
        *,
        warmup: int = 200,
        weight_decay: float = 0.01,
        ema_decay: float = 0.999,
        decay_fraction: float = 1.0,
        muon: Sequence[nn.Parameter] = (),
        checkpoint_seconds: float = 120,
    ) -> None:
        self.folder, self.network, self.steps, self.minutes, self.warmup = args.run, network, args.steps, args.minutes, warmup
        self.seed, self.ema_decay = args.seed, ema_decay
        self.decay_fraction, self.checkpoint_seconds = decay_fraction, checkpoint_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        matrices = {id(parameter) for parameter in muon}
        others = [parameter for parameter in network.parameters() if id(parameter) not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, args.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=True)
        ]
        if muon:
            rate = MUON_FACTOR * args.learning_rate
            self.optimizers.append(torch.optim.Muon(muon, rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.ema = [p.detach().clone() for p in network.parameters()]
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.generator = torch.Generator()
        if (self.folder / "checkpoint.pt").exists():
            self._load()

    @property
    def progress(self) -> float:
        """Fraction of the training, in steps or in minutes, whichever is further."""
        return max(self.step / self.steps, self.seconds / 60 / self.minutes)

    def __iter__(self) -> Iterator[int]:
        saved = logged = time.monotonic()
        while self.progress < 1:
            self.generator.manual_seed(self.seed * 1_000_003 + self.step)
            progress = max(0.0, 1 - (1 - self.progress) / self.decay_fraction)
            scale = min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
            for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * scale
            started = time.monotonic()
            yield self.step
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.ema, [p.detach() for p in self.network.parameters()], 1 - decay)
            now = time.monotonic()
            self.seconds += now - started
            if now - logged > 15:
                self._log()
                logged = now
            if now - saved > self.checkpoint_seconds or self.progress >= 1:
                self._save()
                saved = now

    def record(self, loss: torch.Tensor) -> None:
        self.losses.append(loss.detach())

    def use_ema(self) -> None:
        """Overwrite the network's weights with their EMA (at the end, before the result is saved)."""
        for parameter, average in zip(self.network.parameters(), self.ema, strict=True):
            parameter.data.copy_(average)

    def _log(self) -> None:
        loss = torch.stack(self.losses).mean().item() if self.losses else float("nan")
        self.losses.clear()
        remaining = self.seconds / 60 * (1 / self.progress - 1)
        line = {"step": self.step, "loss": round(loss, 5), "minutes": round(self.seconds / 60, 2)}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        print(f"step {self.step}  loss {loss:.5f}  {remaining:.0f} min left", flush=True)

    def _save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")

    def _load(self) -> None:
        state = torch.load(self.folder / "checkpoint.pt", weights_only=True)
        self.network.load_state_dict(state["network"])
        for optimizer, moments in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(moments)
        self.ema, self.step, self.seconds = state["ema"], state["step"], state["seconds"]
        print(f"resumed at step {self.step}")
