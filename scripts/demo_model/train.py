"""The training loop: resumable, deterministic given the seed and the thread count.

The learning rate is warmed up, stays level, and in the last part falls linearly to zero (warmup, stable,
decay). The level part has no fixed end: the decay and `total` can be set when a run is resumed, so that
a run can be fitted to the time at hand without changing the steps before.

Looking back is learned first, from short lists that are repeated several times: there most tokens depend on it, while
in a recall task one in twenty does, and with prose alone it would take many times the tokens.
"""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor

from . import tokenizer as tok
from .batches import REPEAT_WEIGHT, Batches
from .dialogues import ANSWER_WEIGHT
from .model import DemoModel
from .optim import Muon
from .recipes import ModelConfig, Recipe, Schedule

LONG = (1024, 2048, 4096)


def sequence_length(schedule: Schedule, step: int) -> int:
    """Tokens per sequence at a step."""
    phase = schedule.phase(step)
    rng = random.Random(f"{schedule.seed}/length/{step}")
    return rng.choice(LONG) if rng.random() < phase.long else phase.length


def save(
    path: Path,
    model: DemoModel,
    optimisers: list[torch.optim.Optimizer],
    step: int,
    schedule: Schedule,
    tokens: int,
) -> None:
    """Write a checkpoint; a run that is killed leaves the one before it whole."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "config": model.cfg.to_dict(),
            "step": step,
            "schedule": asdict(schedule),
            "tokens": tokens,
            "optimisers": [o.state_dict() for o in optimisers],
        },
        part,
    )
    part.replace(path)


def load_model(path: Path) -> tuple[DemoModel, dict[str, Any]]:
    """The model of a checkpoint, and the checkpoint itself."""
    data = torch.load(path, map_location="cpu", weights_only=True)
    model = DemoModel(ModelConfig(**data["config"]))
    model.load_state_dict(data["model"])
    return model, data


def split(model: DemoModel, qkv: bool) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices that Muon trains, those of q, k and v among them or not, and all other parameters: AdamW's.

    Muon needs fewer tokens. But most models that people use were trained with AdamW, and caches store K and V, so AdamW
    trains q, k and v for as long as they learn that way.
    """
    mixing: list[Tensor] = []
    rest: list[Tensor] = []
    for name, p in model.named_parameters():
        ours = (
            name.startswith("blocks.")
            and p.ndim == 2
            and (qkv or name.split(".")[2] not in ("wq", "wk", "wv"))
        )
        (mixing if ours else rest).append(p)
    return mixing, rest


