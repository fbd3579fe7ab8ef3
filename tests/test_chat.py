"""`minicache chat`: from the command line, and its conversation from inside."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import gguf
import pytest
import tiny_models

from minicache_cpp import Llama, MiniCache, MiniCacheError
from minicache_cpp.cache.room import require_room
from minicache_cpp.chat.console import template_of
from minicache_cpp.chat.conversation import AnswerWriter, Conversation, Sampling
from minicache_cpp.chat.file import load_chat, save_chat
from minicache_cpp.host import demo_model, memory
from minicache_cpp.host.memory import available_bytes
from minicache_cpp.native.binding import llama_h

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
)
CACHE = "slerp:type=q8_0"
SMALL = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "verbose": False}
QUIET = pytest.mark.filterwarnings("ignore::minicache_cpp.MiniCacheWarning")


@pytest.fixture(scope="module")
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
            model.weights["output.weight"][tiny_models.EOS] = 0  # answers end where a test says
            found[name] = model.write(folder / f"{name}.gguf")
    return found


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command, its answers short and always the same."""
    command = [sys.executable, "-m", "minicache_cpp.chat", "--threads", "1", *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


def notes(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines beside the answers; anything else on stderr would be llama.cpp's log, or a traceback."""
    lines = done.stderr.splitlines()
    assert all(line.startswith("[") and line.endswith("]") for line in lines), done.stderr
    return [line[1:-1] for line in lines]


#
# the command
#


def test_one_question_one_answer(models: dict[str, Path]) -> None:
    arguments = ["--prompt", "hello", "--max-tokens", 12, "--seed", 3, "--ctx", 300, "--config", "slerp"]
    done = run(models["chat"], *arguments)
    assert done.returncode == 0
    assert done.stdout.strip()
    said = notes(done)
    assert "mean distance of 0.5" in said[0]  # the paper's settings, on a model they do not suit
    assert said[-1].startswith("KV ")
    assert "of 512" in said[-1]  # llama.cpp rounds a context up to 256 cells
    assert "ratio 1.18" in said[-1]
    again = run(models["chat"], *arguments)
    assert again.stdout == done.stdout


def test_a_plain_cache_for_comparison(models: dict[str, Path]) -> None:
    for arguments, ratio in ((["--no-minicache"], "ratio 1.00"), (["--config", "q4_0"], "ratio 3.56")):
        said = notes(run(models["chat"], "--prompt", "hello", "--max-tokens", 4, *arguments))
        assert len(said) == 1
        assert ratio in said[0]


def test_piped_messages_and_commands(models: dict[str, Path], tmp_path: Path) -> None:
    saved = tmp_path / "chat.saved"
    lines = ["hello", "/memory", f"/save {saved}", "again", "/reset", f"/load {saved}", "again", "/save", "/load",
             "/load /nowhere", "/nonsense", "/help", "/quit", "not read any more"]  # fmt: skip
    done = run(models["chat"], "--max-tokens", 8, "--temp", 0, "--config", CACHE, stdin="\n".join(lines))
    assert done.returncode == 0
    said = notes(done)
    assert sum(line.startswith("KV ") for line in said) == 3
    for words in ("saved", "is empty", "messages", "/save FILE", "/load FILE", "/nowhere", "/nonsense is no"):
        assert any(words in line for line in said), words
    assert "merged layers 3+4" in done.stdout
    assert "/load FILE" in done.stdout
    used = [line.split("context ")[1].split()[0] for line in said if line.startswith("KV ")]
    assert used[1] == used[2]  # the second "again" went on from where the file left off


def test_the_end_of_a_pipe_is_the_end(models: dict[str, Path]) -> None:
    done = run(models["chat"], "--max-tokens", 4, stdin="hello\n\n  \nhow are you")
    assert done.returncode == 0
    assert sum(line.startswith("KV ") for line in notes(done)) == 2


def test_json_is_one_object(models: dict[str, Path]) -> None:
    arguments = ["--json", "--max-tokens", 6, "--config", CACHE, "--system", "be kind", "--ctx", 256]
    arguments += ["--seed", 1]
    done = run(models["chat"], "--prompt", "hello\nworld", *arguments)
    piped = run(models["chat"], *arguments, stdin="hello\nworld")
    found = json.loads(done.stdout)
    assert found["answer"] == json.loads(piped.stdout)["answer"]
    assert found["finish_reason"] == "length"
    assert found["tokens"] == 6
    assert found["context"] == 256
    assert found["context_used"] == found["prompt_tokens"] + 6
    assert found["cache"] == MiniCache(type_k="q8_0", type_v="q8_0").spec()
    assert found["ratio"] == pytest.approx(found["kv_bytes_f16"] / found["kv_bytes"], rel=0.01)
    assert found["tokens_per_second"] > 0
    assert "mean distance" in found["warnings"][0]


def test_a_model_without_template_still_talks(models: dict[str, Path]) -> None:
    done = run(models["plain"], "--prompt", "hello", "--max-tokens", 4)
    assert done.returncode == 0
    assert "no chat template" in notes(done)[1]


def test_without_a_plan_and_calibration_the_cache_is_q8_0(models: dict[str, Path]) -> None:
    for arguments in ([], ["--config", "auto"], ["--calibrate", "never"]):
        said = notes(run(models["chat"], "--prompt", "hello", "--max-tokens", 4, *arguments))
        assert "plain q8_0" in said[0]
        assert f"minicache calibrate {models['chat']}" in said[0]
        assert "ratio 1.88" in said[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none.gguf"], "does not exist"),
        (["{tmp}"], "is a directory"),
        (["{tmp}/text.gguf"], "is not a GGUF file"),
        (["{tmp}/empty.gguf"], "is not a GGUF file"),
        (["{tmp}/short.gguf"], "is truncated"),
        (["{tmp}/martian.gguf"], "martian"),
        (["{tmp}/hollow.gguf"], "can't be used"),
        (["{model}", "--ctx", "2000000000"], "of memory is free; take a smaller --ctx"),
        (["{model}", "--ctx", "0"], "1 or more"),
        (["{model}", "--threads", "-1"], "1 or more"),
        (["{model}", "--temp", "nan"], "--temp"),
        (["{model}", "--top-p", "2"], "from 0 to 1"),
        (["{model}", "--config", "q3"], "no cache setting"),
        (["{model}", "--config", "slerp:t=1.5"], "[0, 1]"),
        (["{model}", "--config", "slerp:start=6"], "0 to 5"),
        (["{model}", "--config", "slerp:pairs=1-2;2-3"], "overlaps"),
        (["{model}", "--config", "slerp:start=5,strict=1"], "strict"),
        (["{model}", "--config", "{tmp}/none.gguf"], "none.gguf does not exist"),
        (["{model}", "--config", "{model}"], "is no plan"),
        (["{model}", "--prompt", "x", "--ctx", "256", "--json", "--system", "y" * 300], "tokens"),
        (["{broken}"], "chat template"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    models: dict[str, Path], bad_files: Path, arguments: list[str], words: str
) -> None:
    names = {"{tmp}": str(bad_files), "{model}": str(models["chat"]), "{broken}": str(models["broken"])}
    for name, path in names.items():
        arguments = [argument.replace(name, path) for argument in arguments]
    done = run(*arguments, stdin="hello\n")
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(lines) == 1, done.stderr
    assert words in lines[0]


@pytest.fixture(scope="module")
def bad_files(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.gguf").write_text("hello")
    (folder / "empty.gguf").write_bytes(b"")
    data = models["chat"].read_bytes()
    (folder / "short.gguf").write_bytes(data[: len(data) // 2])
    for name, arch in (("martian", "martian"), ("hollow", "llama")):  # hollow: keys, and no tensors
        writer = gguf.GGUFWriter(folder / f"{name}.gguf", arch)
        writer.add_block_count(2)
        writer.add_embedding_length(64)
        writer.add_head_count(2)
        tiny_models.finish(writer)
    return folder


def test_arguments_that_exclude_each_other_are_a_usage_error(models: dict[str, Path]) -> None:
    done = run(models["chat"], "--no-minicache", "--config", "q8_0")
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_stops_the_answer_and_not_the_program(models: dict[str, Path]) -> None:
    command = [sys.executable, "-u", "-m", "minicache_cpp", "chat", str(models["chat"]), "--threads", "1"]
    # what is likeliest goes on for ever: this model's answers have no end of their own
    chat = subprocess.Popen(
        [*command, "--temp", "0", "--config", "f16"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert chat.stdin and chat.stdout
    chat.stdin.write(b"hello\n")
    chat.stdin.flush()
    assert chat.stdout.read(40)  # it has begun
    chat.send_signal(signal.SIGINT)
    out, err = chat.communicate(b"/memory\n/quit\n", timeout=60)
    assert chat.returncode == 0, err
    assert b"[stopped]" in err
    assert b"KV cache of" in out


@pytest.fixture
def heeds_sigint() -> Iterator[None]:
    """Children don't inherit an ignored SIGINT, which a shell's background jobs have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
def test_ctrl_c_at_the_prompt_tells_how_to_leave(models: dict[str, Path], heeds_sigint: None) -> None:
    import pty

    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "minicache_cpp", "chat", str(models["chat"]), "--threads", "1"]
    chat = subprocess.Popen(
        [*command, "--max-tokens", "4"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = b""

    def until(words: bytes) -> None:
        nonlocal shown
        while words not in shown:
            assert select.select([controller], [], [], 60)[0], shown
            shown += os.read(controller, 1000)
        shown = shown.partition(words)[2]

    try:
        until(b"> ")
        time.sleep(0.5)  # the prompt is shown a moment before the program listens
        chat.send_signal(signal.SIGINT)
        until(b"Ctrl-D leaves")
        os.write(controller, b"hello\n")
        until(b"tokens/s")
        os.write(controller, b"/quit\n")
        assert chat.wait(timeout=60) == 0
    finally:
        chat.kill()
        os.close(controller)


def test_the_demo_model_is_found_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, prefix, here = (tmp_path / name for name in ("lib/site/package", "checkout/.venv", "elsewhere"))
    for folder in (package, prefix, here):
        folder.mkdir(parents=True)
    monkeypatch.setattr(demo_model, "__file__", str(package / "host" / "demo_model.py"))
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.chdir(here)
    with pytest.raises(MiniCacheError, match="name a GGUF file"):
        demo_model.demo_model()
    for root in (here, tmp_path / "checkout", package):
        (root / "models").mkdir()
        (root / "models" / demo_model.NAME).write_bytes(b"GGUF")
        assert demo_model.demo_model() == root / "models" / demo_model.NAME
        with pytest.raises(MiniCacheError, match=demo_model.MHA_NAME):
            demo_model.demo_model(demo_model.MHA_NAME)


def test_a_cgroups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    proc.mkdir()
    cgroup.mkdir()
    monkeypatch.setattr(memory, "PROC", proc)
    monkeypatch.setattr(memory, "CGROUP", cgroup)
    assert available_bytes() is None  # nothing known, nothing refused
    require_room(1 << 40, 1 << 60)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert available_bytes() == 4000 * 1024
    (cgroup / "memory.current").write_text("3000000\n")
    (cgroup / "memory.stat").write_text("anon 5\ninactive_file 500000\n")
    (cgroup / "memory.max").write_text("max\n")
    assert available_bytes() == 4000 * 1024
    (cgroup / "memory.max").write_text("4000000\n")
    assert available_bytes() == 1500000
    require_room(4096, 1000000, 200000)
    with pytest.raises(MiniCacheError, match="smaller --ctx"):
        require_room(4096, 1000000, 600000)
    with pytest.raises(MiniCacheError, match="2 contexts of 4,096 tokens need"):  # the cells of each count
        require_room(4096, 1000000, 200000, n_contexts=2)


#
# the conversation
#


@pytest.fixture(scope="module")
def llm(models: dict[str, Path]) -> Iterator[Llama]:
    minicache = MiniCache(type_k="q8_0", type_v="q8_0")
    with Llama(str(models["chat"]), n_batch=64, minicache=minicache, **SMALL) as llm:
        yield llm


def talk(llm: Llama, system: str | None = "be kind") -> Conversation:
    return Conversation(llm, template_of(llm), system, Sampling(temp=0))


@QUIET
def test_history_is_not_read_again(llm: Llama) -> None:
    conversation = talk(llm)
    first = conversation.ask("hello", 10)
    used = llm.n_tokens
    second = conversation.ask("how are you?", 10)
    added = len(llm.tokenize(b"</s><s>user: how are you?</s><s>assistant: ", add_bos=False, special=True))
    assert second.n_prompt == added
    assert llm.n_tokens == used + added + second.n_tokens
    assert used == first.n_prompt + first.n_tokens
    assert [message["role"] for message in conversation.messages] == ["system", *["user", "assistant"] * 2]


@QUIET
def test_a_template_that_rewrites_history_costs_only_what_it_changes(llm: Llama) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    conversation.messages[-1]["content"] = "something else"  # as one that drops a model's thoughts would
    opening = len(llm.tokenize(b"<s>system: be kind</s><s>user: hello</s><s>assistant: ", False, True))
    answer = conversation.ask("more", 4)
    whole = llm.n_tokens - 4
    assert answer.n_prompt == whole - opening
    assert llm.detokenize(llm.input_ids[opening:whole].tolist()).startswith(b"something else")


@QUIET
def test_a_full_context_shifts_and_keeps_the_system_message(llm: Llama) -> None:
    conversation = talk(llm)
    start = llm.tokenize(b"<s>system: be kind</s><s>user: ", add_bos=False, special=True)
    dropped = 0
    for i in range(8):
        answer = conversation.ask(f"question {i}", 60)
        dropped += answer.dropped
        assert answer.n_tokens == 60
        assert llm.n_tokens <= 256
        memory = llama_h.llama_get_memory(llm.ctx)
        assert llama_h.llama_memory_seq_pos_min(memory, 0) == 0
        assert llama_h.llama_memory_seq_pos_max(memory, 0) == llm.n_tokens - 1
    assert dropped > 256
    assert llm.input_ids[: conversation.n_keep].tolist() == start


@QUIET
def test_a_context_that_cant_shift_forgets_the_oldest_messages(
    llm: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "can_shift", False)  # as a recurrent model's
    conversation = talk(llm)
    conversation.ask("first", 40)
    conversation.ask("second", 40)
    answer = conversation.ask("third", 1000)
    assert answer.finish == "full"
    assert llm.n_tokens == 256
    answer = conversation.ask("fourth", 10)
    assert answer.n_tokens == 10
    assert answer.dropped > 0
    assert [message["content"] for message in conversation.messages[:2]] == ["be kind", "fourth"]


@QUIET
def test_quantized_keys_of_small_heads_shift(models: dict[str, Path]) -> None:
    minicache = MiniCache(start=0, type_k="q8_0", type_v="q8_0")  # nor is there a plain layer
    with Llama(str(models["small heads"]), minicache=minicache, **SMALL) as llm:
        conversation = talk(llm)
        assert sum(conversation.ask(f"question {i}", 60).dropped for i in range(4)) > 0


@QUIET
def test_a_message_longer_than_the_context_changes_nothing(llm: Llama) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    before, messages = llm.input_ids[: llm.n_tokens].tolist(), list(conversation.messages)
    with pytest.raises(MiniCacheError, match="larger --ctx"):
        conversation.ask("x" * 300, 10)
    assert llm.input_ids[: llm.n_tokens].tolist() == before
    assert conversation.messages == messages
    assert conversation.ask("hello", 4).n_tokens == 4


@QUIET
@pytest.mark.parametrize("checks_before", [0, 1, 4])
def test_stopping_leaves_the_conversation_in_order(llm: Llama, checks_before: int) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 5)
    checks = 0

    def stopped() -> bool:
        nonlocal checks
        checks += 1
        return checks > checks_before

    used = llm.n_tokens
    answer = conversation.ask("x" * 80, 20, stopped=stopped)  # two batches to read
    assert answer.finish == "interrupted"
    if checks_before < 2:  # while the question was read
        assert (answer.text, llm.n_tokens, len(conversation.messages)) == ("", used, 3)
    else:
        assert answer.n_tokens == checks_before - 1
        assert len(conversation.messages) == 5
    again = conversation.ask("next", 3)
    if checks_before >= 2:
        assert again.n_prompt == len(llm.tokenize(b"</s><s>user: next</s><s>assistant: ", False, True))


@QUIET
def test_a_saved_chat_goes_on_as_it_would_have(llm: Llama, tmp_path: Path) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 30)
    save_chat(tmp_path / "saved", conversation, "cache")
    expected = conversation.ask("and?", 30)
    conversation.reset()
    conversation.ask("something else", 5)
    load_chat(tmp_path / "saved", conversation, "cache")
    answer = conversation.ask("and?", 30)
    assert answer.text == expected.text
    assert answer.n_prompt == expected.n_prompt


@QUIET
def test_a_saved_chat_that_does_not_fit_changes_nothing(
    llm: Llama, models: dict[str, Path], tmp_path: Path
) -> None:
    conversation = talk(llm)
    conversation.ask("hello", 10)
    saved = tmp_path / "saved"
    save_chat(saved, conversation, "cache")
    data = saved.read_bytes()
    (tmp_path / "short").write_bytes(data[:-10])
    (tmp_path / "other").write_bytes(b"GGUF" + data)
    (tmp_path / "wrong").write_bytes(data.replace(b'"n_keep": ', b'"n_kept": '))
    with Llama(str(models["no system"]), **SMALL) as other:
        save_chat(tmp_path / "model", Conversation(other, template_of(other), None, Sampling()), "cache")
    before, messages = llm.input_ids[: llm.n_tokens].tolist(), list(conversation.messages)
    for name, cache, words in (
        ("saved", "q4_0", "saved with the cache"),
        ("short", "cache", "incomplete"),
        ("other", "cache", "no saved chat"),
        ("wrong", "cache", "damaged"),
        ("model", "cache", "another model"),
        ("none", "cache", "can't be read"),
    ):
        with pytest.raises(MiniCacheError, match=words):
            load_chat(tmp_path / name, conversation, cache)
        assert llm.input_ids[: llm.n_tokens].tolist() == before
        assert conversation.messages == messages
    with pytest.raises(MiniCacheError, match="can't be written"):
        save_chat(tmp_path / "no" / "such", conversation, "cache")
    assert conversation.ask("hello", 4).n_tokens == 4


def test_templates_without_a_system_role_get_it_in_the_first_question(models: dict[str, Path]) -> None:
    with Llama(str(models["no system"]), **SMALL) as llm:
        template = template_of(llm)
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert template.render(messages) == "<s>user: be kind\n\nhello</s><s>assistant: "
    assert template.opening(messages[:1]) == "<s>user: be kind\n\n"


#
# the text of an answer
#


@pytest.mark.parametrize("cuts", [[1], [2], [1, 2, 3], [3, 4, 5, 6], []])
def test_characters_come_whole(cuts: list[int]) -> None:
    data = "aé漢🙂z".encode()
    pieces: list[str] = []
    writer = AnswerWriter(pieces.append, ())
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        writer.write(data[start:end])
    assert writer.finish() == "aé漢🙂z"
    assert "".join(pieces) == "aé漢🙂z"
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_cut_off_is_replaced() -> None:
    writer = AnswerWriter(lambda text: None, ())
    writer.write("é".encode()[:1])
    assert writer.finish() == "\ufffd"


def test_a_stop_text_is_never_shown() -> None:
    pieces: list[str] = []
    writer = AnswerWriter(pieces.append, ("\nUser:",))
    for piece in ("fine\n", "U", "ps\n", "Us", "er: more", " and more"):
        writer.write(piece.encode())
    assert writer.stopped
    assert writer.finish() == "fine\nUps"
    assert "".join(pieces) == "fine\nUps"
