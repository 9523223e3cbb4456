"""Source and tests cite documents of this repository, by file and heading; every citation can be followed."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for folder in ("snapshot_mcp", "tests", "prompts") for path in (ROOT / folder).rglob("*.py"))
FOLDERS = (ROOT / "tests", ROOT / "prompts", ROOT / "snapshot_mcp")
DOCUMENTS = {path.name: path for folder in FOLDERS for path in sorted(folder.glob("**/*.md"))}
DOCUMENTS["README.md"] = ROOT / "README.md"

MENTION = re.compile(r"\b([\w-]+\.md)\b")
CITATION = re.compile(r'\b([A-Z_]+\.md)\b`?((?:(?:,| and)? “?"[^"”]+["”])*)')
OUTSIDE = re.compile(r"\b[Ii]ssues? \d|\bMust show\b|\bmust show \d|(?<![\w&])#\d+\b")
EXEMPT = {Path(__file__).name, "test_resources_and_prompts.py"}
"""This file, and one that names documents that do not exist on purpose."""
OF_HOSTS = {"SKILL.md", "GEMINI.md"}
"""Files that hosts look for, which `snapshot-mcp manifest` writes."""


@cache
def headings_of(path: Path) -> frozenset[str]:
    """The headings of a document, without their marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line.lstrip("#").strip().replace("`", "") for line in lines if line.startswith("#"))


def text_of(path: Path) -> str:
    """The file's text; a citation that is broken over two lines reads as one."""
    return re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text(encoding="utf-8"))


def citations_of(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Each document that is cited, with the headings that follow it in quotation marks."""
    return [(match[1], tuple(re.findall(r'"([^"]+)"', match[2]))) for match in CITATION.finditer(text)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_citation_leads_to_a_heading_of_this_repository(path: Path) -> None:
    if path.name in EXEMPT:
        return
    text = text_of(path)
    for name in set(MENTION.findall(text)) - OF_HOSTS:
        assert name in DOCUMENTS, f"{name} is not in the repository"
    for name, headings in citations_of(text):
        if name in OF_HOSTS:
            continue
        missing = set(headings) - headings_of(DOCUMENTS[name])
        assert not missing, f"{name} has no heading {missing}"
    assert not OUTSIDE.search(text), f"cites what is not in the repository: {OUTSIDE.search(text)}"


def test_a_wrong_citation_would_be_found() -> None:
    """The test above can fail: it reads several headings, also over a line's end, and knows the headings by name."""
    cited = citations_of('(CONTRACT.md, "Busy", "No such part" and "Order")')
    assert cited == [("CONTRACT.md", ("Busy", "No such part", "Order"))]
    assert set(cited[0][1]) - headings_of(DOCUMENTS["CONTRACT.md"]) == {"No such part"}
    assert OUTSIDE.search("(issue 3)")
    assert OUTSIDE.search('"Must show" 5')


@pytest.mark.parametrize("path", sorted(DOCUMENTS.values()), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_that_a_document_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    anchors = {re.sub(r"[^\w\- ]", "", one).lower().replace(" ", "-") for one in headings_of(path)}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if "://" in link:
            continue
        assert not target or (path.parent / target).exists(), link
        assert target or anchor in anchors, link
    for name in re.findall(r"`([\w./-]+\.(?:md|py))`", text):
        assert list(ROOT.glob(f"**/{name}")), f"{path.name} names {name}"
