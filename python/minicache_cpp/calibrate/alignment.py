"""Fits basis matrices that make the K and V of two layers more alike: `minicache calibrate --mode aligned`.

Nothing relates the coordinates of two neighbouring layers to each other, so SLERP interpolates unrelated vectors. For
each KV head, the orthogonal matrix W that brings layer b's unit vectors nearest to layer a's, min Σ|u_a - W u_b|², is
U Vᵀ of the singular value decomposition U S Vᵀ = Σ u_a u_bᵀ (orthogonal Procrustes, Schönemann 1966). Layer a needs no
matrix, as turning the vectors of both layers once more changes no angle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.code_format import GroupFormat
from ..cache.plan import BasisMatrices, Plan
from ..cache.plan_file import write_plan
from ..cache.settings import MiniCache
from ..cache.size import merged_groups
from ..errors import MiniCacheError
from ..host.paths import name_shown
from ..host.progress import Progress
from ..host.work_folder import temporary_folder
from ..modelfile.fingerprint import fingerprint
from ..modelfile.gguf_file import GGUFFile
from ..native.model_shape import model_shape
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
    """The basis matrices of a pair, and how far apart its layers are on text that nothing was fitted to."""

    format: GroupFormat
    basis: BasisMatrices
    # the mean distances of K and of V, without and with the matrices
    before: tuple[float, float]
    after: tuple[float, float]


def procrustes(x_a: Floats, x_b: Floats) -> Floats:
    """The orthogonal matrices [heads, d, d] that bring x_b's directions nearest to x_a's, both [n, heads, d]."""
    u_a, u_b = (unit_vectors(x).astype(np.float64) for x in (x_a, x_b))
    moments = np.einsum("nhi,nhj->hij", u_a, u_b, optimize=True)
    left, _, right = np.linalg.svd(moments)
    return np.asarray(left @ right, dtype=np.float32)


def distance(x_a: Floats, x_b: Floats) -> float:
    """The mean distance Ω/π of two layers' vectors, [n, heads, d] each."""
    cosine = (unit_vectors(x_a) * unit_vectors(x_b)).sum(axis=-1)
    return float(np.arccos(np.clip(cosine, -1, 1)).mean() / np.pi)


def fit_pair(samples: Samples, n_fit: int, a: int, b: int) -> Aligned:
    """Fits layers a and b to the first `n_fit` tokens of the samples; the distances are those of the rest."""
    fitted, before, after = [], [], []
    for x_a, x_b in zip(samples.layer(a), samples.layer(b), strict=True):  # K, then V
        matrices = procrustes(x_a[:n_fit], x_b[:n_fit])
        rest_a, rest_b = x_a[n_fit:], x_b[n_fit:]
        before.append(distance(rest_a, rest_b))
        after.append(distance(rest_a, np.einsum("hij,nhj->nhi", matrices, rest_b, optimize=True)))
        fitted.append(matrices)
    layer = samples.shape.layers[a]
    sizes = layer.n_head_kv, layer.head_size_k, layer.head_size_v
    # one matrix for K and one for V: those of layer b
    pair = GroupFormat((a, b), *sizes, n_basis_k=1, n_basis_v=1)
    return Aligned(
        pair, BasisMatrices(*(one[None] for one in fitted)), (before[0], before[1]), (after[0], after[1])
    )


class Aligner:
    """Writes aligned plans of a model from its samples; each pair is fitted once, when it is first needed."""

    def __init__(self, file: GGUFFile, samples: Samples, n_fit: int, material: Material) -> None:
        self.file, self.samples, self.n_fit, self.material = file, samples, n_fit, material
        self.fitted: dict[tuple[int, int], Aligned] = {}

    def pair(self, a: int, b: int) -> Aligned:
        if (a, b) not in self.fitted:
            self.fitted[a, b] = fit_pair(self.samples, self.n_fit, a, b)
        return self.fitted[a, b]

    def pairs(self, settings: MiniCache) -> list[tuple[int, int]]:
        """The pairs that these settings merge, those whose K is turned in different ways left out."""
        ropes = self.samples.ropes
        return [(a, b) for a, b in merged_groups(self.samples.shape, settings) if ropes[a] == ropes[b]]

    def write(self, path: Path, settings: MiniCache, notes: dict[str, Any] | None = None) -> list[Aligned]:
        """Writes the plan that merges by `settings` with basis matrices; returns its pairs.

        Raises MiniCacheError where the settings merge no layers of this model.
        """
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
        write_plan(path, plan, {one.format.first: one.basis for one in aligned})
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
    """Captures K and V of the model on the text in `paths`, or on the package's own where there are none.

    Raises MiniCacheError where the model or the text cannot be used.
    """
    shape = model_shape(file).growing()
    if shape.unknown:
        raise MiniCacheError(f"cannot calibrate {file.path}: {shape.unknown}")
    names = ", ".join(map(name_shown, paths)) or "the package's own text"
    with Vocabulary(file.path) as vocabulary:
        material = make_material(
            vocabulary, list(paths) or bundled.calibration_files(), n_tokens, shape.n_ctx_train, names
        )
    chunks = [*material.fit, *material.check]
    n_fit = sum(len(chunk.tokens) for chunk in material.fit)

    def on_chunk(n: int) -> None:
        if progress:
            progress(0.9 * n / len(chunks), "reading the text", f"chunk {n} of {len(chunks)}")

    try:
        with temporary_folder("align") as folder:
            samples = Samples(folder, shape, chunks, output_gains(file, shape))
            capture(model, samples, threads, on_chunk)
            yield Aligner(file, samples, n_fit, material)
    except OSError as error:
        raise MiniCacheError(
            f"the calibration cannot write its files: {error}; name a folder that has room for them with TMPDIR"
        ) from error


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
    """Fits basis matrices and writes the plan; returns its pairs and their distances as a JSON-ready object."""
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
