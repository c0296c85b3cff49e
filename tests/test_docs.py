"""The documents: every Python snippet and torchlasso command runs, links lead somewhere, tables are true."""

import contextlib
import importlib.util
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import pytest

from tests.test_architecture import FLOORS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_CLI = "from torchlasso.cli import main; main()"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """One fenced block of a document."""

    language: str
    text: str
    line: int


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a Markdown file in order."""
    text = path.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in FENCE.finditer(text)]


def run_python(blocks: list[Block], path: Path) -> None:
    """Run the Python blocks in one namespace; an ``output`` block must be what the one before it printed."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = io.StringIO()
    for block in blocks:
        if block.language == "python":
            printed = io.StringIO()
            code = compile("\n" * block.line + block.text, str(path), "exec")  # true lines in a traceback
            with contextlib.redirect_stdout(printed):
                exec(code, namespace)
        elif block.language == "output":
            assert lines(printed.getvalue()) == lines(block.text), f"{path.name}, line {block.line}"


def run_console(blocks: list[Block], folder: Path) -> list[str]:
    """Run every ``$ torchlasso`` line of the console blocks in a folder, and return the commands."""
    typed = [line for block in blocks if block.language == "console" for line in block.text.splitlines()]
    commands = [line.removeprefix("$ ") for line in typed if line.startswith("$ torchlasso")]
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        result = subprocess.run(
            [sys.executable, "-c", RUN_CLI, *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return commands


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_snippets_and_commands_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(path)
    if not blocks:
        pytest.skip("no fenced blocks")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    matplotlib.use("Agg")
    run_python(blocks, path)
    run_console(blocks, tmp_path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = [link for link in LINK.findall(path.read_text(encoding="utf-8")) if "://" not in link]
    missing = [link for link in links if not (path.parent / link.partition("#")[0]).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_fences_are_of_a_known_kind(path: Path) -> None:
    """A misspelt language would quietly take a snippet out of these tests."""
    text = path.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks_of(path))
    assert {block.language for block in blocks_of(path)} <= {"python", "output", "console", "sh", "text"}


def test_the_floors_in_the_architecture_are_those_of_the_test() -> None:
    tool = load(ROOT / "docs" / "make_floors.py")
    assert tool.read_floors() == FLOORS
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert text == tool.updated(text, tool.floors_table(FLOORS)), "run python docs/make_floors.py"


def load(path: Path) -> ModuleType:
    """Import a script by its path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- the extractor can fail -------------------------------------------------------------------


def document(folder: Path, *blocks: tuple[str, str]) -> Path:
    path = folder / "page.md"
    path.write_text("Text.\n\n" + "\n".join(f"```{kind}\n{text}\n```\n" for kind, text in blocks))
    return path


def test_snippets_share_a_namespace_and_their_output_is_compared(tmp_path: Path) -> None:
    path = document(tmp_path, ("python", "a = 2"), ("python", "print(a)"), ("output", "2"))
    run_python(blocks_of(path), path)


def test_a_wrong_output_fails(tmp_path: Path) -> None:
    path = document(tmp_path, ("python", "print(1)"), ("output", "2"))
    with pytest.raises(AssertionError, match=r"page.md, line 7"):
        run_python(blocks_of(path), path)


def test_a_broken_snippet_fails_at_its_line(tmp_path: Path) -> None:
    path = document(tmp_path, ("python", "a = 1\nraise LookupError"))
    with pytest.raises(LookupError) as caught:
        run_python(blocks_of(path), path)
    assert (Path(str(caught.traceback[-1].path)).name, caught.traceback[-1].lineno + 1) == ("page.md", 5)


def test_only_torchlasso_commands_run(tmp_path: Path) -> None:
    path = document(tmp_path, ("console", "$ exit 1\n$ torchlasso --help  # what there is\noutput"))
    assert run_console(blocks_of(path), tmp_path) == ["torchlasso --help  # what there is"]


def test_a_failing_command_fails(tmp_path: Path) -> None:
    path = document(tmp_path, ("console", "$ torchlasso inspect absent.pt"))
    with pytest.raises(AssertionError, match="absent"):
        run_console(blocks_of(path), tmp_path)


@pytest.mark.slow
def test_the_shown_demo_is_what_make_demo_prints(tmp_path: Path) -> None:
    """Every heading and label of the README's shortened output; the numbers depend on the processor."""
    (shown,) = [block for block in blocks_of(ROOT / "README.md") if block.language == "text"]
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "--always-make", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert recipe.stdout.splitlines()[-1] == ".venv/bin/torchlasso demo"
    command = [sys.executable, "-c", RUN_CLI, "demo"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    words = set(re.findall(r"[A-Za-z_/.]{3,}", run.stdout))
    names = [line for line in shown.text.splitlines() if not line.startswith(("$", "…"))]
    missing = {word for line in names for word in re.findall(r"[A-Za-z_/.]{3,}", line)} - words
    assert not missing
    assert {path.name for path in (tmp_path / "torchlasso-breast_cancer").iterdir()} == {
        "breast_cancer.csv",
        "metrics.json",
        "model.safetensors",
        "path.csv",
        "report.html",
    }


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    (block,) = [block for block in blocks_of(ROOT / "README.md") if block.language == "sh"]
    targets = [line.split()[1] for line in block.text.splitlines()]
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, check=True)
