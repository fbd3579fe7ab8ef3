"""Which of a context's latest tokens its window still holds, where tokens were taken back."""

from __future__ import annotations

# of the latest tokens, which attention reads most: as many as a plan's window has in contexts of up to 2048 tokens
NEAREST = 64


class ExactWindow:
    """The part of a window that moves, in a context of one sequence: the `size` latest tokens, which stay unmerged.

    A token that enters it displaces another one, which is merged from then on. So when tokens are taken back, those
    before them are not all in the window again; only reading them anew puts them there.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        # the window holds the tokens from this one on
        self.first = 0

    def read(self, before: int, after: int) -> None:
        """Tokens have been read, by which a context of `before` tokens became one of `after`."""
        self.first = max(min(self.first, before), after - self.size)

    def dropped(self, n_tokens: int) -> None:
        """The oldest tokens were dropped, and the others moved up by so many places."""
        self.first = max(0, self.first - n_tokens)

    def restored(self, n_tokens: int) -> None:
        """A saved state of so many tokens was loaded, its window with it."""
        self.first = max(0, n_tokens - self.size)

    def to_read_again(self, n_tokens: int) -> int:
        """How many of the last tokens to read anew in a context that was cut to `n_tokens`.

        They are the nearest ones that the window can hold, if it has lost more than half of them, and otherwise none.
        """
        held = min(self.size, NEAREST, n_tokens)
        lost = min(self.first, n_tokens) - (n_tokens - held)
        return held if lost > held // 2 else 0
