"""The documents keep what they say: their code runs, block after block, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NEEDS_RAY = ROOT / "docs" / "cluster.md"  # tests/ray runs it
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[tuple[int, str]]:
    """Each block of Python and the line before it, so that a traceback shows the line in the document."""
    text = path.read_text()
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in BLOCK.finditer(text)]


# The documents train briefly.
@pytest.mark.filterwarnings("ignore:The surrogate is not to be trusted:hypertune_mip.HypertuneWarning")
@pytest.mark.filterwarnings("ignore:The emulator is not to be relied on:hypertune_mip.HypertuneWarning")
@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path) and path != NEEDS_RAY], ids=name)
def test_code_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": path.stem}
    for line, code in blocks(path):
        exec(compile("\n" * line + code, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_lead_to_files(path: Path) -> None:
    links = [link for link in LINK.findall(path.read_text()) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_readme_s_first_example_is_short() -> None:
    _, code = blocks(ROOT / "README.md")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
