"""What reaches a terminal, and how it is broken and aligned."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentctl.tables import Cell, Column, card, table
from agentctl.terminal import Style, clean, one_line, truncated, width, wrapped

PLAIN = Style(colour=False, unicode=True, columns=None)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("a\x1b[2J\x1b[Hb", "ab"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]52;c;aGk=\x1b\\x", "x"),
        ("\x1bPq...\x1b\\x", "x"),
        ("\x9b31mred", "red"),
        ("lone \x1b stays", "lone ^[ stays"),
        ("bell\x07 back\x08", "bell^G back^H"),
        ("del\x7f", "del^?"),
        ("10 %\r20 %\r\nend", "10 %\n20 %\nend"),
        ("tab\tstays", "tab\tstays"),
        ("\u202eevil", "\ufffdevil"),
        ("line\u2028separator", "line\nseparator"),
        ("half \ud800", "half \ufffd"),
    ],
)
def test_clean(text: str, shown: str) -> None:
    assert clean(text) == shown


_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NASTY = st.text(st.sampled_from("\x1b[]0;31m\x07\x9b\x9d\\Pab \n\r\t\u202e\ud800\x00é漢"))


@given(_NASTY | st.text())
def test_nothing_a_terminal_obeys_is_left(text: str) -> None:
    assert not _OBEYED.search(clean(text))
    assert "\n" not in one_line(text)


@given(st.text(st.sampled_from("ab c漢\u0301é\n"), max_size=200), st.integers(8, 40))
def test_wrapping_fits_and_keeps_every_character(text: str, columns: int) -> None:
    lines = wrapped(clean(text), columns)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_wrapping_keeps_the_indent() -> None:
    assert wrapped("  - one two three four", 14) == ["  - one two", "  three four"]
    assert wrapped("unbreakable" * 2, 12) == ["unbreakableu", "nbreakable"]
    assert wrapped("as it is " * 20, None) == [("as it is " * 20).rstrip()]


@given(st.text(st.sampled_from("abc漢é"), max_size=30), st.integers(1, 40))
def test_truncation_fits(text: str, columns: int) -> None:
    assert width(truncated(text, columns)) <= columns


def test_width_of_wide_and_combining_characters() -> None:
    assert width("漢字") == 4
    assert width(unicodedata.normalize("NFD", "é")) == 1


COLUMNS = [
    Column("ID"),
    Column("AGE", align="right"),
    Column("EXTRA", optional=True),
    Column("TEXT", flexible=True),
]
ROWS = [
    ["run_1", "1 s", "abcdefgh", Cell("a long text about 漢字 that goes on", ("red",))],
    ["run_22", "10 min", "x", "short"],
]


def test_table_in_a_pipe_is_not_cut() -> None:
    assert table(COLUMNS, ROWS, PLAIN) == [
        "ID         AGE  EXTRA     TEXT",
        "run_1      1 s  abcdefgh  a long text about 漢字 that goes on",
        "run_22  10 min  x         short",
    ]


def test_table_shortens_the_flexible_column() -> None:
    lines = table(COLUMNS, ROWS, Style(columns=50))
    assert lines[1] == "run_1      1 s  abcdefgh  a long text about 漢字 …"
    assert all(width(line) <= 50 for line in lines)


def test_table_drops_optional_columns_before_it_cuts_an_id() -> None:
    lines = table(COLUMNS, ROWS, Style(columns=30))
    assert lines == [
        "ID         AGE  TEXT",
        "run_1      1 s  a long text a…",
        "run_22  10 min  short",
    ]


def test_table_without_rows_and_with_an_empty_column() -> None:
    assert table(COLUMNS, [], PLAIN) == []
    assert table([Column("A"), Column("B")], [["1", ""]], PLAIN) == ["A", "1"]


def test_colour_only_where_it_is_understood() -> None:
    coloured = table(COLUMNS, ROWS, Style(colour=True))
    assert "\x1b[31m" in coloured[1]
    stripped = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in coloured]
    assert stripped == table(COLUMNS, ROWS, PLAIN)


def test_card() -> None:
    lines = card(
        "run run_1", [("status", "failed"), ("no", None), ("why", "one two\nthree")], PLAIN
    )
    assert lines == ["run run_1", "  status  failed", "  why     one two", "          three"]
