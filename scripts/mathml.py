"""A hook of the documentation's build: equations become MathML.

Browsers draw MathML themselves, so the site needs no script and no font from elsewhere, and reads offline.
"""

import html
import re

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\s*(?:\\\((.*?)\\\)|\\\[(.*?)\\\])\s*</\1>', flags=re.S)


def to_mathml(page: str) -> str:
    """Replaces the equations that `pymdownx.arithmatex` marked in a page's HTML; block equations stand on a line."""

    def replace(match: re.Match[str]) -> str:
        tag, inline, block = match.groups()
        source = html.unescape(inline if inline is not None else block).strip()
        drawn = convert(source, display="inline" if inline is not None else "block")
        return f'<{tag} class="math" title="{html.escape(source)}">{drawn}</{tag}>'

    return EQUATION.sub(replace, page)


def on_page_content(page_html: str, /, **_) -> str:
    """Called by mkdocs with every page's HTML."""
    return to_mathml(page_html)
