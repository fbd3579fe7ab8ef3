"""The tokenizer: byte-level BPE with the GPT-2 splitting rule, trained on corpus and generated text."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from . import dialogues, knowledge, stories
from .corpus import documents
from .words import SINGLE

N_VOCAB = 4096
SPECIALS = (dialogues.END_OF_TEXT, dialogues.TURN_START, dialogues.TURN_END, dialogues.PAD)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _texts(rows: list[dict[str, str]], seed: int) -> Iterator[str]:
    for row in rows:
        yield row["text"]
    # The words of the recall tasks should be single tokens, so they are made frequent enough to be merged early.
    rng = random.Random(f"{seed}/tokenizer")
    single = list(SINGLE)
    for _ in range(400):
        rng.shuffle(single)
        yield " " + " ".join(single)
    for _ in range(6):
        yield "\n".join(knowledge.DEFINITIONS.values())
        yield "\n".join(" ".join(sentences) for sentences in knowledge.SUMMARIES.values())
    for _ in range(2000):
        yield stories.story(rng)[0]
    for _ in range(4000):
        yield "\n".join(f"{f.statement} {f.question} {f.answer}" for f in dialogues.make_facts(rng, 4))


def train(work: Path, seed: int = 1) -> Tokenizer:
    """Train on the training split and save work/tokenizer.json; ids 0-3 are the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB,
        special_tokens=list(SPECIALS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    rows = documents(work, "train")
    random.Random(f"{seed}/shuffle").shuffle(rows)
    tokenizer.train_from_iterator(_texts(rows, seed), trainer)
    tokenizer.save(str(work / "tokenizer.json"))
    whole = sum(len(tokenizer.encode(f" {w}").ids) == 1 for w in SINGLE)
    print(
        f"tokenizer: {tokenizer.get_vocab_size()} tokens; {whole} of {len(SINGLE)} words are one token",
        flush=True,
    )
    return tokenizer


def load(work: Path) -> Tokenizer:
    """The trained tokenizer."""
    return Tokenizer.from_file(str(work / "tokenizer.json"))
