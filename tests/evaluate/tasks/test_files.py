"""Files of tasks: what is read from them, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minicache_cpp import MiniCacheError
from minicache_cpp.evaluate.tasks.files import read_task

CHOICE = '{"question": "Which?", "choices": ["a", "b"], "answer": 1}'
BLANK = '{"question": "A _ here.", "choices": ["a", "b"], "answer": 1}'
PROBLEM = '{"question": "How many?", "answer": "Five.\\n#### 5"}'
TRUTH = {"question": "Is it?", "mc1_targets": {"yes": 0, "no": 1}, "mc2_targets": {"yes": 0, "no": 1}}


@pytest.mark.parametrize(
    ("text", "kind", "places"),
    [
        (f"{CHOICE}\n\n{CHOICE}\n", "choices", ["line 1", "line 3"]),
        (f"\ufeff{PROBLEM}", "gsm8k", ["line 1"]),
        (json.dumps([TRUTH, TRUTH], indent=1), "truthfulqa", ["item 1", "item 2"]),
        ("1 A sat.\n2 Where is A?\tden\t1\n", "babi", ["line 2"]),
    ],
)
def test_items_are_known_by_their_places(tmp_path: Path, text: str, kind: str, places: list[str]) -> None:
    path = tmp_path / "some.task.jsonl"
    path.write_text(text, encoding="utf-8")
    found = read_task(path)
    assert (found.name, found.kind.name) == ("some.task", kind)
    assert [place for place, _ in found.items] == places


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{CHOICE}\n{{"question": \n', "line 2: not JSON (Expecting value, column"),
        (f"{CHOICE}\n\n[1]\n", "line 3: not a JSON object"),
        (f'{CHOICE}\n{{"question": "Which?", "choices": ["a"], "answer": 0}}', "line 2: 'choices' is not a list"),
        ('{"question": "Which?", "choices": ["a", ""], "answer": 0}', "line 1: a choice is not a text"),
        ('{"question": "Which?", "choices": ["a", "b"], "answer": 2}', "line 1: 'answer' is 2 and not the index"),
        ('{"question": "Which?", "choices": ["a", "b"], "answer": "a"}', "line 1: 'answer' is 'a' and not the index"),
        ('{"question": 7, "choices": ["a", "b"], "answer": 0}', "line 1: 'question' is not a text"),
        (f"{BLANK}\n{CHOICE}", "line 2: the question has no single blank"),
        (f"{PROBLEM}\n" + '{"question": "How many?", "answer": "Five."}', "line 2: 'answer' does not end with ####"),
        (f"{PROBLEM}\n" + '{"question": "How?", "answer": "#### five"}', "line 2: 'answer' does not end with ####"),
        ('{"prompt": "x", "text": "y"}', "line 1: no kind of task has these keys: prompt, text"),
        ("nothing here", "line 1: not JSON"),
        ("", "has no item"),
        ("[]", "has no item"),
        ('[{"question": ', "not JSON"),
        (json.dumps([TRUTH, TRUTH | {"mc1_targets": {"yes": 1, "no": 1}}]), "item 2: 'mc1_targets' has not exactly"),
        (json.dumps([TRUTH | {"mc2_targets": {"yes": 0}}]), "item 1: 'mc2_targets' has no true answer"),
        (json.dumps([TRUTH | {"mc2_targets": ["yes"]}]), "item 1: 'mc2_targets' is not an object of answers"),
        ("1 A sat.\nWhere is A?", "line 2: neither an object of JSON nor a numbered line of bAbI"),
        ("1 Where is A?\tden\t1", "line 1: a question has no fact before it"),
    ],
)  # fmt: skip
def test_a_bad_item_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MiniCacheError) as caught:
        read_task(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MiniCacheError, match=r"nowhere\.jsonl does not exist"):
        read_task(tmp_path / "nowhere.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(MiniCacheError, match=r"latin\.jsonl is not UTF-8"):
        read_task(tmp_path / "latin.jsonl")
