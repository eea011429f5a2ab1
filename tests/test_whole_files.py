"""Texts are replaced whole, and only files are replaced."""

import os
import threading

from alignkit.whole_files import write_text


def test_a_link_leads_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    assert write_text(tmp_path / "link", "new") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


def test_a_link_to_nothing_makes_the_file(tmp_path):
    (tmp_path / "link").symlink_to("later")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later").read_text() == "new"


def test_a_pipe_stays_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_text(tmp_path / "pipe", "through it")
    reader.join(10)
    assert read == ["through it"] and (tmp_path / "pipe").is_fifo()


def test_a_private_file_stays_private(tmp_path):
    file = tmp_path / "mine"
    file.write_text("old")
    file.chmod(0o600)
    write_text(file, "new")
    assert file.read_text() == "new" and file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
