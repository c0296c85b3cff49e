"""The terminal: 80 columns, no control codes where there is no terminal, nothing taken as markup."""

import io
import sys
import time
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from torchlasso.monitor.console import FitProgress, print_summary

ESCAPE = "\x1b"


def printed(metrics: dict[str, Any], path: list[dict[str, Any]], width: int = 80, **options: Any) -> str:
    out = io.StringIO()
    print_summary(metrics, path, Console(file=out, width=width, **options))
    return out.getvalue()


def test_the_summary_fits_80_columns_without_control_codes(
    metrics: dict[str, Any], path: list[dict[str, Any]]
) -> None:
    text = printed(metrics, path)
    assert ESCAPE not in text
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    flat = " ".join(text.split())
    assert "97.4% of the test rows right with 9 of 16 features and 3.1% of the weights" in flat
    assert "Sparse network 98.4% 97.4% 97.4% ± 1.5% 1.0" in flat
    assert "Ordinary network 100.0% 96.5% 95.6% ± 1.9% 4.4" in flat
    assert "hidden.0 64 × 16 60 of 1,024 5.9% 50 of 64 7 of 16" in flat
    assert "Features: 9 selected, 7 dropped" in flat
    assert "Dropped (7): mean texture, mean perimeter" in flat
    assert "The chosen strength, 0.0289, is the strongest" in flat
    assert "Residual 0.00312" in flat
    assert "column 'id' dropped" in flat


def test_selected_features_come_in_order_with_falling_bars(metrics: dict[str, Any]) -> None:
    lines = printed(metrics, []).splitlines()
    names = [feature["name"] for feature in metrics["features"] if feature["selected"]]
    at = [next(i for i, line in enumerate(lines) if line.startswith(name + " ")) for name in names]
    assert at == list(range(at[0], at[0] + 9))
    bars = [lines[i].count("█") for i in at]
    assert bars[0] == 16
    assert bars == sorted(bars, reverse=True)


def test_names_are_not_markup_and_cannot_steer(with_features: Any) -> None:
    names = ["[bold]x", "[/]", "[red]y[/red]", ":smile:", "\x1b[31mred", "[link=http://a]b", "患者の年齢"]
    metrics = with_features(names, 4)
    metrics["table"]["notes"] = ["[bold]note"]
    text = printed(metrics, [])
    assert ESCAPE not in text
    for name in ("[bold]x", "[/]", "[red]y[/red]", ":smile:", "[link=http://a]b", "[bold]note", "患者の年齢"):
        assert name in text


def test_colours_only_on_a_terminal(metrics: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ESCAPE in printed(metrics, [], force_terminal=True)


@pytest.mark.parametrize(("count", "selected"), [(1, 1), (1, 0), (500, 60), (500, 0)])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_any_number_of_features_and_any_width(
    count: int, selected: int, width: int, with_features: Any
) -> None:
    metrics = with_features([f"a rather long name of column {i}" for i in range(count)], selected)
    text = printed(metrics, [], width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= min(width, 100)
    assert f"{selected} selected" in " ".join(text.split())
    assert len(text.splitlines()) < 400


def test_a_regression_with_a_given_strength(regression: dict[str, Any]) -> None:
    flat = " ".join(printed(regression, []).split())
    assert flat.startswith("The ordinary network does better here: R² 0.463")
    assert "The strength 0.05 was given" in flat
    assert "Slack" not in flat


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_an_output_of_any_encoding_will_do(encoding: str, with_features: Any) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    print_summary(with_features(["患者", "b"], 1), [], Console(file=file, width=80))
    file.flush()
    text = raw.getvalue().decode(encoding)
    assert ("患者" in text) == (encoding == "utf-8")
    assert ("█" if encoding == "utf-8" else "#" * 16) in text
    assert ("+- 1.5%" if encoding == "ascii" else "± 1.5%") in text


def terminal(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, Console]:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("TTY_INTERACTIVE", raising=False)
    out = io.StringIO()
    return out, Console(file=out, force_terminal=True, width=80)


def test_progress_shows_each_stage_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, console = terminal(monkeypatch)
    with FitProgress(console) as progress:
        progress.advance()
        progress.stage("[bold]path", total=4)
        progress.advance(2)
        give_up = time.monotonic() + 10
        while "50%" not in out.getvalue() and time.monotonic() < give_up:
            time.sleep(0.02)
        progress.stage("refit", total=0)
        console.print("and again")
    text = out.getvalue()
    assert "[bold]path" in text
    assert "50%" in text
    assert "refit" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_progress_cleans_up_whatever_is_raised(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, console = terminal(monkeypatch)
    streams = sys.stdout, sys.stderr
    progress = FitProgress(console)

    def run() -> None:
        with progress:
            progress.stage("path", total=10)
            raise error

    with pytest.raises(error):
        run()
    assert out.getvalue().rstrip().endswith(("\x1b[?25h", "\x1b[2K"))
    assert "\x1b[?25h" in out.getvalue()
    assert (sys.stdout, sys.stderr) == streams
    progress.advance()
    with progress:
        progress.stage("again", total=1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_leaves_stdout_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with FitProgress() as progress:
        progress.stage("path", total=1)
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "path" in screen.getvalue()
    assert "a result" not in screen.getvalue()
    assert sys.stderr is screen


@pytest.mark.parametrize("stderr", [io.StringIO(), None])
def test_progress_is_silent_without_a_terminal(
    stderr: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", stderr)
    with FitProgress() as progress:
        progress.stage("path", total=3)
        progress.advance()
    assert stderr is None or stderr.getvalue() == ""
    assert capsys.readouterr().out == ""
