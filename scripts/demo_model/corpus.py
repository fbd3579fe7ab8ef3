"""The prose: documentation packages from Debian, downloaded by name and reduced to clean English paragraphs.

Only packages whose licence lets anyone copy, change and pass on the text are used. Their English HTML pages are read
without code blocks, tables and navigation, and only paragraphs that look like sentences are kept, since a model this
small learns nothing but noise from listings.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One Debian package: where its English pages lie (regular expression on the path) and its licence."""

    name: str
    pages: str
    licence: str


PACKAGES: tuple[Package, ...] = (
    Package("apache2-doc", r"manual/en/.*\.html$", "Apache-2.0"),
    Package(
        "cmake-doc", r"html/(manual|command|module|guide|policy|prop_tgt|variable)/.*\.html$", "BSD-3-Clause"
    ),
    Package("debmake-doc", r"html/.*\.en\.html$", "MIT"),
    Package("postfix-doc", r"postfix/html/.*README.*\.html$", "IPL-1.0 or EPL-2.0"),
    Package("postgresql-doc-15", r"html/.*\.html$", "PostgreSQL"),
    Package(
        "python-django-doc", r"html/(ref|topics|howto|intro|faq|misc|internals)/.*\.html$", "BSD-3-Clause"
    ),
    Package("python-sqlalchemy-doc", r"html/(orm|core|tutorial|faq|dialects)/.*\.html$", "MIT"),
    Package(
        "python3.11-doc",
        r"html/(library|tutorial|howto|reference|faq|using|whatsnew|extending|c-api)/.*\.html$",
        "PSF-2.0",
    ),
    Package(
        "rust-doc",
        r"html/(book|reference|nomicon|rust-by-example|cargo|edition-guide|embedded-book)/.*\.html$",
        "MIT or Apache-2.0",
    ),
    Package("sqlite3-doc", r"sqlite3/(?!releaselog).*\.html$", "public domain"),
)

_SKIP = {
    "pre",
    "script",
    "style",
    "table",
    "nav",
    "head",
    "svg",
    "footer",
    "header",
    "button",
    "form",
    "aside",
}
_BLOCK = {
    "p",
    "li",
    "dd",
    "dt",
    "div",
    "section",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "blockquote",
    "br",
    "ul",
    "ol",
    "dl",
    "article",
    "main",
    "body",
    "hr",
}
_PLAIN = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00a0": " ",
        "\u00b6": "",
        "\u2212": "-",
        "\u200b": "",
        "\uf0c1": "",
    }
)
_ENDS = re.compile(r"[.!?:]['\")]?$")
_WORD = re.compile(r"[A-Za-z][a-z]+")


class _Paragraphs(HTMLParser):
    """Collects the text of block elements outside of code, tables and navigation."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.buffer: list[str] = []
        self.skip: list[str] = []

    def flush(self) -> None:
        text = " ".join("".join(self.buffer).translate(_PLAIN).split())
        self.buffer.clear()
        if text:
            self.out.append(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _SKIP:
            self.flush()
            self.skip.append(tag)
        elif tag in _BLOCK:
            self.flush()

    def handle_endtag(self, tag: str) -> None:
        if self.skip:
            # An unclosed inner element must not swallow the rest of the page.
            if tag in self.skip:
                while self.skip.pop() != tag:
                    pass
        elif tag in _BLOCK:
            self.flush()

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.buffer.append(data)


def is_prose(text: str) -> bool:
    """Whether a paragraph looks like English sentences rather than a listing, a menu or a signature."""
    words = text.split()
    if len(words) < 8 or not _ENDS.search(text) or not text.isascii() or not text[0].isalpha():
        return False
    plain = sum(1 for w in words if _WORD.fullmatch(w.strip(".,;:!?()'\"")) or w in ("a", "I", "A"))
    return plain >= 0.78 * len(words)


def page_paragraphs(html: str) -> list[str]:
    """The prose paragraphs of one HTML page, in order."""
    parser = _Paragraphs()
    parser.feed(html)
    parser.flush()
    return [re.sub(r"\s+([.,;:])(?=\s|$)", r"\1", p) for p in parser.out if is_prose(p)]


def download(debs: Path) -> dict[str, Path]:
    """Fetch the packages that are missing; returns package name -> file, each checked to be that package."""
    debs.mkdir(parents=True, exist_ok=True)
    missing = [p.name for p in PACKAGES if not list(debs.glob(f"{p.name}_*.deb"))]
    if missing:
        subprocess.run(
            ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *missing], cwd=debs, check=True
        )
    found = {}
    for package in PACKAGES:
        deb = max(debs.glob(f"{package.name}_*.deb"))
        name = subprocess.run(
            ["dpkg-deb", "-f", str(deb), "Package"], capture_output=True, text=True, check=True
        )
        if name.stdout.strip() != package.name:
            raise SystemExit(f"{deb} says it is package {name.stdout.strip()!r}, not {package.name!r}")
        found[package.name] = deb
    return found


def _pages(package: Package, deb: Path) -> Iterator[tuple[str, str]]:
    """Relative path and HTML of the package's English pages, in a fixed order; unpacked only for the time being."""
    wanted = re.compile(package.pages)
    with tempfile.TemporaryDirectory(dir=deb.parent) as name:
        unpacked = Path(name)
        subprocess.run(["dpkg-deb", "-x", str(deb), name], check=True)
        for path in sorted(unpacked.rglob("*.html")):
            relative = path.relative_to(unpacked).as_posix()
            if wanted.search(relative) and path.is_file() and not path.is_symlink():
                yield relative, path.read_text(encoding="utf-8", errors="replace")


def build(work: Path) -> None:
    """Write work/documents.jsonl (package, path, split, text) and work/packages.json (versions, sums, sizes).

    One page in fifty, chosen by a hash of its path, is held out for evaluation. A paragraph that was seen before is
    dropped, so that no held-out paragraph is trained on.
    """
    debs = download(work / "debs")
    seen: set[bytes] = set()
    rows, table = [], []
    total = 0
    for package in PACKAGES:
        deb = debs[package.name]
        chars = 0
        for relative, html in _pages(package, deb):
            kept = []
            for paragraph in page_paragraphs(html):
                key = hashlib.sha256(paragraph.encode()).digest()[:12]
                if key not in seen:
                    seen.add(key)
                    kept.append(paragraph)
            text = "\n".join(kept)
            if len(text) < 200:
                continue
            held = int.from_bytes(hashlib.sha256(relative.encode()).digest()[:4], "big") % 50 == 0
            rows.append(
                {
                    "package": package.name,
                    "path": relative,
                    "split": "held-out" if held else "train",
                    "text": text,
                }
            )
            chars += len(text)
        total += chars
        version = deb.name.split("_")[1].replace("%3a", ":")
        table.append(
            {
                "package": package.name,
                "version": version,
                "licence": package.licence,
                "characters": chars,
                "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
            }
        )
        print(f"data: {package.name} {version}: {chars / 1e6:.2f} M characters", flush=True)
    with open(work / "documents.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (work / "packages.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"data: {len(rows)} pages, {total / 1e6:.1f} M characters", flush=True)


def documents(work: Path, split: str) -> list[dict[str, str]]:
    """The rows of one split ("train" or "held-out")."""
    with open(work / "documents.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row for row in rows if row["split"] == split]
