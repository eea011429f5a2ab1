"""Answers on the disk: one line each, there before the rater is told so, and never changed after.

The last answer of a rater to a question about a response counts; earlier ones stay in the file. An answer that says
what the one before said is not written again, so whoever is unsure whether it arrived may send it again.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alignkit.errors import ConfigError, DataError
from alignkit.json_lines import read_json_lines, replace_json_lines, row_text
from alignkit.rating.study import Study, rater_key
from alignkit.whole_files import sync_file

RATINGS = "ratings.jsonl"
# (number of the item, system, question)
Asked = tuple[int, str, str]


class Ratings:
    """The answers of a study's folder, open for more. Safe to use from several threads; one process at a time.

    Args:
        folder: of the study.
        study: that the answers are about.

    Raises:
        ConfigError: another process has it open, or the package filelock is missing.
        DataError: a line of the file is damaged, or is no answer of this study. A last line that breaks off is no
            fault: its writer was killed before it said that the answer was kept. It is cut off.
    """

    def __init__(self, folder: str | Path, study: Study):
        self.file = Path(folder) / RATINGS
        self.study = study
        self._guard = threading.Lock()
        self._lock = _only_one(Path(folder))
        try:
            _mend(self.file)
            self._answers = latest(self.file, study)
            # unbuffered: a line goes to the system in one piece
            self._out = self.file.open("ab", buffering=0)
            sync_file(self.file.parent)
        except BaseException:
            self._lock.release()
            raise

    def answers(self, rater: str) -> dict[Asked, int]:
        """What counts of a rater's answers; empty for one who is new."""
        with self._guard:
            return dict(self._answers.get(rater_key(rater), {}))

    def add(self, rater: str, given: Iterable[tuple[Asked, int]]) -> int:
        """Keep answers; when this returns they are on the disk.

        Args:
            rater: the name.
            given: what was asked, and the point of the scale.

        Returns:
            how many were new or changed.

        Raises:
            DataError: an answer to something that the study does not ask, or a point off the scale; none is kept then.
            OSError: they could not be written, all or none; the file is as it was.
        """
        with self._guard:
            known = self._answers.get(rater_key(rater), {})
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            new = {asked: value for asked, value in given if known.get(asked) != value}
            rows = [
                {"time": time, "rater": rater, "item": item, "system": system, "question": question, "value": value}
                for (item, system, question), value in new.items()
            ]
            for row in rows:
                _check(row, self.study, "the answer")
            if rows:
                self._write("".join(row_text(row) for row in rows).encode())
                self._answers.setdefault(rater_key(rater), {}).update(new)
            return len(rows)

    def close(self) -> None:
        """Let others open it. (A process that is killed lets go of it too.)"""
        self._out.close()
        self._lock.release()

    def __enter__(self) -> "Ratings":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, line: bytes) -> None:
        size = os.fstat(self._out.fileno()).st_size
        try:
            if self._out.write(line) != len(line):
                raise OSError(f"only a part of the answer could be written to {self.file}: is the disk full?")
            os.fsync(self._out.fileno())
        except OSError:
            os.ftruncate(self._out.fileno(), size)
            raise


def latest(file: str | Path, study: Study) -> dict[str, dict[Asked, int]]:
    """Rater's key -> what was asked -> the answer that counts.

    Raises:
        DataError: a line is damaged, or is no answer of this study.
    """
    found: dict[str, dict[Asked, int]] = {}
    rows: Sequence[dict[str, Any]] = read_json_lines(file) if Path(file).is_file() else []
    for number, row in enumerate(rows, 1):
        _check(row, study, f"{file}, answer {number},")
        asked = (row["item"], row["system"], row["question"])
        found.setdefault(rater_key(row["rater"]), {})[asked] = row["value"]
    return found


def _check(row: dict[str, Any], study: Study, where: str) -> None:
    expected = {
        "rater": isinstance(row.get("rater"), str),
        "item": type(row.get("item")) is int and 0 <= row["item"] < len(study.items),
        "system": row.get("system") in study.systems,
        "question": row.get("question") in study.questionnaire.names,
        "value": type(row.get("value")) is int and 1 <= row["value"] <= study.questionnaire.points,
    }
    wrong = [f"{key} {row.get(key)!r:.60}" for key, fine in expected.items() if not fine]
    if wrong:
        raise DataError(f"{where} does not belong to this study: {', '.join(wrong)}")


def _mend(file: Path) -> None:
    """End a last line that is whole but for its end, and cut off one that is not."""
    if file.is_file() and not file.read_bytes().endswith(b"\n") and file.stat().st_size:
        replace_json_lines(file, read_json_lines(file))


def _only_one(folder: Path) -> Any:
    try:
        from filelock import FileLock, Timeout
    except ModuleNotFoundError as error:
        raise ConfigError("rating needs the package filelock; install it with pip install -e '.[rate]'") from error
    lock = FileLock(folder / "ratings.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(
            f"{folder} is being rated already by another process of alignkit rate; end that one, or use its page: "
            "several raters can use one page"
        ) from error
    return lock
