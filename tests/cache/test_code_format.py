"""The sizes of codes."""

from __future__ import annotations

from minicache_cpp.cache.code_format import UNIT, WIDTHS, Layout


def test_a_layout_counts_its_widths() -> None:
    layout = Layout.of([8, 4, 4, 0, 0])
    assert layout.units == (1, 0, 0, 2, 0, 0, 0)
    assert layout.widths == [8, 4, 4]
    assert layout.bits == UNIT * 16
    assert [Layout.of([0]).row_bytes(n) for n in (1, 2, 3, 4)] == [2, 2, 4, 4]
    assert len(layout.units) == len(WIDTHS)
