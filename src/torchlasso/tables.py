"""Plain-text tables for everything that prints itself."""

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MISSING = "–"


def render_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> str:
    """Return a table as plain text; columns that hold only numbers are aligned to the right.

    Args:
        columns: the headings.
        rows: one sequence of cells a row; ``None`` prints as a dash.
        title: an optional line above the table.

    Example:
        >>> print(render_table(["name", "zeros"], [["weight", 3]]))
          name     zeros
         ────────────────
          weight       3
    """
    cells = [[_text(cell) for cell in row] for row in rows]
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", show_edge=True, pad_edge=True)
    for position, column in enumerate(columns):
        filled = [row[position] for row in cells if row[position] not in ("", _MISSING)]
        numeric = bool(filled) and all(_is_number(cell) for cell in filled)
        table.add_column(Text(column), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(width=10_000, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(line for line in lines if line)


def _text(cell: object) -> str:
    if cell is None:
        return _MISSING
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return str(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%").replace(",", ""))
    except ValueError:
        return False
    return True
