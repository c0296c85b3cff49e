"""Tables as plain text."""

from torchlasso.tables import render_table


def test_numbers_align_right_and_words_left() -> None:
    lines = render_table(["name", "count", "share"], [["a", 7, "5%"], ["longer", 1234, None]]).splitlines()
    assert lines[0].split() == ["name", "count", "share"]
    assert set(lines[1].strip()) == {"─"}
    assert lines[2].index("7") == lines[3].index("4")  # the last digits stand below each other
    assert lines[2].index("a") == lines[3].index("longer")
    assert lines[3].endswith("–")


def test_floats_are_short_and_none_is_a_dash() -> None:
    assert render_table(["x"], [[0.1 + 0.2], [None], [1e-9]]).split()[-3:] == ["0.3", "–", "1e-09"]


def test_nothing_is_wrapped_marked_up_or_coloured() -> None:
    name = "[bold]layer[/bold]." + "x" * 500
    table = render_table(["name"], [[name]])
    assert name in table
    assert "\x1b" not in table


def test_no_rows_give_the_headings_and_a_title_stands_above() -> None:
    lines = render_table(["a", "b"], [], title="Title").splitlines()
    assert lines[0].strip() == "Title"
    assert lines[1].split() == ["a", "b"]


def test_no_line_ends_in_blanks_and_none_is_empty() -> None:
    lines = render_table(["a", "b"], [["1", ""], ["", "2"]]).split("\n")
    assert all(line and line == line.rstrip() for line in lines)
