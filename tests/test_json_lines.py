"""Files of JSON lines are read as they were written, also after a writer was killed."""

import pytest

from alignkit.errors import DataError
from alignkit.json_lines import append_json_lines, read_json_lines, replace_json_lines

ROWS = [{"text": "one\u2028two\u0085three\x0bfour\rfive", "n": 1}, {"text": "é", "n": None}]


@pytest.fixture
def file(tmp_path):
    append_json_lines(tmp_path / "run" / "rows.jsonl", ROWS)
    return tmp_path / "run" / "rows.jsonl"


def test_what_is_appended_is_read_again_line_separators_of_unicode_included(file):
    append_json_lines(file, [{"n": 3}])
    append_json_lines(file, [])
    assert read_json_lines(file) == [*ROWS, {"n": 3}]
    assert "\u2028" in file.read_text(encoding="utf-8"), "as it is, not escaped: the reader has to cope"


@pytest.mark.parametrize("cut", range(1, 26))
def test_a_last_line_cut_anywhere_is_left_out_and_the_others_are_kept(file, cut):
    """Also within the two bytes of an accented letter."""
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    assert read_json_lines(file) == (ROWS if cut == 1 else ROWS[:1])
    if cut > 1:
        with pytest.raises(DataError, match=r"rows\.jsonl, line 2, is not valid JSON"):
            read_json_lines(file, drop_torn=False)


@pytest.mark.parametrize("bad", [b"{nope\n", b'{"n": 1}{"n": 2}\n', b"\xff\n", b'{"n"\n{"n": 1}\n'])
def test_a_bad_line_that_was_ended_is_an_error_with_file_and_number(file, bad):
    file.write_bytes(file.read_bytes() + b"\n" + bad)
    with pytest.raises(DataError, match=r"rows\.jsonl, line 4, is not valid JSON"):
        read_json_lines(file)


def test_a_line_that_holds_no_object_is_an_error(file):
    file.write_bytes(b"[1]\n" + file.read_bytes())
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: expected an object, got \[1\]"):
        read_json_lines(file)


def test_rows_that_cannot_be_written_leave_the_file_as_it_was(file):
    for write in (append_json_lines, replace_json_lines):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write(file, [{"n": 1}, {"n": float("nan")}])
        assert read_json_lines(file) == ROWS
    replace_json_lines(file, ROWS[1:])
    assert read_json_lines(file) == ROWS[1:] and [path.name for path in file.parent.iterdir()] == ["rows.jsonl"]
