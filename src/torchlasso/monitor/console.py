"""The terminal: the summary of one fit, and a progress bar while it runs.

Text is given to rich as `Text`, never as markup, so names such as "[bold]x" print as they are. What the
encoding of the output cannot hold is replaced rather than raised on.
"""

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from torchlasso.monitor.formats import clean, listing
from torchlasso.monitor.story import FeatureRow, Story, tell

_MOST_FEATURES = 25
_MOST_NAMES = 60
_BAR = 16
_ASCII = str.maketrans(
    {"±": "+-", "−": "-", "–": "-", "²": "2", "…": "...", "×": "x", "∞": "inf", "\N{NO-BREAK SPACE}": " "}
)


def print_summary(metrics: dict[str, Any], path: list[dict[str, Any]], console: Console) -> None:
    """Print what one fit learnt, readable at 80 columns and without colours.

    Args:
        metrics: the content of metrics.json.
        path: the rows of path.csv, weakest strength first; empty where the strength was given.
        console: where to print; it decides on width, colours and encoding.

    Raises:
        InputError: `metrics` lacks a part that every fit writes.
    """
    story = tell(metrics, path)
    out = _Printer(console)
    out.paragraph(story.headline, style="bold")
    out.paragraphs(story.remarks)
    _scores(out, story)
    out.heading("Strength")
    out.paragraphs(story.strength)
    _features(out, story)
    out.heading("Layers")
    out.paragraph(story.weights)
    out.gap()
    out.table(
        ["Layer", "Shape", "Weights left", "", "Outputs off", "Inputs off"],
        [[r.name, r.shape, r.left, r.percent, r.outputs_off, r.inputs_off] for r in story.layers],
    )
    out.heading("Certificate")
    out.paragraphs(story.certificate)
    out.heading("About the data")
    out.pairs([*story.facts, *(("Note", note) for note in story.notes)])


class FitProgress:
    """A live bar on stderr while a fit runs; silent where stderr is no terminal.

    Nothing else is redirected, the bar is wiped when the block ends, and an exception or Ctrl-C leaves
    the cursor and the terminal as they were.

    Args:
        console: where to draw; by default stderr, and then only if it really is a terminal.

    Example:
        >>> with FitProgress() as progress:
        ...     progress.stage("path", total=2)
        ...     progress.advance()
        ...     progress.advance()
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Show the bar, if there is a terminal to show it on."""
        console = self._console or _stderr()
        if console is not None and console.is_interactive:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=console.file is sys.stderr,
            )
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wipe the bar; whatever was raised goes on."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None

    def stage(self, name: str, total: int) -> None:
        """Begin the next stage; the one before it leaves the screen.

        Args:
            name: what is being done, in a word or two.
            total: how many steps it takes.
        """
        if self._progress is None:
            return
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(_fit(clean(name), self._progress.console), total=total)

    def advance(self, n: int = 1) -> None:
        """Move the bar of this stage.

        Args:
            n: the number of steps that are done since the last call.
        """
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, n)


class _Printer:
    """A console that takes plain strings, at a comfortable width, and nothing as markup."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.width = min(console.width, 100)
        self.blocks = _holds(console, "█▏")

    def paragraph(self, words: str, style: str = "") -> None:
        self._print(self._text(words, style))

    def paragraphs(self, many: Sequence[str]) -> None:
        for words in many:
            self.paragraph(words)

    def heading(self, words: str) -> None:
        self.gap()
        self.paragraph(words, style="bold cyan")

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        left: Sequence[int] = (0,),
        bars: int | None = None,
    ) -> None:
        """Print a table; its first column is the one that gives way when the terminal is narrow."""
        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim"
        )
        for index, column in enumerate(columns):
            table.add_column(
                self._text(column),
                justify="left" if index in left else "right",
                overflow="fold",
                no_wrap=index > 0,
                style="cyan" if index == bars else "",
            )
        for row in rows:
            table.add_row(*(self._text(cell) for cell in row))
        self._print(table)

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Print labels and their texts, the texts aligned."""
        grid = Table.grid(padding=(0, 2))
        for label, words in rows:
            grid.add_row(self._text(label, "dim"), self._text(words))
        self._print(grid)

    def gap(self) -> None:
        self.console.print()

    def bar(self, share: float) -> str:
        """Draw a share as a bar of eighths of a block, or of hashes where there are no blocks."""
        if not self.blocks:
            return "#" * max(1, round(share * _BAR))
        whole, eighths = divmod(max(1, round(share * _BAR * 8)), 8)
        return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()

    def _text(self, words: str, style: str = "") -> Text:
        return Text(_fit(words, self.console), style=style)

    def _print(self, what: Text | Table) -> None:
        self.console.print(what, width=self.width)


def _scores(out: _Printer, story: Story) -> None:
    out.heading("Scores")
    out.table(
        ["", "Train", "Validation", "Test", "", story.gap_label],
        [[r.name, r.train, r.valid, r.test, r.spread, r.gap] for r in story.scores],
    )
    out.gap()
    out.paragraphs(story.score_notes)


def _features(out: _Printer, story: Story) -> None:
    selected, dropped = story.selected, story.dropped
    out.heading(f"Features: {len(selected):,} selected, {len(dropped):,} dropped")
    if selected:
        shown = selected[:_MOST_FEATURES]
        out.table(
            ["Feature", "Kind", "Importance", ""],
            [_feature_cells(out, row) for row in shown],
            left=(0, 1, 3),
            bars=3,
        )
    if selected and (dropped or len(selected) > _MOST_FEATURES):
        out.gap()
    if len(selected) > _MOST_FEATURES:
        names = [row.name for row in selected[_MOST_FEATURES:]]
        out.paragraph(f"Also selected ({len(names):,}): {listing(names, _MOST_NAMES)}")
    if dropped:
        out.paragraph(f"Dropped ({len(dropped):,}): {listing(dropped, _MOST_NAMES)}")


def _feature_cells(out: _Printer, row: FeatureRow) -> list[str]:
    return [row.name, row.kind, row.percent, out.bar(row.share)]


def _stderr() -> Console | None:
    """Wrap stderr if it is a terminal, whatever the environment says about forcing colours."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    return Console(stderr=True)


def _holds(console: Console, words: str) -> bool:
    try:
        words.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def _fit(words: str, console: Console) -> str:
    """Replace what the encoding of the output cannot hold."""
    if _holds(console, words):
        return words
    return words.translate(_ASCII).encode(console.encoding, "replace").decode(console.encoding)
