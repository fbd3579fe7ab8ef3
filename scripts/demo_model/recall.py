"""What the model can do: recall by distance against chance, held-out loss, sample chats."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import dialogues
from . import tokenizer as tok
from .batches import Prose, token_stream
from .corpus import documents
from .model import DemoModel
from .train import load_model

N_FACTS = 8
DISTANCES = (0, 256, 1024, 2048, 3800)
SAMPLES: tuple[tuple[str, ...], ...] = (
    ("Hello, my name is Clara.", "What are you?", "What is my name?"),
    (
        "The password of the harbor is violet. The password of the mill is honey.",
        "What is the password of the harbor?",
        "What is the password of the mill?",
    ),
    ("Tell me something about Python.", "Tell me something about PostgreSQL."),
    ("Repeat this: swan copper tavern Leo rain lantern", "Thank you."),
)


def trial(rng: random.Random, prose: Prose, distance: int) -> tuple[str, str, str, str]:
    """(prompt, answer up to the value, value, rest): eight facts, prose, one question about any of the facts.

    `distance` is the tokens between the told value and where it must be said; 0 puts no prose between.
    """
    facts = dialogues.make_facts(rng, N_FACTS)
    fact = rng.choice(facts)
    told = " ".join(f.statement for f in facts)
    pieces = dialogues.turn("user", told) + dialogues.turn("assistant", "Noted.")
    ask = dialogues.turn("user", fact.question) + [(f"{dialogues.TURN_START}assistant\n", 1.0)]
    if distance:
        after_value = told[told.index(fact.statement) + len(fact.statement) :]
        near = prose.count(after_value + "".join(t for t, _ in ask) + fact.before) + 40
        text = ""
        while prose.count(text) < distance - near - 24:
            text = (text + " " + prose.filler(rng, distance - near - prose.count(text))).strip()
        pieces += dialogues.turn("user", "Read this. " + text) + dialogues.turn("assistant", "Done.")
    prompt = "".join(t for t, _ in pieces + ask)
    return prompt, fact.before, " " + fact.value, fact.after + dialogues.TURN_END


@torch.no_grad()
def measure_recall(model: DemoModel, prose: Prose, seed: int, trials: int) -> list[dict[str, float]]:
    """Per distance: share of answers exact to the end mark under greedy decoding, share with the right word.

    One forward over prompt and wanted answer shows both: greedy decoding gives exactly the wanted answer if
    and only if each of its tokens is the most likely one after those before it.
    """
    rows = []
    for distance in DISTANCES:
        rng = random.Random(f"{seed}/recall/{distance}")
        exact = right = among = 0
        real = 0.0
        for _ in range(trials):
            prompt, before, value, after = trial(rng, prose, distance)
            encode = prose.tokenizer.encode
            ids = encode(prompt).ids
            start = len(ids)
            ids += encode(before).ids
            at = len(ids)
            ids += encode(value).ids + encode(after).ids
            told = [i for i in range(start) if ids[i] == ids[at]]
            real += at - told[0]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(torch.tensor([ids[:-1]]))[0, start - 1 :].float()
            best = logits.argmax(-1).tolist()
            exact += best == ids[start:]
            right += best[at - start] == ids[at]
            words = [encode(" " + w).ids[0] for w in dialogues.VALUES]
            among += best[at - start] in words
        rows.append(
            {
                "distance": real / trials,
                "exact": exact / trials,
                "right": right / trials,
                "a value": among / trials,
            }
        )
        print(
            f"recall: about {real / trials:.0f} tokens back: {exact / trials:.0%} exact, "
            f"{right / trials:.0%} right word, {among / trials:.0%} some value word "
            f"({trials} trials; chance {1 / N_FACTS:.1%} of the told "
            f"words, {1 / len(dialogues.VALUES):.1%} of all)",
            flush=True,
        )
    return rows


@torch.no_grad()
def window_losses(model: DemoModel, stream: np.ndarray, length: int, most: int) -> Tensor:
    """Nats per token of predicting the tokens of up to `most` windows of `length`; [windows, length]."""
    out = []
    for at in range(0, min(len(stream) - length, most * length), length):
        ids = torch.from_numpy(stream[at : at + length + 1].astype(np.int64))[None]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1])
        out.append(F.cross_entropy(logits[0].float(), ids[0, 1:], reduction="none"))
    return torch.stack(out) if out else torch.empty(0, length)


def measure_loss(model: DemoModel, prose: Prose, work: Path) -> dict[str, dict[str, float]]:
    """Held-out loss by package (windows of 512), and by position (windows of 4096 over all packages)."""
    rows = documents(work, "held-out")
    packages: dict[str, float] = {}
    total: list[Tensor] = []
    for name in sorted({row["package"] for row in rows}):
        stream = token_stream(prose.tokenizer, [row for row in rows if row["package"] == name])
        losses = window_losses(model, stream, 512, 20)
        if losses.numel():
            packages[name] = float(losses.mean())
            total.append(losses)
            print(
                f"loss: {name}: {packages[name]:.3f} nats per token, "
                f"perplexity {math.exp(packages[name]):.1f}",
                flush=True,
            )
    packages["all"] = float(torch.cat(total).mean())
    print(
        f"loss: all held-out: {packages['all']:.3f}, perplexity {math.exp(packages['all']):.1f}", flush=True
    )
    losses = window_losses(model, token_stream(prose.tokenizer, rows), 4096, 24)
    positions: dict[str, float] = {}
    for low, high in ((0, 64), (64, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 3072), (3072, 4096)):
        positions[f"{low}-{high}"] = float(losses[:, low:high].mean())
        print(f"loss: positions {low}-{high}: {positions[f'{low}-{high}']:.3f}", flush=True)
    return {"packages": packages, "positions": positions}


@torch.no_grad()
def reply(model: DemoModel, prose: Prose, prompt: str, most: int = 60) -> str:
    """Greedy continuation of a prompt up to the end of the turn."""
    ids = prose.tokenizer.encode(prompt).ids
    start = len(ids)
    end = prose.tokenizer.token_to_id(dialogues.TURN_END)
    while len(ids) - start < most:
        with torch.autocast("cpu", torch.bfloat16):
            best = int(model(torch.tensor([ids]))[0, -1].argmax())
        if best == end:
            break
        ids.append(best)
    return prose.tokenizer.decode(ids[start:], skip_special_tokens=False)


def report(work: Path, seed: int, trials: int, threads: int) -> None:
    """Measure the newest checkpoint, print the figures and write them to work/figures.json."""
    torch.set_num_threads(threads)
    model, data = load_model(work / "checkpoint.pt")
    model.eval()
    prose = Prose(tok.load(work), documents(work, "held-out"))
    print(f"step {data['step']}, {data['tokens'] / 1e6:.2f} M tokens", flush=True)
    figures: dict[str, object] = {"step": data["step"], "tokens": data["tokens"]}
    figures["recall"] = measure_recall(model, prose, seed, trials)
    figures["loss"] = measure_loss(model, prose, work)
    chats = []
    for said in SAMPLES:
        text = ""
        for line in said:
            text += (
                f"{dialogues.TURN_START}user\n{line}{dialogues.TURN_END}\n{dialogues.TURN_START}assistant\n"
            )
            answer = reply(model, prose, text)
            print(f"chat: > {line}\nchat: {answer}", flush=True)
            chats.append([line, answer])
            text += f"{answer}{dialogues.TURN_END}\n"
    figures["chats"] = chats
    (work / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
