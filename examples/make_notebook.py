"""Make `tutorial.ipynb` from `tutorial.py`, the one source of both.

The script is in the percent format: `# %%` begins a code cell, `# %% [markdown]` a text cell, and the
module's docstring is the first text.
"""

import ast
import json
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("tutorial.py")
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
INSTALL = "%pip install torchlasso"


def cells_of(script: str) -> list[tuple[str, str]]:
    """Return the cells of a script in the percent format, as pairs of kind and text."""
    docstring = ast.get_docstring(ast.parse(script)) or ""
    title, _, text = docstring.partition("\n\n")
    shown = text.rpartition("\n\n")[0]  # the last paragraph says how the notebook is made
    cells = [("markdown", f"# {title}\n\n{shown}")]
    for block in script.split("\n# %%")[1:]:
        header, _, body = block.partition("\n")
        if header.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            cells.append(("markdown", "\n".join(lines)))
        else:
            cells.append(("code", body.strip()))
    return cells


def notebook_of(script: str) -> dict[str, Any]:
    """Return the notebook of a script, without outputs."""
    cells = [_cell(0, "code", INSTALL) | {"metadata": {"tags": ["install"]}}]
    cells += [_cell(number, kind, text) for number, (kind, text) in enumerate(cells_of(script), start=1)]
    metadata = {
        "colab": {"name": NOTEBOOK.name, "provenance": []},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def _cell(number: int, kind: str, text: str) -> dict[str, Any]:
    cell = {
        "cell_type": kind,
        "id": f"cell-{number}",
        "metadata": {},
        "source": text.splitlines(keepends=True),
    }
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell


def notebook_text() -> str:
    """Return the content that the notebook file must have."""
    notebook = notebook_of(SCRIPT.read_text(encoding="utf-8"))
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook_text(), encoding="utf-8")
    print(f"wrote {NOTEBOOK.name}")
