"""Scores of tasks, compared with values that were computed by hand."""

from __future__ import annotations

import pytest

from minicache_cpp.evaluate.tasks.kind import Reply
from minicache_cpp.evaluate.tasks.score import summary


def test_scores_have_errors_and_answers_are_compared_with_those_of_f16() -> None:
    # right, right, wrong, wrong; the second and the fourth answer are others than f16's
    ours = [Reply({"acc": float(number < 2), "mc2": 0.2 * number}, {"acc": number}) for number in range(4)]
    f16 = [Reply({"acc": 1.0, "mc2": 1.0}, {"acc": answer}) for answer in (0, 9, 2, 9)]
    found = summary(["acc", "mc2"], ours, f16)
    assert found["acc"] == {"score": 0.5, "stderr": pytest.approx(0.25), "agreement": 0.5, "changed": 2}
    # of 0, 0.2, 0.4 and 0.6 the mean is 0.3 and the variance 0.05
    assert found["mc2"] == {
        "score": pytest.approx(0.3),
        "stderr": pytest.approx((0.05 / 4) ** 0.5),
        "agreement": None,
        "changed": None,
    }


def test_three_of_four_right_answers_have_the_error_of_a_share() -> None:
    replies = [Reply({"acc": float(number > 0)}, {"acc": 1}) for number in range(4)]
    found = summary(["acc"], replies, replies)["acc"]
    assert found["stderr"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert (found["agreement"], found["changed"]) == (1, 0)
