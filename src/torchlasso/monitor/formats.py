"""Numbers and names as text, written the same way on the page, in the terminal and in figures."""

import math
from collections.abc import Sequence

MISSING = "–"
_UNNAMED = "(no name)"


def number(value: float | None) -> str:
    """Write a number with about three significant digits.

    Args:
        value: the number; None and NaN stand for "not known".

    Returns:
        For example "0.0123", "1,235", "4.1e-7", or a dash for what is not known.

    Example:
        >>> number(0.012345), number(1234.5), number(0.2), number(-0.00000041)
        ('0.0123', '1,234', '0.2', '−4.1e-7')
    """
    if value is None or math.isnan(value):
        return MISSING
    size = abs(value)
    if size == 0:
        return "0"
    if math.isinf(size):
        text = "∞"
    elif size < 1e-4 or size >= 1e6:
        mantissa, exponent = f"{size:.1e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= 100:
        text = f"{size:,.0f}"
    else:
        text = f"{size:.3g}"
    return _signed(value, text)


def percent(share: float | None) -> str:
    """Write a share (0 to 1) in percent, with one decimal or as many as honesty takes.

    Nothing is rounded up to 100% or down to 0% that is not exactly that.

    Args:
        share: the share; None and NaN stand for "not known".

    Returns:
        For example "97.4%".

    Example:
        >>> percent(0.974), percent(0.9997), percent(1), percent(0.0004)
        ('97.4%', '99.97%', '100.0%', '0.04%')
    """
    if share is None or math.isnan(share):
        return MISSING
    return _fixed(100 * share, decimals=1, edge=100.0) + "%"


def score(value: float | None, metric: str) -> str:
    """Write a score: an accuracy in percent, any other with three decimals.

    Args:
        value: the score; None and NaN stand for "not known".
        metric: what it measures, such as "accuracy" or "R2".

    Returns:
        For example "97.4%" or "0.842".
    """
    if metric == "accuracy":
        return percent(value)
    if value is None or math.isnan(value):
        return MISSING
    return _fixed(value, decimals=3, edge=1.0)


def difference(value: float | None, metric: str) -> str:
    """Write the difference of two scores: percentage points for an accuracy.

    Args:
        value: the difference; None and NaN stand for "not known".
        metric: what the scores measure.

    Returns:
        For example "1.8 points" or "0.027".
    """
    if value is None or math.isnan(value):
        return MISSING
    if metric == "accuracy":
        return _fixed(100 * value, decimals=1, edge=math.inf) + " points"
    return _fixed(value, decimals=3, edge=math.inf)


def quantity(number_of: int, noun: str) -> str:
    """Write how many there are of something.

    Args:
        number_of: how many.
        noun: the thing, in the singular; its plural takes an "s".

    Returns:
        For example "1 row" or "2,000 rows".
    """
    return f"{number_of:,} {noun}" if number_of == 1 else f"{number_of:,} {noun}s"


def clean(name: object) -> str:
    r"""Make a name from outside fit to show: one line, no control or invisible characters.

    Escape sequences would steer a terminal and lone surrogates cannot be written to a file.

    Args:
        name: the name, as it came.

    Returns:
        The same words; what cannot be shown becomes U+FFFD.

    Example:
        >>> clean("mean\nradius"), clean("  "), len(clean("\x1b[31m"))
        ('mean radius', '(no name)', 5)
    """
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(name))
    return shown if shown.strip() else _UNNAMED


def shorten(name: str, limit: int) -> str:
    """Cut a long name in its middle, so that both of its ends stay readable.

    Args:
        name: the name.
        limit: the most characters to return, at least 3.

    Returns:
        The name, or its two ends around an ellipsis.

    Example:
        >>> shorten("a very long name of a column", 11)
        'a ver…olumn'
    """
    if len(name) <= limit:
        return name
    tail = (limit - 1) // 2
    return name[: limit - 1 - tail] + "…" + name[-tail:]


def listing(names: Sequence[str], limit: int) -> str:
    """Join names by commas, the first few of them if there are many.

    Args:
        names: the names.
        limit: the most names to write out.

    Returns:
        For example "a, b, c and 7 more".
    """
    if len(names) <= limit:
        return ", ".join(names)
    return ", ".join(names[:limit]) + f" and {len(names) - limit:,} more"


def _fixed(value: float, decimals: int, edge: float) -> str:
    """Write fixed decimals, more of them where rounding would falsely reach 0 or the edge."""
    size = abs(value)
    text = f"{size:,.{decimals}f}"
    if any(math.isclose(size, limit, abs_tol=1e-9) for limit in (0.0, edge)):
        return text
    while float(text.replace(",", "")) in (0.0, edge):
        decimals += 1
        text = f"{size:,.{decimals}f}"
    return _signed(value, text)


def _signed(value: float, text: str) -> str:
    """Put a true minus sign before a negative number."""
    return f"−{text}" if value < 0 else text
