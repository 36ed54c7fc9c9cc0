"""A file appears whole, under its name, from one process at a time."""

import multiprocessing

import pytest

from data_prep.common.errors import UserError
from data_prep.common.files import atomic_path, new_folder, write_text


def test_a_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / ".a.txt.partial").write_text("what a killed process left, longer than the file")
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_whole_or_absent(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(KeyError), new_folder(path) as temporary:
        (temporary / "a.txt").write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "b.txt").write_text("what a killed process left")
    path.mkdir()  # an empty one is as good as none
    with new_folder(path) as temporary:
        (temporary / "a.txt").write_text("whole")
        assert not list(path.iterdir())
    assert [file.name for file in path.iterdir()] == ["a.txt"]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="is there already"), new_folder(path):
        pass
    with pytest.raises(UserError, match="is there already"), new_folder(path / "a.txt"):
        pass


def test_a_second_writer_is_refused_and_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.common.files.LOCK_SECONDS", 0.1)
    path = tmp_path / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("first")
        with pytest.raises(UserError, match=r"a\.txt: another process is writing it"):
            write_text(path, "second")
        assert not path.exists()
    assert path.read_text() == "first"
    write_text(path, "second")
    assert path.read_text() == "second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_writer_of_a_folder_is_refused_and_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.common.files.LOCK_SECONDS", 0.1)
    path = tmp_path / "folder"
    with new_folder(path) as temporary:
        (temporary / "a.txt").write_text("first")
        refused = pytest.raises(UserError, match="folder: another process is writing it")
        with refused, new_folder(path):
            pass
    assert (path / "a.txt").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def write_often(path, text, start):
    start.wait()
    for _ in range(100):
        write_text(path, text)


def test_writers_that_race_leave_whole_texts(tmp_path):
    """Each opens the temporary file that the other may rename at that moment."""
    context = multiprocessing.get_context("fork")
    path, start = tmp_path / "a.txt", context.Barrier(2)
    texts = ["a" * 70_000, "b" * 50_000]
    writers = [context.Process(target=write_often, args=(path, text, start)) for text in texts]
    for writer in writers:
        writer.start()
    read = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            assert path.read_text() in texts
            read += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert read > 10
    assert list(tmp_path.iterdir()) == [path]
