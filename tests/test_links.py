"""Links between our own pages lead somewhere, and the files that a page names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "rewards").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
# Paths in backticks that start with one of our folders: `alignkit/losses.py`, `recipes/sentiment/ppo.yaml`.
NAMED_FILE = re.compile(
    r"`((?:alignkit|rewards|recipes|benchmarks|scripts|tests|docs)/[\w./-]+\.(?:py|yaml|md|toml|j2))`"
)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^(```+|~~~+).*?^\1\s*$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def slug(heading: str) -> str:
    """A heading's anchor, as both the site and common hosts make it."""
    plain = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-")


def anchors(page: Path) -> set[str]:
    text = prose(page)
    explicit = set(re.findall(r"\{[^}]*#([\w.-]+)[^}]*\}", text)) | set(
        re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text)
    )
    return explicit | {slug(h) for h in re.findall(r"^#{1,6}\s+(.*?)(?:\s*\{[^}]*\})?\s*$", text, flags=re.M)}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            broken.append(f"{target}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            broken.append(f"{target}: no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    """Named from the repository's root, or from the page's own folder."""
    names = set(NAMED_FILE.findall(prose(page)))
    assert sorted(name for name in names if not any((base / name).exists() for base in (ROOT, page.parent))) == []


def test_a_broken_link_is_noticed(tmp_path):
    (tmp_path / "other.md").write_text("# A heading, with `code`\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Here\n[ok](other.md#a-heading-with-code) [ok](#here) [out](https://example.org)\n"
        "[gone](missing.md) [lost](other.md#nowhere)\n```\n[not a link](nothing.md)\n```\n"
    )
    assert broken_links(page) == ["missing.md: no such file", "other.md#nowhere: no such heading"]
