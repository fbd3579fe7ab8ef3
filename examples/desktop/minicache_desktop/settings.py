"""What the app remembers from one start to the next."""

from __future__ import annotations

from dataclasses import dataclass, fields

from PySide6.QtCore import QSettings

from minicache_cpp import Sampling

RANDOM = -1  # as the seed: another one for each chat


@dataclass
class Settings:
    """The choices of the user. Names are those in the settings file."""

    # a name of list_models() or the path of a GGUF file; "" before the first choice
    model: str = ""
    # "auto", a cache type, or the path of a plan
    cache: str = "auto"
    # tokens; 0 is the context that the model was trained for
    n_ctx: int = 4096
    # 0 lets llama.cpp decide
    n_threads: int = 0
    system: str = ""
    temperature: float = 0.7
    seed: int = RANDOM
    # tokens of the longest answer; 0 is no limit but the context
    max_tokens: int = 0
    # "system", "light" or "dark"
    theme: str = "system"

    @classmethod
    def read(cls, store: QSettings) -> Settings:
        """What was written last; what is missing, or of another type, has its default."""
        found = cls()
        for field in fields(cls):
            default = getattr(found, field.name)
            try:
                setattr(found, field.name, type(default)(store.value(field.name, default)))
            except (TypeError, ValueError):
                continue
        return found

    def write(self, store: QSettings) -> None:
        for field in fields(self):
            store.setValue(field.name, getattr(self, field.name))

    def sampling(self) -> Sampling:
        return Sampling(temp=self.temperature, seed=None if self.seed == RANDOM else self.seed)
