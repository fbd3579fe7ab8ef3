"""The sizes of codes."""

from __future__ import annotations

from minicache_cpp.cache.code_format import UNIT, WIDTHS, GroupFormat, Layout


def test_a_layout_counts_its_widths() -> None:
    layout = Layout.of([8, 4, 4, 0, 0])
    assert layout.units == (1, 0, 0, 2, 0, 0, 0)
    assert layout.widths == [8, 4, 4]
    assert layout.bits == UNIT * 16
    assert [Layout.of([0]).row_bytes(n) for n in (1, 2, 3, 4)] == [2, 2, 4, 4]
    assert len(layout.units) == len(WIDTHS)


def test_each_head_has_a_layout_of_its_own() -> None:
    wide, narrow = Layout((1, 0, 0, 1, 0, 0, 0)), Layout((0, 0, 0, 0, 0, 0, 1))
    group = GroupFormat((3, 4, 5), 3, 32, 16, (wide, Layout(), narrow), (narrow, narrow, wide))
    # three magnitudes and a byte of 0 for each head, and 2 bytes for each bit of a unit
    assert group.token_bytes == 2 * 3 * 4 + 2 * (12 + 1) + 2 * (1 + 1 + 12)
    size_k, size_v = 16 * (2 + 1), 16 * (1 + 1 + 2)
    magnitudes, weights = 3 * 6 * 2, 3 * 3 * (32 + 16)
    n_bytes = 4 * (magnitudes + weights + size_k + size_v) + 2 * 3 * (32 * size_k + 16 * size_v)
    assert group.file_codec_bytes == n_bytes
    # in memory 16 bytes for each head's K and V, and a frequency for each turned pair, are in front of it
    assert group.codec_bytes(20) == n_bytes + 3 * 2 * 16 + 10 * 4
