"""LongBench's metrics, compared with values computed by hand."""

from __future__ import annotations

import pytest

from minicache_cpp.longbench import metrics


@pytest.mark.parametrize(
    ("name", "answer", "right", "classes", "score"),
    [
        ("question_f1", "The Red, old house!", "a red house", (), 2 * 2 / (3 + 2)),
        ("question_f1", "red red", "red", (), 2 / 3),
        ("question_f1", "blue", "red", (), 0),
        ("question_f1", "", "red", (), 0),
        ("question_f1_zh", "北京。", "北京市", (), 2 * 2 / (2 + 3)),
        ("summary", "the cat sat on a mat", "the cat lay on the mat", (), 2 * 4 / 12),
        ("summary", "mat the", "the mat", (), 0.5),
        ("summary", "again", "again and again", (), 2 * 1 / 4),
        ("summary_zh", "会议决定", "会议，决定！", (), 1),
        ("classification", "It is a human question", "human", ("human", "place"), 1),
        ("classification", "human or place", "human", ("human", "place"), 0.5),
        ("classification", "Other location", "Other location", ("location", "Other location"), 1),
        ("classification", "place", "human", ("human", "place"), 0),
        ("number", "there are 7, not 8", "7", (), 0.5),
        ("number", "none", "7", (), 0),
        ("paragraph", "Paragraph 12", "Paragraph 12", (), 1),
        ("paragraph", "段落3", "段落3", (), 1),
        ("paragraph", "Paragraph 1", "Paragraph 12", (), 0),
        ("code_line", "\n# a comment\nreturn x + 1", "return x + 1", (), 1),
        ("code_line", "```python\nreturn x", "return y", (), 0.88),
    ],
)
def test_metrics_match_values_by_hand(
    name: str, answer: str, right: str, classes: tuple[str, ...], score: float
) -> None:
    assert getattr(metrics, name)(answer, right, classes) == pytest.approx(score)


def test_rouge_l_is_that_of_the_rouge_score_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    pairs = [
        ("the ship left the harbor at noon", "at noon the old ship left harbor"),
        ("one two three four five six", "six five four three two one"),
        ("a b c d", "a x b y c z d"),
    ]
    for found, right in pairs:
        expected = scorer.score(right, found)["rougeL"].fmeasure
        assert metrics.summary(found, right, ()) == pytest.approx(expected)
