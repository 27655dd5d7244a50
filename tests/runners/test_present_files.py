"""What a question about a file may show of the file as it is."""

import os

import pytest
from loops import ON_ONE_LOOP

from agent_orchestrator.runners.present_files import PresentFile, present_file

pytestmark = [ON_ONE_LOOP]

NEW, HIDDEN = PresentFile(exists=False), PresentFile(exists=True)


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "work" / "part").mkdir(parents=True)
    (tmp_path / "work" / "part" / "file").write_text("inside\n")
    (tmp_path / "secret").write_text("outside\n")
    return tmp_path / "work"


def test_a_file_in_the_directory_is_read(directory):
    read = PresentFile(exists=True, text="inside\n")
    assert present_file(f"{directory}/part/file", str(directory), ()) == read
    assert present_file(f"{directory}/part/../part/./file", str(directory), ()) == read
    assert present_file(f"{directory}/new", str(directory), ()) == NEW
    assert present_file(f"{directory}/none/new", str(directory), ()) == NEW


def test_a_file_is_found_by_the_linked_and_the_real_path(directory, tmp_path):
    (tmp_path / "link").symlink_to(directory)
    read = PresentFile(exists=True, text="inside\n")
    for path in (f"{tmp_path}/link/part/file", f"{directory}/part/file"):
        assert present_file(path, f"{tmp_path}/link", ()) == read


def test_links_out_of_the_directory_are_not_followed(directory, tmp_path):
    (directory / "link").symlink_to(tmp_path / "secret")
    (directory / "folder").symlink_to(tmp_path)
    (directory / "broken").symlink_to(tmp_path / "none")
    for path in ("link", "folder/secret", "broken", "../secret", "part/../../secret"):
        assert present_file(f"{directory}/{path}", str(directory), ()) == HIDDEN, path
    assert present_file(f"{tmp_path}/secret", str(directory), ()) == HIDDEN
    assert present_file(f"{tmp_path}/none", str(directory), ()) == NEW


def test_files_that_an_agent_must_not_read_are_not_shown(directory, tmp_path):
    for secret in (directory / "part", directory / "part" / "file"):
        assert present_file(f"{directory}/part/file", str(directory), [str(secret)]) == HIDDEN
    (tmp_path / "link").symlink_to(directory)
    secret = [f"{directory}/part"]
    assert present_file(f"{tmp_path}/link/part/file", f"{tmp_path}/link", secret) == HIDDEN


def test_pipes_and_files_that_are_not_text_are_not_read(directory):
    os.mkfifo(directory / "pipe")
    (directory / "binary").write_bytes(b"\xff\xfe")
    (directory / "long").write_bytes(b"x" * (2**20 + 1))
    for name in ("pipe", "binary", "long", "part"):
        assert present_file(f"{directory}/{name}", str(directory), ()) == HIDDEN, name


@pytest.mark.parametrize(
    "path", ["", "part/file", "/\0", "\0", "/" + "x" * 300, "/x" * 10_000, "/"]
)
def test_invalid_paths_have_no_text(directory, path):
    assert present_file(path, str(directory), ()).text is None