def make_optimisers(model: DemoModel, schedule: Schedule, step: int) -> list[torch.optim.Optimizer]:
    """Muon and AdamW for the steps from `step` on, without momentum."""
    mixing, rest = split(model, qkv=schedule.muon_from is not None and step >= schedule.muon_from)
    return [
        Muon(mixing, lr=schedule.lr_muon, weight_decay=schedule.weight_decay),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim == 2], "weight_decay": schedule.weight_decay},
                {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def losses(model: DemoModel, ids: Tensor, positions: Tensor) -> Tensor:
    """Cross entropy in nats of predicting ids[:, 1:], [B, T]; matrix products in bfloat16."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(ids[:, :-1], positions)
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
        ids.shape[0], -1
    )


class Training:
    """A model in training: its optimisers, the steps that are done, and the tokens that it has seen."""

    def __init__(self, recipe: Recipe, n_vocab: int, home: Path) -> None:
        self.schedule, self.checkpoint = recipe.schedule, home / "checkpoint.pt"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = DemoModel(replace(recipe.config, n_vocab=n_vocab))
        self.model.reset(self.schedule.embed_std, self.schedule.output_copies)
        self.model.to(self.device)
        self.optimisers = make_optimisers(self.model, self.schedule, 0)
        self.step, self.tokens = 0, 0
        if self.checkpoint.exists():
            self.resume()

    def resume(self) -> None:
        """Continue from the last checkpoint."""
        data = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(data["model"])
        self.step, self.tokens = data["step"], data["tokens"]
        self.optimisers = make_optimisers(self.model, self.schedule, self.step - 1)
        for optimiser, state in zip(self.optimisers, data["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        print(f"train: resumed at step {self.step}", flush=True)

    def save(self) -> None:
        """Write the checkpoint."""
        save(self.checkpoint, self.model, self.optimisers, self.step, self.schedule, self.tokens)

    def learn(self, ids: Tensor, weights: Tensor, positions: Tensor) -> Tensor:
        """One step; returns the losses, [B, T], before it."""
        if self.step == self.schedule.muon_from:
            self.optimisers = make_optimisers(self.model, self.schedule, self.step)
        factor = self.schedule.rate(self.step)
        rates = (self.schedule.lr_muon, self.schedule.lr_adam)
        for optimiser, rate in zip(self.optimisers, rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
            optimiser.zero_grad(set_to_none=True)
        ce = losses(self.model, ids, positions)
        loss = (ce * weights).sum() / weights.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self.tokens += weights.numel()
        return ce.detach()


def mean_losses(ce: Tensor, weights: Tensor) -> dict[str, float]:
    """The mean losses of prose, of the words that answer, and of repeated lists, told apart by their weights."""
    values = {"loss": float(ce[weights == 1.0].mean())}
    for key, weight in (("answer", ANSWER_WEIGHT), ("repeat", REPEAT_WEIGHT)):
        if bool((weights == weight).any()):
            values[key] = float(ce[weights == weight].mean())
    return values


class Log:
    """A line of JSON for each step in home/log.jsonl, and every 20 steps one for people with running means."""

    def __init__(self, file: TextIO, start: int, total: int) -> None:
        self.file, self.start, self.total = file, start, total
        self.began = time.monotonic()
        self.mean: dict[str, float] = {}

    def add(
        self, training: Training, entry: dict[str, float], values: dict[str, float], speed: float
    ) -> None:
        """entry: what the last step was like; values: its losses; speed: tokens per second."""
        done, tokens = training.step, training.tokens
        for key, value in values.items():
            self.mean[key] = value if key not in self.mean else 0.96 * self.mean[key] + 0.04 * value
        line = {"step": done - 1, "tokens": tokens, **entry, **{k: round(v, 4) for k, v in values.items()}}
        self.file.write(json.dumps(line) + "\n")
        if done % 20 == 0 or done == self.total:
            self.file.flush()
            left = (time.monotonic() - self.began) / (done - self.start) * (self.total - done)
            print(
                f"train: step {done}/{self.total}, {tokens / 1e6:.2f} M tokens, "
                f"loss {self.mean['loss']:.3f}, recalled words {self.mean.get('answer', float('nan')):.3f}, "
                f"repeated lists {self.mean.get('repeat', float('nan')):.3f}, "
                f"{speed:.0f} tokens/s, about {left / 60:.0f} min left",
                flush=True,
            )


def run(
    work: Path, home: Path, recipe: Recipe, compile_model: bool, threads: int, save_every: int = 100
) -> None:
    """Train to `schedule.total` steps, from the last checkpoint in `home` or from the start; `work` has the corpus."""
    schedule = recipe.schedule
    torch.set_num_threads(threads)
    torch.manual_seed(schedule.seed)
    tokenizer = tok.load(work)
    batches = Batches(work, tokenizer, schedule.seed, recipe.packages)
    training = Training(recipe, tokenizer.get_vocab_size(), home)
    if compile_model:
        # All layers share the code compiled for one; the whole network at once would take minutes per length.
        for block in training.model.blocks:
            block.compile(dynamic=False)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    with open(home / "log.jsonl", "a", encoding="utf-8") as file:
        log = Log(file, training.step, schedule.total)
        for step in range(training.step, schedule.total):
            began = time.monotonic()
            length, phase = sequence_length(schedule, step), schedule.phase(step)
            count = max(1, phase.tokens // length)
            ids, weights = batches.batch(step, length, count, phase.mix)
            places = batches.positions(step, length, count, phase.mix.skip, training.model.cfg.n_ctx)
            made = time.monotonic() - began
            ids, weights, places = (
                torch.from_numpy(one).to(training.device) for one in (ids, weights[:, 1:], places)
            )
            values = mean_losses(training.learn(ids, weights, places), weights)
            seconds = time.monotonic() - began
            entry = {
                "length": length,
                "rate": schedule.rate(step),
                "seconds": round(seconds, 2),
                "batch": round(made, 2),
            }
            log.add(training, entry, values, count * length / seconds)
            if training.step % save_every == 0 or training.step == schedule.total or stop:
                training.save()
            if stop:
                print(f"train: stopped at step {training.step}, to be resumed", flush=True)
                return
