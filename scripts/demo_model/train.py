"""The training loop: resumable, deterministic given the seed and the thread count.

The learning rate is warmed up, stays level, and in the last part falls linearly to zero (warmup, stable,
decay). The level part has no fixed end: the decay and `total` can be set when a run is resumed, so a run
is annealed to fit the time at hand without making the steps before depend on it.

Looking back is learned first, from short lists said several times over: there most tokens depend on it, in a recall
task one in twenty does, and prose alone would take many times the tokens.
"""

from __future__ import annotations

import json
import random
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import tokenizer as tok
from .batches import REPEAT_WEIGHT, Batches
from .dialogues import ANSWER_WEIGHT
from .model import DemoModel
from .optim import Muon
from .plans import ModelConfig, Plan, Recipe

LONG = (1024, 2048, 4096)


def sequence_length(plan: Plan, step: int) -> int:
    """Tokens per sequence at a step."""
    phase = plan.phase(step)
    rng = random.Random(f"{plan.seed}/length/{step}")
    return rng.choice(LONG) if rng.random() < phase.long else phase.length


def save(
    path: Path, model: DemoModel, optimisers: list[torch.optim.Optimizer], step: int, plan: Plan, tokens: int
) -> None:
    """Write a checkpoint beside its name and move it there, so that a killed run leaves a whole one."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "config": model.cfg.to_dict(),
            "step": step,
            "plan": asdict(plan),
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

    Muon spares tokens. Most models that people use were trained with AdamW, and K and V are what caches keep, so q, k
    and v are AdamW's as long as they learn that way.
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


def make_optimisers(model: DemoModel, plan: Plan, step: int) -> list[torch.optim.Optimizer]:
    """Muon and AdamW as they are from a step on, without what they have gathered."""
    mixing, rest = split(model, qkv=plan.muon_from is not None and step >= plan.muon_from)
    return [
        Muon(mixing, lr=plan.lr_muon, weight_decay=plan.weight_decay),
        torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim == 2], "weight_decay": plan.weight_decay},
                {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        ),
    ]


def run(
    work: Path, home: Path, recipe: Recipe, compile_model: bool, threads: int, save_every: int = 100
) -> None:
    """Train to `plan.total` steps, from the last checkpoint in `home` or from the start; `work` has the corpus."""
    plan = recipe.plan
    torch.set_num_threads(threads)
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tok.load(work)
    batches = Batches(work, tokenizer, plan.seed, recipe.packages)
    model = DemoModel(replace(recipe.config, n_vocab=tokenizer.get_vocab_size()))
    model.reset(plan.embed_std, plan.output_copies)
    model.to(device)
    optimisers = make_optimisers(model, plan, 0)
    base = (plan.lr_muon, plan.lr_adam)
    checkpoint = home / "checkpoint.pt"
    start, tokens = 0, 0
    if checkpoint.exists():
        data = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(data["model"])
        start, tokens = data["step"], data["tokens"]
        optimisers = make_optimisers(model, plan, start - 1)
        for optimiser, state in zip(optimisers, data["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        print(f"train: resumed at step {start}", flush=True)

    def losses(ids: Tensor, positions: Tensor) -> Tensor:
        """Cross entropy in nats of predicting ids[:, 1:], [B, T]; matrix products in bfloat16."""
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids[:, :-1], positions)
        return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
            ids.shape[0], -1
        )

    if compile_model:
        # All layers share the code compiled for one; the whole network at once would take minutes per length.
        for block in model.blocks:
            block.compile(dynamic=False)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    began = time.monotonic()
    mean: dict[str, float] = {}
    with open(home / "log.jsonl", "a", encoding="utf-8") as log:
        for step in range(start, plan.total):
            t0 = time.monotonic()
            length = sequence_length(plan, step)
            count = max(1, plan.phase(step).tokens // length)
            shares = plan.phase(step).mix
            ids_np, weights_np = batches.batch(step, length, count, shares)
            places = batches.positions(step, length, count, shares.skip, model.cfg.n_ctx)
            made = time.monotonic() - t0
            ids, weights = torch.from_numpy(ids_np).to(device), torch.from_numpy(weights_np[:, 1:]).to(device)
            factor = plan.rate(step)
            if step == plan.muon_from:
                optimisers = make_optimisers(model, plan, step)
            for optimiser, lr in zip(optimisers, base, strict=True):
                for group in optimiser.param_groups:
                    group["lr"] = lr * factor
                optimiser.zero_grad(set_to_none=True)
            ce = losses(ids, torch.from_numpy(places).to(device))
            loss = (ce * weights).sum() / weights.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()
            tokens += count * length
            ce, plain = ce.detach(), weights == 1.0
            values = {"loss": float(ce[plain].mean())}
            for key, weight in (("answer", ANSWER_WEIGHT), ("repeat", REPEAT_WEIGHT)):
                if bool((weights == weight).any()):
                    values[key] = float(ce[weights == weight].mean())
            for key, value in values.items():
                mean[key] = value if key not in mean else 0.96 * mean[key] + 0.04 * value
            seconds = time.monotonic() - t0
            log.write(
                json.dumps(
                    {
                        "step": step,
                        "length": length,
                        "tokens": tokens,
                        "rate": factor,
                        "seconds": round(seconds, 2),
                        "batch": round(made, 2),
                        **{k: round(v, 4) for k, v in values.items()},
                    }
                )
                + "\n"
            )
            if (step + 1) % 20 == 0 or step + 1 == plan.total:
                log.flush()
                left = (time.monotonic() - began) / (step + 1 - start) * (plan.total - step - 1)
                print(
                    f"train: step {step + 1}/{plan.total}, {tokens / 1e6:.2f} M tokens, "
                    f"loss {mean['loss']:.3f}, recalled words {mean.get('answer', float('nan')):.3f}, "
                    f"repeated lists {mean.get('repeat', float('nan')):.3f}, "
                    f"{count * length / seconds:.0f} tokens/s, "
                    f"about {left / 60:.0f} min left",
                    flush=True,
                )
            if (step + 1) % save_every == 0 or step + 1 == plan.total or stop:
                save(checkpoint, model, optimisers, step + 1, plan, tokens)
            if stop:
                print(f"train: stopped at step {step + 1}, to be resumed", flush=True)
                return
