"""The text of an answer while it is being written."""

from __future__ import annotations

import pytest

from minicache_cpp.chat.answer_writer import AnswerWriter


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
