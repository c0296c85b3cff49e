"""Rounding that never flatters, and names that cannot do harm."""

import math

import pytest

from torchlasso.monitor import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (0, "0"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (12.345, "12.3"),
        (123.4, "123"),
        (98765.4, "98,765"),
        (1.5e9, "1.5e9"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert formats.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0.0%"),
        (1, "100.0%"),
        (0.99951, "99.95%"),
        (1 - 1e-6, "99.9999%"),
        (1e-7, "0.00001%"),
        (1e-17, "0.0%"),
        (-0.25, "−25.0%"),
        (2.5, "250.0%"),
        (None, "–"),
    ],
)
def test_percent_is_never_rounded_to_all_or_nothing(share: float | None, text: str) -> None:
    assert formats.percent(share) == text


def test_scores_and_differences() -> None:
    assert formats.score(0.5, "accuracy") == "50.0%"
    assert formats.score(0.99999, "R2") == "0.99999"
    assert formats.score(-0.25, "R2") == "−0.250"
    assert formats.score(math.nan, "R2") == formats.difference(None, "R2") == "–"
    assert formats.difference(0.018, "accuracy") == "1.8 points"
    assert formats.difference(-0.0002, "accuracy") == "−0.02 points"
    assert formats.difference(1e-18, "R2") == "0.000"


def test_words() -> None:
    assert formats.quantity(1, "row") == "1 row"
    assert formats.quantity(2000, "row") == "2,000 rows"
    assert formats.listing(["a", "b"], 2) == "a, b"
    assert formats.listing(["a", "b", "c"], 2) == "a, b and 1 more"
    assert formats.shorten("abc", 3) == "abc"
    assert len(formats.shorten("x" * 99, 10)) == 10
    assert len(formats.shorten("x" * 99, 3)) == 3


def test_names_cannot_steer_a_terminal() -> None:
    assert formats.clean("\x1b[2J\x07\u202eabc\ud800") == "�[2J��abc�"
    assert formats.clean("a\tb\u00a0c") == "a b c"
    assert formats.clean("") == "(no name)"
    assert formats.clean(3) == "3"
