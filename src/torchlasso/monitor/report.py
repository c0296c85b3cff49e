"""The report of one fit: one HTML page without scripts or outside resources, for any reader.

The page is laid out in `report.html.j2`; its words come from `torchlasso.monitor.story`. Bars are
drawn by the page itself, so that names in any script are real text; the path is an inline SVG.
"""

from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from torchlasso.monitor.formats import number
from torchlasso.monitor.plots import path_figure, to_svg
from torchlasso.monitor.story import tell

_OPEN_ROWS = 25


def render_report(metrics: dict[str, Any], path: list[dict[str, Any]], predict_command: str) -> str:
    """Write the report of one fit as a self-contained HTML page.

    Names that come from the data are escaped wherever they appear. The same arguments give the
    same bytes.

    Args:
        metrics: the content of metrics.json.
        path: the rows of path.csv, weakest strength first; empty where the strength was given.
        predict_command: what to type to predict with the model; may have several lines.

    Returns:
        The page; write it with encoding "utf-8".

    Raises:
        InputError: `metrics` lacks a part that every fit writes.
    """
    story = tell(metrics, path)
    return _template().render(
        story=story,
        version=metrics["torchlasso"],
        pictures=_pictures(path),
        steps=[_step(row) for row in path],
        predict_command=[line.rstrip() for line in predict_command.splitlines()],
        open_rows=_OPEN_ROWS,
    )


def _pictures(path: list[dict[str, Any]]) -> dict[str, Markup]:
    """Draw the path for wide and for narrow pages; every colour is left to the page's style."""
    if not path:
        return {}
    return {
        name: Markup(to_svg(path_figure(path, narrow=name == "narrow"), f"path-{name}"))
        for name in ("wide", "narrow")
    }


def _step(row: dict[str, Any]) -> dict[str, str]:
    """Write one row of the path as text."""
    marks = [word for key, word in (("best", "lowest loss"), ("chosen", "chosen")) if row[key]]
    return {
        "strength": number(row["strength"]),
        "train_loss": number(row["train_loss"]),
        "valid_loss": number(row["valid_loss"]),
        "valid_se": number(row["valid_se"]),
        "nonzero": f"{row['nonzero']:,}",
        "features": f"{row['features']:,}",
        "mark": ", ".join(marks),
    }


@cache
def _template() -> Template:
    source = resources.files("torchlasso.monitor").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
