"""Files of JSON objects, one a line: read so that a run which was killed while it wrote can still be read.

Lines end at "\\n" and nowhere else. `str.splitlines` also ends them at U+2028 and its like, which JSON leaves in
texts as they are.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignkit.errors import DataError
from alignkit.whole_files import write_text

Row = dict[str, Any]


def read_json_lines(path: str | Path, *, drop_torn: bool = True) -> list[Row]:
    """The objects of a file; empty lines are passed over.

    Args:
        path: of the file.
        drop_torn: leave out a last line that breaks off (it has no line end and is not JSON): its writer was killed.

    Raises:
        DataError: names the file and the line that is not JSON, or not an object.
        OSError: the file cannot be opened.
    """
    *lines, last = Path(path).read_bytes().split(b"\n")
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if last.strip():
        try:
            rows.append(_row(path, len(lines) + 1, last))
        except DataError:
            if not drop_torn:
                raise
    return rows


def append_json_lines(path: str | Path, rows: Iterable[Row]) -> None:
    """Adds the rows to a file, which is made where it is missing, its folder too.

    Raises:
        ValueError: a number that is not finite, which JSON cannot hold; see `alignkit.evaluation.finite`.
    """
    text = _text(rows)
    if text:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)


def replace_json_lines(path: str | Path, rows: Iterable[Row]) -> None:
    """Puts the rows in the place of what a file holds; killed on the way, it leaves the file as it was."""
    write_text(path, _text(rows))


def _row(path: str | Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # undecodable bytes too
        raise DataError(f"{path}, line {number}, is not valid JSON ({error})") from error
    if not isinstance(row, dict):
        shown = line.strip()[:60].decode("utf-8", errors="replace")
        raise DataError(f"{path}, line {number}: expected an object, got {shown}")
    return row


def row_text(row: Row) -> str:
    """One object as its line, the end included.

    Raises:
        ValueError: a number that is not finite.
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _text(rows: Iterable[Row]) -> str:
    return "".join(row_text(row) for row in rows)
