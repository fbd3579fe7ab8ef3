"""What a model answered: as a table, and as files that LongBench's eval.py reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..cache.report import KVReport
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.files import begins_with, refuse_to_write, replacing
from ..host.tables import aligned
from ..host.units import mib
from .items import Item


def row_of(spec: CacheSpec, report: KVReport, scores: dict[str, float]) -> dict[str, Any]:
    """What a cache takes, and its scores by task in per cent, JSON-ready."""
    return {
        "name": spec.name,
        "bytes": report.bytes,
        "ratio": report.ratio,
        "total_ratio": report.total_ratio,
        "scores": scores,
        "average": sum(scores.values()) / len(scores),
        "note": report.note,
    }


def prepare_folders(output: Path, specs: Sequence[CacheSpec], tasks: Iterable[str]) -> None:
    """Makes the folders of the answers with each cache.

    Raises MiniCacheError where they cannot be written, have files of these names that are no answers, or are one folder
    for two caches.
    """
    whose: dict[Path, str] = {}
    for spec in specs:
        folder = answers_folder(output, spec)
        if whose.setdefault(folder, spec.name) != spec.name:
            raise MiniCacheError(
                f"--output {output}: the answers with {whose[folder]} and with {spec.name} would both be in "
                f"{folder.name}; give one of the files another name"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MiniCacheError(f"--output {output}: {error.strerror or error}") from None
        for name in tasks:
            refuse_to_write(answers_file(folder, name), "a file of answers", are_answers)


def are_answers(path: Path) -> bool:
    """Whether write_answers() or LongBench's own programs have written a file."""
    return begins_with(path, b'{"pred": ')


def write_answers(folder: Path, answers: dict[str, list[str]], items: dict[str, list[Item]]) -> None:
    """Writes <task>.jsonl for each task, a line for each answer."""
    try:
        for name, found in answers.items():
            path = answers_file(folder, name)
            with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                for answer, item in zip(found, items[name], strict=True):
                    line = {
                        "pred": answer,
                        "answers": item.answers,
                        "all_classes": item.classes,
                        "length": item.length,
                        "_id": item.id,
                    }
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise MiniCacheError(f"--output {folder}: {error.strerror or error}") from None


def answers_folder(output: Path, spec: CacheSpec) -> Path:
    """The folder of the answers with this cache."""
    return output / re.sub(r"[^\w.=-]+", "_", spec.name)


def answers_file(folder: Path, task: str) -> Path:
    return folder / f"{task}.jsonl"


def table(found: dict[str, Any]) -> str:
    """A line for each task, then a table with a row for each cache."""
    model, n_ctx = Path(found["model"]).name, found["context"]
    lines = [f"{model}, context {n_ctx}, ubatch {found['ubatch']}; prompts: {found['prompts']}"]
    for name, task in found["tasks"].items():
        cut = f", {task['truncated']} of them cut in the middle" if task["truncated"] else ""
        lines.append(f"{name}: {task['metric']}, {task['questions']} questions{cut}")
    cells = [["cache", "KV", "ratio", "total", *found["tasks"], "average"]]
    for row in found["rows"]:
        cells.append(
            [row["name"], mib(row["bytes"]), f"{row['ratio']:.2f}", f"{row['total_ratio']:.2f}"]
            + [f"{score:.2f}" for score in (*row["scores"].values(), row["average"])]
        )
    lines += ["", *aligned(cells)]
    lines += [f"note: {row['name']}: {row['note']}" for row in found["rows"] if row["note"]]
    return "\n".join(lines)
