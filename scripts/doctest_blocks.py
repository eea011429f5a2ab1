"""An extension of the API reference's collector: examples in docstrings become blocks of code.

Without it a bare `>>>` in a docstring would be read as Markdown's nested quotation.
"""

import griffe


def fenced(docstring: str) -> str:
    """The docstring with every run of example lines, up to the next empty line, inside a fence."""
    lines: list[str] = []
    inside = ""
    for line in docstring.splitlines():
        stripped = line.lstrip()
        if not inside and stripped.startswith(">>> "):
            inside = line[: len(line) - len(stripped)] + "```"
            lines.append(inside + "pycon")
        elif inside and not stripped:
            lines.append(inside)
            inside = ""
        lines.append(line)
    return "\n".join([*lines, inside] if inside else lines)


class DoctestBlocks(griffe.Extension):
    """Rewrites docstrings as they are collected."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        """Called for each collected object."""
        if obj.docstring and ">>> " in obj.docstring.value and "```" not in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)
