"""The HTML report: well-formed, self-contained, safe with hostile names, true to its numbers."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from torchlasso.errors import InputError
from torchlasso.monitor.report import render_report

COMMAND = "torchlasso predict model.safetensors rows.csv"
VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADS = {"src", "href", "data", "poster", "action", "srcset", "xlink:href"}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps what a test asks about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "some tags stay open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.loads += [value or "" for name, value in attrs if name in LOADS]
        self.scripts += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if self.rows and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def row(self, first: str) -> list[str]:
        return next([cell.strip() for cell in row] for row in self.rows if row[0].strip() == first)


def check_self_contained(html: str, page: Page) -> None:
    assert all(load.startswith("#") for load in page.loads)
    assert not {"script", "link", "iframe", "img", "object", "base"} & set(page.tags)
    assert page.scripts == []
    assert "@import" not in html
    assert set(re.findall(r"url\(([^)]*)\)", html)) == set(re.findall(r"url\((#[^)]*)\)", html))
    assert len(page.ids) == len(set(page.ids))


def test_the_page_is_well_formed_and_self_contained(
    metrics: dict[str, Any], path: list[dict[str, Any]]
) -> None:
    html = render_report(metrics, path, COMMAND)
    page = Page(html)
    check_self_contained(html, page)
    assert html.startswith("<!DOCTYPE html>")
    assert page.tags.count("svg") == 2
    assert COMMAND in page.text


def test_the_numbers_are_those_of_the_metrics(metrics: dict[str, Any]) -> None:
    page = Page(render_report(metrics, [], COMMAND))
    assert (
        "97.4% of the test rows right with 9 of 16 features and 3.1% of the weights; "
        "the ordinary network of the same shape: 95.6%"
    ) in page.text
    assert page.row("Sparse network") == ["Sparse network", "98.4%", "97.4%", "97.4% ± 1.5%", "1.0"]
    assert page.row("Ordinary network") == ["Ordinary network", "100.0%", "96.5%", "95.6% ± 1.9%", "4.4"]
    assert page.row("hidden.0") == ["hidden.0", "64 × 16", "", "5.9% 60 of 1,024", "50 of 64", "7 of 16"]
    assert page.row("output.weight") == ["output.weight", "0.0004", "–"]
    assert "98 of 3,136 weights are left (3.1%)" in page.text
    assert "Residual 0.00312" in page.text
    assert "Slack 0.0214: the zero weight closest to coming back feels 97.9%" in page.text
    assert "341 to train, 114 to choose the strength, 114 to test (20% of the rows)" in page.text
    assert "column 'id' dropped" in page.text


def test_every_step_of_the_path_is_in_the_page(metrics: dict[str, Any], path: list[dict[str, Any]]) -> None:
    page = Page(render_report(metrics, path, COMMAND))
    steps = [row for row in page.rows if len(row) == 7]
    assert len(steps) == len(path) + 1
    assert [row[6] for row in steps if row[6]] == ["lowest loss", "chosen"]
    assert [row[4] for row in steps[1:]] == [f"{step['nonzero']:,}" for step in path]


def test_features_come_in_order_of_importance(metrics: dict[str, Any]) -> None:
    page = Page(render_report(metrics, [], COMMAND))
    selected = [f for f in metrics["features"] if f["selected"]]
    for rank, feature in enumerate(selected, start=1):
        row = page.row(str(rank))
        assert row[1] == feature["name"]
        assert row[-1] == f"{100 * feature['importance']:.1f}%"
    dropped = [f["name"] for f in metrics["features"] if not f["selected"]]
    assert f"{len(dropped)} dropped: the network does not look at them. {', '.join(dropped)}" in page.text


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{ 7 * 7 }}",
        "</style></svg>",
        "a & b",
        "患者 🙂",
        "x" * 3000,
    ],
)
@pytest.mark.parametrize("selected", [True, False])
def test_hostile_names_are_only_text(name: str, selected: bool, with_features: Any) -> None:
    metrics = with_features(["plain", name], 2 if selected else 1)
    metrics["table"] |= {"target": name, "source": name, "classes": [name, "b"], "notes": [name]}
    metrics["weights"]["layers"][0]["name"] = name
    html = render_report(metrics, [], name)
    page = Page(html)
    check_self_contained(html, page)
    assert page.text.count(name) >= 6


def test_what_cannot_be_written_is_replaced(with_features: Any) -> None:
    html = render_report(with_features(["a\x00b\ud800", "  ", "c\nd"], 3), [], "one\ntwo")
    html.encode("utf-8")
    assert "a�b�" in html
    assert "(no name)" in html
    assert "c d" in html
    assert "one\ntwo" in html


def test_a_regression_with_a_given_strength(regression: dict[str, Any]) -> None:
    html = render_report(regression, [], COMMAND)
    page = Page(html)
    check_self_contained(html, page)
    assert "svg" not in page.tags
    assert "The ordinary network does better here: R² 0.463 on the test rows, against R² 0.447" in page.text
    assert page.row("Sparse network") == ["Sparse network", "0.551", "0.482", "0.447 ± 0.061", "0.104"]
    assert "The strength 0.05 was given" in page.text
    assert "did not help" in page.text
    assert "Slack " not in page.text.replace("Slack hidden", "")


@pytest.mark.parametrize(("count", "selected"), [(1, 1), (1, 0), (500, 60), (500, 500), (500, 0)])
def test_any_number_of_features(count: int, selected: int, with_features: Any) -> None:
    names = [f"column {i}" for i in range(count)]
    page = Page(render_report(with_features(names, selected), [], COMMAND))
    shown = [row[1] for row in page.rows if len(row) == 5 and row[0].isdigit()]
    assert shown == names[:selected]
    assert all(re.search(rf"\b{name}\b", page.text) for name in names)
    assert ("No feature was selected" in page.text) == (selected == 0)


def test_the_same_metrics_give_the_same_page(metrics: dict[str, Any], path: list[dict[str, Any]]) -> None:
    assert render_report(metrics, path[::6], COMMAND) == render_report(metrics, path[::6], COMMAND)


def test_metrics_that_lack_a_part_are_refused(metrics: dict[str, Any]) -> None:
    del metrics["scores"], metrics["refit"]
    with pytest.raises(InputError, match="scores, refit is missing"):
        render_report(metrics, [], COMMAND)
