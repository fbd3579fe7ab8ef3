"""Bases in which two layers' K and V are more alike: what `minicache calibrate --mode aligned` fits and writes.

Nothing ties the bases of two neighbouring layers together, so SLERP interpolates unrelated vectors. Per KV head, the
orthogonal matrix W that brings layer b's unit vectors nearest to layer a's, min Σ|u_a - W u_b|², is U Vᵀ of the
singular value decomposition U S Vᵀ = Σ u_a u_bᵀ (Schönemann 1966). Layer a's vectors stay as they are: turning both
once more changes no angle.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import GroupFormat
from ..cache.plan_file import Bases, Plan, write_plan
from ..cache.settings import MiniCache
from ..cache.size import merged_groups
from ..errors import MiniCacheError
from ..host.progress import Progress
from ..modelfile.fingerprint import fingerprint
from ..modelfile.gguf_file import GGUFFile
from ..modelfile.shape import model_shape
from ..reading.model import NativeModel
from ..text import bundled
from ..text.vocabulary import Vocabulary
from ..version import __version__
from .capture import capture
from .code_fit import unit_vectors
from .layer_weights import output_gains
from .material import Material, make_material
from .samples import Samples

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Aligned:
    """A pair's bases, and how far apart its layers are without and with them on text that nothing was fitted to."""

    format: GroupFormat
    bases: Bases
    before: tuple[float, float]  # mean distances of K and of V
    after: tuple[float, float]


def procrustes(x_a: Floats, x_b: Floats) -> Floats:
    """The orthogonal matrices [heads, d, d] that bring x_b's directions nearest to x_a's, both [n, heads, d]."""
    u_a, u_b = (unit_vectors(x).astype(np.float64) for x in (x_a, x_b))
    moments = np.einsum("nhi,nhj->hij", u_a, u_b, optimize=True)
    left, _, right = np.linalg.svd(moments)
    return np.asarray(left @ right, dtype=np.float32)


def distance(x_a: Floats, x_b: Floats) -> float:
    """Mean Ω/π of two layers' vectors [n, heads, d]."""
    cosine = (unit_vectors(x_a) * unit_vectors(x_b)).sum(axis=-1)
    return float(np.arccos(np.clip(cosine, -1, 1)).mean() / np.pi)


def fit_pair(samples: Samples, n_fit: int, a: int, b: int) -> Aligned:
    """Fit to the first `n_fit` tokens of the samples; the rest tells the distances."""
    fitted, before, after = [], [], []
    for x_a, x_b in zip(samples.layer(a), samples.layer(b), strict=True):  # K, then V
        matrices = procrustes(x_a[:n_fit], x_b[:n_fit])
        rest_a, rest_b = x_a[n_fit:], x_b[n_fit:]
        before.append(distance(rest_a, rest_b))
        after.append(distance(rest_a, np.einsum("hij,nhj->nhi", matrices, rest_b, optimize=True)))
        fitted.append(matrices)
    layer = samples.shape.layers[a]
    sizes = layer.n_head_kv, layer.head_size_k, layer.head_size_v
    pair = GroupFormat((a, b), *sizes, bases_k=1, bases_v=1)  # layer b's alone
    return Aligned(pair, Bases(*(one[None] for one in fitted)), (before[0], before[1]), (after[0], after[1]))


