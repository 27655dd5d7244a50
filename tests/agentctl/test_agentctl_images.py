"""What `--image` takes, and what it does not wait for."""

import os
from pathlib import Path

import pytest
from driving import Ctl


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing", "cannot be read"),
        ("directory", "cannot be read"),
        ("fifo", "is not a regular file"),
        ("/dev/zero", "is not a regular file"),
        ("empty", "is empty"),
        ("text.png", "is not a PNG"),
        ("link to text", "is not a PNG"),
        ("large", "must be at most 5,242,880 bytes"),
        ("\udcff.png", "cannot be read"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_before_sending(
    ctl: Ctl, tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    (tmp_path / "text.png").write_text("PNG")
    (tmp_path / "link to text").symlink_to("text.png")
    with (tmp_path / "large").open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(2**40)  # with a hole in it
    result = ctl("ask", "x", "--image", name, cwd=tmp_path)
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert len(result.err.splitlines()) == 1


def test_too_large_images_and_a_provider_without_images_are_refused(
    ctl: Ctl, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"GIF89a" + bytes(3 * 2**20))
    (tmp_path / "b").write_bytes(b"GIF89a")
    result = ctl("ask", "x", "--image", "a", "--image", "a", cwd=tmp_path)
    assert (result.code, "5,242,880 bytes together" in result.err) == (2, True)
    result = ctl("ask", "x", *["--image", "b"] * 9, cwd=tmp_path)
    assert (result.code, "at most 8 entries" in result.err) == (2, True)
    for command in (["ask", "x"], ["message", "send", "{}", "--text", "x"]):
        given = ["--image", "b", "--image", "b"]
        if command[0] == "message":
            command[2] = ctl.field("session.id", "session", "create")
        result = ctl(*command, *given, cwd=tmp_path)
        assert (result.code, "images: is not supported by" in result.err) == (2, True), result
