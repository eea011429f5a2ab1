"""What the documentation's build does to pages: equations become MathML, examples in docstrings become code."""

import html
import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

for module in ("latex2mathml", "griffe"):
    pytest.importorskip(module, reason="part of the docs extra")

ROOT = Path(__file__).resolve().parents[1]


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mathml, doctest_blocks = script("mathml"), script("doctest_blocks")


@pytest.mark.parametrize(
    ("docstring", "shown"),
    [
        ("Adds.\n\n>>> 1 + 1\n2", "Adds.\n\n```pycon\n>>> 1 + 1\n2\n```"),
        (">>> f(\n... )\n3\n\nMore.", "```pycon\n>>> f(\n... )\n3\n```\n\nMore."),
        ("Says nothing.", "Says nothing."),
    ],
)
def test_examples_in_docstrings_become_blocks(docstring, shown):
    assert doctest_blocks.fenced(docstring) == shown


def test_inline_and_block_equations_are_drawn():
    page = r'<p>With <span class="arithmatex">\(a &lt; b\)</span>:</p><div class="arithmatex">\[\frac{1}{2}\]</div>'
    drawn = mathml.to_mathml(page)
    assert drawn.count("<math") == 2 and "arithmatex" not in drawn
    assert 'display="inline"' in drawn and 'display="block"' in drawn
    root = ElementTree.fromstring(re.search(r"<math.*?</math>", drawn)[0])
    assert html.unescape("".join(root.itertext())) == "a<b"
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in drawn


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_every_equation_of_a_page_is_understood(page):
    """What the converter does not know it prints as its name, with the backslash."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for block, inline in re.findall(r"\$\$(.+?)\$\$|(?<![\w$\\])\$([^\s$][^$\n]*?)\$(?!\w)", text, flags=re.S):
        drawn = mathml.convert(block or inline)
        assert "\\" not in html.unescape(drawn), f"{page.name}: {block or inline}"
