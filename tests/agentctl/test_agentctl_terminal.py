"""What reaches a terminal, and how it is broken and aligned."""

import io
import re
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentctl.console import screen_lines
from agentctl.document import Card, Column, Diff, DiffLine, Markdown, Table, Text, plain_lines
from agentctl.output import broken_at_words
from agentctl.terminal import clean, one_line, spelled, width


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
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert clean(text) == shown


_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NASTY = st.text(st.sampled_from("\x1b[]0;31m\x07\x9b\x9d\\Pab \n\r\t\u202e\ud800\x00é漢"))


@given(_NASTY | st.text())
def test_no_control_sequence_is_left_in_a_cleaned_text(text: str) -> None:
    assert not _OBEYED.search(clean(text))
    assert "\n" not in one_line(text)


@given(st.text(st.sampled_from("ab c漢\u0301é\n"), max_size=200), st.integers(8, 40))
def test_wrapping_fits_and_keeps_every_character(text: str, columns: int) -> None:
    lines = screen_lines([Text(text)], columns, colour=False)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_errors_wrap_at_words_but_not_inside_commands() -> None:
    text = "agentctl: cannot reach http://127.0.0.1:8765: is agentd running? start it with `agentctl daemon start`"
    assert broken_at_words(text, 80).split("\n") == [
        "agentctl: cannot reach http://127.0.0.1:8765: is agentd running? start it with",
        "`agentctl daemon start`",
    ]
    assert broken_at_words("one", 80) == "one"


def test_wide_and_combining_characters_have_their_width_on_a_terminal() -> None:
    assert width("漢字") == 4
    assert width(unicodedata.normalize("NFD", "é")) == 1


def row_of(*values: str | Text) -> list[str | Text]:
    return [*values]


COLUMNS = [
    Column("ID", lambda row: row[0]),
    Column("AGE", lambda row: row[1], right=True),
    Column("EXTRA", lambda row: row[2]),
    Column("TEXT", lambda row: row[3], flexible=True),
]
ROWS = [
    row_of("run_1", "1 s", "abcdefgh", Text("a long text about 漢字 that goes on", "red")),
    row_of("run_22", "10 min", "x", "short"),
]
TABLE = Table(COLUMNS, ROWS, short="TEXT AGE ID")


def test_table_in_a_pipe_is_not_cut() -> None:
    assert [*plain_lines([TABLE])] == [
        "ID         AGE  EXTRA     TEXT",
        "run_1      1 s  abcdefgh  a long text about 漢字 that goes on",
        "run_22  10 min  x         short",
    ]


def test_table_on_a_terminal_has_fewer_columns_and_numbers_its_rows() -> None:
    lines = screen_lines([TABLE], 40, colour=False)
    assert [line.rstrip() for line in lines] == [
        "    TEXT                     AGE  ID",
        "@1  a long text about  …     1 s  run_1",
        "@2  short                 10 min  run_22",
    ]


def test_empty_tables_and_empty_columns_are_left_out() -> None:
    assert [*plain_lines([Table(COLUMNS, [])])] == []
    assert [*plain_lines([Table(COLUMNS, [], "no rows")])] == ["no rows"]
    assert [*plain_lines([Table(COLUMNS, [row_of("1", "", "", "")])])] == ["ID", "1"]


def test_without_colour_the_text_is_the_same() -> None:
    coloured = screen_lines([TABLE], 50)
    assert "\x1b[31m" in coloured[1]
    stripped = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured]
    assert stripped == screen_lines([TABLE], 50, colour=False)


def test_a_card_aligns_its_fields_and_leaves_out_empty_ones() -> None:
    card = Card(Text("run run_1"), [("status", "failed"), ("no", None), ("why", "one two\nthree")])
    assert [*plain_lines([card])] == ["run run_1", "  status  failed", "  why     one two three"]


BLOCKS = [
    TABLE, Text("a\x1b[2Jb\x9bc", reveal=True), Text("\x1b]0;x\x07y", "red"), Markdown("**b** \x1b[2J[x](http://y)"),
    Card(Text("\x1b[2Jc"), [("n", Text("v\x1b]0;x\x07", "bold"))]), Diff([DiffLine("+", 1, "\x1b[2J")], 7),
    Table([Column("A", lambda row: row)], ["a\x1b[2Jb"]), "plain\x1b[2J",
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS)
def test_no_output_contains_control_sequences_of_its_content(block: Any) -> None:
    shown = "\n".join([*plain_lines([block]), *screen_lines([block], 40, colour=False)])
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)


def test_markdown_keeps_all_of_its_text() -> None:
    text = "one\ntwo `x` with Vec<T> and <b>tag</b>\n\n<div>\n- item\n\n- list\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    lines = [line.strip() for line in screen_lines([Markdown(text)], 60, colour=False)]
    assert lines[:2] == ["one", "two x with Vec<T> and <b>tag</b>"]
    assert {"<div>", "- item", "• list", "1  2"} <= {*lines}


def test_symbols_become_ascii_if_the_encoding_lacks_them() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert spelled("✓ · … ├─ │ └─ → ✎ ☰ ⋮ é", stream).encode("ascii", "replace").endswith(b"?")
