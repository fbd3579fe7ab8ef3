"""Tiny models with chat templates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import gguf
import pytest

from minicache_cpp import Llama, MiniCache
from support import tiny_models
from support.chats import SMALL

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
)

NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    found = {"plain": tiny_models.parallel_model(equal=True).write(folder / "plain.gguf")}
    tokenizer = tiny_models.add_tokenizer
    for name, template, head_size in (
        ("chat", TEMPLATE, 64),
        ("small heads", TEMPLATE, 32),
        ("no system", NO_SYSTEM, 64),
        ("broken", "{% if %}", 64),
    ):

        def add(writer: gguf.GGUFWriter, template: str = template) -> None:
            tokenizer(writer)
            writer.add_chat_template(template)

        with mock.patch.object(tiny_models, "add_tokenizer", add):
            model = tiny_models.random_model(head_size=head_size)
            model.weights["output.weight"][tiny_models.EOS] = 0  # answers end only where a test ends them
            found[name] = model.write(folder / f"{name}.gguf")
    return found


@pytest.fixture(scope="module")
def llm(models: dict[str, Path]) -> Iterator[Llama]:
    minicache = MiniCache(type_k="q8_0", type_v="q8_0")
    with Llama(str(models["chat"]), n_batch=64, minicache=minicache, **SMALL) as llm:
        yield llm
