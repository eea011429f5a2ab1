"""The built documentation is complete and asks nobody else for anything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="part of the docs extra")

ROOT = Path(__file__).resolve().parents[1]
LOADED = re.compile(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"([^\"]+)\"|<link\b[^>]*\bhref=\"([^\"]+)\"[^>]*>")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return target


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    foreign = {
        f"{page.relative_to(site)}: {address}"
        for page in pages
        for pair in LOADED.findall(page.read_text(encoding="utf-8"))
        for address in pair
        if address.startswith(("http:", "https:", "//"))
    }
    assert not foreign


@pytest.mark.slow
def test_the_reference_documents_every_public_name(site):
    import alignkit

    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    missing = [name for name in alignkit.__all__ if not re.search(rf'id="alignkit\.[\w.]*\b{name}"', reference)]
    assert not missing


@pytest.mark.slow
def test_no_equation_is_left_as_source(site):
    left = [page.name for page in site.rglob("*.html") if 'class="arithmatex"' in page.read_text(encoding="utf-8")]
    assert not left
    assert "<mfrac>" in (site / "trainers" / "ppo.html").read_text(encoding="utf-8")
