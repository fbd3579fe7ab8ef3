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
from .words import VALUES

N_FACTS = 8
# Questions for each context: contexts differ in how hard their facts are, so many contexts get few questions each.
ASKED = 2
DISTANCES = (0, 256, 1024, 2048, 3800)
SAMPLES: tuple[tuple[str, ...], ...] = (
    ("Hello, my name is Clara.", "What are you?", "What is my name?"),
    (
        "The password of the harbor is violet. The password of the mill is honey.",
        "What is the password of the harbor?",
        "What is the password of the mill?",
    ),
    ("Tell me a story about Clara.", "Where did Clara go?"),
    ("Tell me something about Python.", "What is an owl?", "Write a paragraph about SQLite."),
    ("Repeat this: swan copper tavern Leo rain lantern", "Thank you."),
)


Question = tuple[str, str, str, str]


def context(rng: random.Random, prose: Prose, distance: int) -> tuple[str, list[Question]]:
    """Eight facts and prose after them; and for each fact (question, answer up to the value, value, the rest).

    `distance` is the mean number of tokens between a value and the place where it must be repeated; 0: no prose.
    """
    facts = dialogues.make_facts(rng, N_FACTS)
    told = " ".join(f.statement for f in facts)
    pieces = [*dialogues.turn("user", told), *dialogues.turn("assistant", "Noted.")]
    questions = []
    for fact in facts:
        ask = [*dialogues.turn("user", fact.question), (f"{dialogues.TURN_START}assistant\n", 1.0)]
        questions.append(
            ("".join(t for t, _ in ask), fact.before, f" {fact.value}", fact.after + dialogues.TURN_END)
        )
    if distance:
        near = prose.count(told) // 2 + prose.count(questions[0][0] + facts[0].before) + 30
        text = ""
        for _ in range(200):
            room = distance - near - prose.count(text)
            if room < 40:
                break
            text = f"{text} {prose.filler(rng, room)}".strip()
        pieces += [*dialogues.turn("user", "Read this. " + text), *dialogues.turn("assistant", "Done.")]
    return "".join(t for t, _ in pieces), questions


@torch.no_grad()
def ask_all(
    model: DemoModel, prose: Prose, prefix: str, questions: list[Question]
) -> list[tuple[bool, bool, bool, int]]:
    """For each question: whether the greedy answer is exact up to its end mark, whether its word is right, whether it
    is any value at all, and how many tokens back the value is.

    All questions follow the same context and are hidden from each other by position and mask, so the long text is read
    once. One forward pass over the wanted answers is enough: greedy decoding yields exactly the wanted answer if and
    only if each of its tokens is the most likely one after those before it.
    """
    encode = prose.tokenizer.encode
    ids = list(encode(prefix).ids)
    n = len(ids)
    words = {encode(f" {w}").ids[0] for w in VALUES}
    positions, owner, spans = list(range(n)), [0] * n, []
    for number, (ask, before, value, after) in enumerate(questions, 1):
        parts = [encode(part).ids for part in (ask, before, value, after)]
        start = len(ids) + len(parts[0])
        spans.append((start, start + len(parts[1])))
        branch = [i for part in parts for i in part]
        ids += branch
        positions += range(n, n + len(branch))
        owner += [number] * len(branch)
    who = torch.tensor(owner)
    mask = ((who[None] == 0) | (who[None] == who[:, None])).tril()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.tensor([ids]), torch.tensor([positions]), mask)[0]
    best = logits.argmax(-1).tolist()
    out = []
    for number, (start, at) in enumerate(spans, 1):
        end = len(owner) - owner[::-1].index(number)
        exact = best[start - 1 : end - 1] == ids[start:end]
        back = positions[at] - ids.index(ids[at])
        out.append((exact, best[at - 1] == ids[at], best[at - 1] in words, back))
    return out


def measure_recall(model: DemoModel, prose: Prose, seed: int, trials: int) -> list[dict[str, float]]:
    """Per distance, over at least `trials` questions: shares of exact answers, right words, any value words."""
    rows = []
    for distance in DISTANCES:
        rng = random.Random(f"{seed}/recall/{distance}")
        results: list[tuple[bool, bool, bool, int]] = []
        while len(results) < trials:
            prefix, questions = context(rng, prose, distance)
            results += ask_all(model, prose, prefix, rng.sample(questions, ASKED))
        exact, right, among, back = (sum(column) / len(results) for column in zip(*results, strict=True))
        rows.append({"distance": back, "exact": exact, "right": right, "a value": among, "n": len(results)})
        print(
            f"recall: about {back:.0f} tokens back: {exact:.0%} exact, {right:.0%} right word, "
            f"{among:.0%} some value word ({len(results)} questions; chance {1 / N_FACTS:.1%} of the told "
            f"words, {1 / len(VALUES):.1%} of all)",
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


def report(work: Path, home: Path, seed: int, trials: int, threads: int) -> None:
    """Measure the newest checkpoint in `home`, print the figures and write them to home/figures.json."""
    torch.set_num_threads(threads)
    model, data = load_model(home / "checkpoint.pt")
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
    (home / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
