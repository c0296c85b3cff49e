"""Write the table of floors in `architecture.md` from `FLOORS` in `tests/test_architecture.py`."""

import ast
from itertools import groupby
from pathlib import Path

DOCUMENT = Path(__file__).with_name("architecture.md")
SOURCE = Path(__file__).parents[1] / "tests" / "test_architecture.py"
BEGIN, END = "<!-- floors -->\n", "<!-- /floors -->"


def read_floors() -> dict[str, int]:
    """Return the dictionary as it stands in the source, without importing it."""
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            floors: dict[str, int] = ast.literal_eval(node.value)
            return floors
    msg = f"{SOURCE.name} has no FLOORS"
    raise LookupError(msg)


def floors_table(floors: dict[str, int]) -> str:
    """Return the floors as a Markdown table, the top of the building first."""
    ordered = sorted(floors.items(), key=lambda item: (-item[1], item[0]))
    lines = ["| floor | modules |", "|---:|---|"]
    for floor, items in groupby(ordered, key=lambda item: item[1]):
        names = ", ".join(f"`{name or '__init__'}`" for name, _ in items)
        lines.append(f"| {floor} | {names} |")
    return "\n".join(lines) + "\n"


def updated(document: str, table: str) -> str:
    """Return the document with the table between its two marks."""
    before, rest = document.split(BEGIN)
    return before + BEGIN + table + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(updated(text, floors_table(read_floors())), encoding="utf-8")
    print(f"wrote the floors of {DOCUMENT.name}")
