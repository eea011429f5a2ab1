"""Where commands print their tables."""

import os
import sys

from rich.console import Console

WIDTH = 140  # of logs and pipes


def standard_output() -> Console:
    """Standard output, as wide as rich finds a terminal or COLUMNS to be.

    Where there is neither, rich would take 80 columns and break names and figures of a wide table; a log has no edge.
    """
    console = Console()
    return console if _an_edge_is_known() or console.is_jupyter else Console(width=WIDTH)


def goes_to_a_terminal() -> bool:
    """Whether somebody reads it line by line: a FORCE_COLOR, as CI has it, makes rich's own answer yes anywhere."""
    return sys.stdout.isatty()


def _an_edge_is_known() -> bool:
    if os.environ.get("COLUMNS", "").isdigit():
        return True
    for stream in (0, 1, 2):  # rich asks all of them: `alignkit compare ... | less` has the terminal's width
        try:
            return os.get_terminal_size(stream).columns > 0
        except OSError:
            continue
    return False
