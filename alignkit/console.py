"""Where commands print their tables."""

import os

from rich.console import Console

WIDTH = 140  # of logs and pipes


def standard_output() -> Console:
    """Standard output, as wide as the terminal or as COLUMNS says.

    Where neither is there, rich would take 80 columns and break names and figures of a wide table; a log has no edge.
    """
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=WIDTH)
