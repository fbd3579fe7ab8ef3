"""What clients ask of `minicache serve`, through the openai package, while the cache is a plan's codes."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support.loaded import Loaded
from support.servers import Served, serving

HELLO: Any = [{"role": "user", "content": "hello"}]
# every answer is the likeliest one
GREEDY: dict[str, Any] = {"model": "tiny", "temperature": 0}
# tokens that are read together see each other exactly, and those in the cache as their random codes
ANEW: dict[str, Any] = {"extra_body": {"cache_prompt": False}}
WORDS = "The cat sat on the mat, and the dog lay beside it. "


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client() as one:
        yield one


def question(text: str) -> Any:
    return [{"role": "user", "content": text}]


def busy(served: Served) -> int:
    """How many slots work."""
    return sum(slot["is_processing"] for slot in json.loads(served.get("/slots")))


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stream_is_the_answer_in_parts(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, max_tokens=24, **ANEW, **GREEDY)
    assert whole.usage and whole.usage.completion_tokens == 24
    assert whole.choices[0].finish_reason == "length"
    stream = client.chat.completions.create(
        messages=HELLO, max_tokens=24, stream=True, stream_options={"include_usage": True}, **ANEW, **GREEDY
    )
    chunks = list(stream)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == whole.choices[0].message.content
    assert sum(map(bool, parts)) > 12
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 24
    assert whole.model == "tiny"


def test_four_streams_at_a_time(served: Served) -> None:
    spans: dict[int, tuple[float, float]] = {}
    answers: dict[int, str] = {}
    start = threading.Barrier(4)

    def read(number: int) -> None:
        times, text = [], ""
        with served.client() as client:
            start.wait()
            for chunk in client.chat.completions.create(
                messages=question(f"{number} {WORDS}"), max_tokens=150, stream=True, **GREEDY
            ):
                times.append(time.monotonic())
                text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        spans[number], answers[number] = (times[0], times[-1]), text

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(spans) == [0, 1, 2, 3]
    # the last one began before the first one ended
    assert max(begin for begin, _ in spans.values()) < min(end for _, end in spans.values())
    # each stream has its own conversation
    assert len({answer[:40] for answer in answers.values()}) == 4
    assert all(len(answer) == 150 for answer in answers.values())


def test_a_stream_that_is_closed_frees_its_slot(served: Served, client: openai.OpenAI) -> None:
    # the context shifts, so that this answer would go on
    stream = client.chat.completions.create(messages=HELLO, max_tokens=1_000_000, stream=True, **GREEDY)
    chunks = iter(stream)
    for _ in range(5):
        next(chunks)
    assert busy(served) == 1
    stream.close()
    until(lambda: busy(served) == 0)


def test_an_answer_that_is_longer_than_the_context(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=HELLO, max_tokens=600, **GREEDY)
    assert answer.usage and answer.usage.completion_tokens == 600
    assert len(answer.choices[0].message.content or "") == 600


def test_an_answer_to_a_schema(client: openai.OpenAI) -> None:
    schema: Any = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green"]},
            "sizes": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        },
        "required": ["colour", "sizes"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        messages=HELLO,
        max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}},
        **GREEDY,
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert set(found) == {"colour", "sizes"}
    assert found["colour"] in ("red", "green")
    assert [type(one) for one in found["sizes"]] == [bool, bool]


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=HELLO, max_tokens=6, logprobs=True, top_logprobs=4, **GREEDY
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content) == 6
    for token in logprobs.content:
        ranked = [one.logprob for one in token.top_logprobs]
        assert ranked == sorted(ranked, reverse=True)
        assert len(ranked) == 4
        # the likeliest was taken, and these are probabilities
        assert token.logprob == pytest.approx(ranked[0], abs=1e-4)
        assert 0 < sum(map(math.exp, ranked)) <= 1 + 1e-4


def test_a_prompt_that_is_known_is_not_read_again(served: Served) -> None:
    text = "a prompt that comes twice;" * 6
    timings = []
    for prompt in (text, f"{text} more"):
        status, answer = served.post("/completion", prompt=prompt, n_predict=4, temperature=0, id_slot=2)
        assert status == 200
        timings.append(answer["timings"])
    first, second = timings
    assert first["prompt_n"] > 100
    # an earlier conversation in this slot may have begun with the same token
    assert second["cache_n"] >= first["prompt_n"] + first["cache_n"]
    assert second["prompt_n"] < 12


def test_usage_counts_what_was_cached(client: openai.OpenAI) -> None:
    messages = question("once more " + WORDS * 2)
    first, second = (
        client.chat.completions.create(messages=messages, max_tokens=4, **GREEDY).usage for _ in range(2)
    )
    assert first and second and second.prompt_tokens_details
    assert second.prompt_tokens_details.cached_tokens == first.prompt_tokens - 1


def test_a_slot_is_saved_and_restored(served: Served, saved: Path) -> None:
    body = {"prompt": "to be kept: " + WORDS * 3, "n_predict": 12, "temperature": 0}
    _, first = served.post("/completion", id_slot=0, **body)
    status, kept = served.post("/slots/0?action=save", filename="one.bin")
    assert status == 200
    n_prompt = first["timings"]["prompt_n"] + first["timings"]["cache_n"]
    assert kept["n_saved"] == n_prompt + 11  # nobody has read the last token of the answer
    size = (saved / "one.bin").stat().st_size
    assert size == kept["n_written"]
    # what f16 takes for the same tokens: six layers, two heads of 64, K and V
    assert size < 6 * 2 * 64 * 2 * 2 * kept["n_saved"]
    _, goes_on = served.post("/completion", id_slot=0, **body)
    # in the slot it came from, after another conversation, and in another slot
    served.post("/completion", id_slot=0, prompt="something else", n_predict=8)
    for slot in (0, 3):
        status, restored = served.post(f"/slots/{slot}?action=restore", filename="one.bin")
        assert (status, restored["n_restored"]) == (200, kept["n_saved"])
        _, after = served.post("/completion", id_slot=slot, **body)
        assert after["timings"]["cache_n"] == goes_on["timings"]["cache_n"] == n_prompt - 1
        assert after["content"] == goes_on["content"]


@pytest.mark.parametrize("filename", ["../one.bin", "none.bin", ""])
def test_a_slot_is_not_restored_from_elsewhere(served: Served, filename: str) -> None:
    status, answer = served.post("/slots/1?action=restore", filename=filename)
    assert status == 400
    assert answer["error"]["message"]


def test_health_metrics_and_models(served: Served, client: openai.OpenAI) -> None:
    client.chat.completions.create(messages=HELLO, max_tokens=3, **GREEDY)
    assert json.loads(served.get("/health")) == {"status": "ok"}
    counts = dict(line.rsplit(" ", 1) for line in served.get("/metrics").splitlines() if line[0] != "#")
    assert float(counts["llamacpp:tokens_predicted_total"]) >= 3
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_a_bad_request_is_an_error_and_the_server_goes_on(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages="hello", max_tokens=4, **GREEDY)  # type: ignore[call-overload]
    too_long = question("word " * 400)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(messages=too_long, max_tokens=4, **GREEDY)
    assert client.chat.completions.create(messages=HELLO, max_tokens=4, **GREEDY).usage


def test_embeddings(tools_dir: Path, planned: Loaded) -> None:
    passed_on = ["--embeddings", "--pooling", "mean"]
    with (
        serving(tools_dir, planned.path, "--ctx", 256, "--", *passed_on) as served,
        served.client() as client,
    ):
        found = client.embeddings.create(model="tiny", input=["a cat", "a cat", "nothing"]).data
        vectors = [one.embedding for one in found]
        assert {len(vector) for vector in vectors} == {planned.tiny.shape.n_embd}
        assert math.hypot(*vectors[0]) == pytest.approx(1, abs=1e-4)
        assert vectors[0] == pytest.approx(vectors[1], abs=1e-4)
        assert math.dist(vectors[0], vectors[2]) > 0.1


def test_a_real_model_answers_with_the_plan_that_ships(tools_dir: Path, smollm2: Path) -> None:
    with (
        serving(tools_dir, smollm2, "--ctx", 1024, "--slots", 2) as served,
        served.client() as client,
    ):
        assert "the KV cache is merged" in served.said
        messages = question("What is the capital of France? Answer in one sentence.")
        answer = client.chat.completions.create(messages=messages, max_tokens=24, **GREEDY)
        assert "Paris" in (answer.choices[0].message.content or "")
