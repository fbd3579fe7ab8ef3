"""What a model answered: as a table, and as files that LongBench's eval.py reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..cache.report import KVReport
from ..cache.settings import CacheSpec
from ..errors import MiniCacheError
from ..host.files import replacing
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


def write_answers(folder: Path, answers: dict[str, list[str]], items: dict[str, list[Item]]) -> None:
    """Writes <task>.jsonl for each task, a line for each answer."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, found in answers.items():
            path = folder / f"{name}.jsonl"
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


def folder_name(spec: str) -> str:
    """A folder's name for the answers with this cache."""
    return re.sub(r"[^\w.=-]+", "_", spec)


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