class Aligner:
    """Captured text of a model, and the pairs that were fitted to it."""

    def __init__(self, file: GGUFFile, samples: Samples, n_fit: int, material: Material) -> None:
        self.file, self.samples, self.n_fit, self.material = file, samples, n_fit, material
        self.fitted: dict[tuple[int, int], Aligned] = {}

    def pair(self, a: int, b: int) -> Aligned:
        if (a, b) not in self.fitted:
            self.fitted[a, b] = fit_pair(self.samples, self.n_fit, a, b)
        return self.fitted[a, b]

    def pairs(self, settings: MiniCache) -> list[tuple[int, int]]:
        ropes = self.samples.ropes
        return [(a, b) for a, b in merged_groups(self.samples.shape, settings) if ropes[a] == ropes[b]]

    def write(self, path: Path, settings: MiniCache, notes: dict[str, Any] | None = None) -> list[Aligned]:
        """Write the plan that merges as `settings` say, in bases; its pairs."""
        aligned = [self.pair(a, b) for a, b in self.pairs(settings)]
        if not aligned:
            raise MiniCacheError("no two neighbouring layers of this model can be merged with these settings")
        plan = Plan(
            fingerprint=fingerprint(self.file),
            n_layer=len(self.samples.shape.layers),
            type_k=settings.type_k,
            type_v=settings.type_v,
            retain=settings.retain,
            pool_type=settings.pool_type,
            window=settings.window,
            groups=tuple(one.format for one in aligned),
            mode="aligned",
            t=settings.t,
            model=str(self.file.keys.get("general.name") or ""),
            tool=f"minicache-cpp {__version__}",
            text=f"{self.material.description}, {self.n_fit} tokens",
            notes=notes or {},
        )
        write_plan(path, plan, {one.format.first: one.bases for one in aligned})
        return aligned


@contextmanager
def aligner(
    file: GGUFFile,
    model: NativeModel,
    paths: Sequence[Path],
    n_tokens: int,
    threads: int,
    progress: Progress | None = None,
) -> Iterator[Aligner]:
    """Run the model over text (none: the package's own) and see its K and V."""
    shape = model_shape(file)
    if shape.unknown:
        raise MiniCacheError(f"{file.path} can't be calibrated: {shape.unknown}")
    names = ", ".join(path.name for path in paths) or "the package's own text"
    with Vocabulary(file.path) as vocabulary:
        material = make_material(
            vocabulary, list(paths) or bundled.calibration_files(), n_tokens, shape.n_ctx_train, names
        )
    chunks = [*material.fit, *material.check]
    n_fit = sum(len(chunk.tokens) for chunk in material.fit)

    def told(n: int) -> None:
        if progress:
            progress(0.9 * n / len(chunks), "reading the text", f"chunk {n} of {len(chunks)}")

    with tempfile.TemporaryDirectory(prefix="minicache-align-") as folder:
        samples = Samples(Path(folder), shape, chunks, output_gains(file, shape))
        capture(model, samples, threads, told)
        yield Aligner(file, samples, n_fit, material)


def align(
    file: GGUFFile,
    settings: MiniCache,
    output: Path,
    *,
    paths: Sequence[Path],
    n_tokens: int,
    threads: int,
    gpu_layers: int,
    progress: Progress,
) -> dict[str, Any]:
    """Fit bases, and write the plan; what came of it, as a JSON-ready object."""
    with (
        NativeModel(file.path, gpu_layers) as model,
        aligner(file, model, paths, n_tokens, threads, progress) as fitting,
    ):
        progress(0.9, "fitting")
        rows = []
        for number, (a, b) in enumerate(fitting.pairs(settings)):
            one = fitting.pair(a, b)
            progress(0.9 + 0.1 * number / len(fitting.pairs(settings)), "fitting", f"layers {a}+{b}")
            rows.append({"layers": [a, b], "distance_before": one.before, "distance_after": one.after})
        fitting.write(output, settings, {"pairs": rows})
    return {
        "model": str(file.path),
        "plan": str(output),
        "mode": "aligned",
        "settings": replace(settings, mode="slerp").spec(),
        "pairs": rows,
    }


def table(found: dict[str, Any]) -> str:
    """What came of an alignment, for people."""
    lines = [
        f"{Path(found['model']).name}: SLERP in aligned bases, {found['settings'].partition(':')[2]}",
        "mean distances on text that nothing was fitted to (0: the same direction, 0.5: unrelated)",
        "layers    K before  aligned   V before  aligned",
    ]
    for row in found["pairs"]:
        columns = zip(row["distance_before"], row["distance_after"], strict=True)
        numbers = "".join(f"{before:>10.3f} {after:>8.3f} " for before, after in columns)
        lines.append("{}+{}".format(*row["layers"]).ljust(8) + numbers.rstrip())
    lines.append(f"plan: {found['plan']}")
    return "\n".join(lines)
