"""Equations of the documentation become MathML in the page itself."""

import html
import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("latex2mathml", reason="part of the docs extra")

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("mathml", ROOT / "scripts" / "mathml.py")
mathml = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mathml)


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
