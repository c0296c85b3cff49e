"""Every example runs as it stands and prints what it promises; the notebook is the tutorial."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import torchlasso as tl
from tests.test_docs import load

EXAMPLES = Path(__file__).parents[1] / "examples"
TOOL = load(EXAMPLES / "make_notebook.py")

pytestmark = pytest.mark.slow


def run(name: str, folder: Path) -> str:
    """Run an example in an empty folder with warnings as errors, and return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name)],
        cwd=folder,
        env=os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(folder.iterdir()) == []  # an example leaves nothing behind
    return result.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """Return the numbers that the groups of a pattern match, which must be found exactly once."""
    found = re.findall(pattern, text)
    assert len(found) == 1, f"{pattern!r} found {len(found)} times in\n{text}"
    groups = found[0] if isinstance(found[0], tuple) else (found[0],)
    return [float(group.replace(",", "")) for group in groups]


def check_tutorial(printed: str) -> None:
    for step in range(1, 6):
        assert f"Step {step}: " in printed
    data_loss, loss = numbers(r"data loss ([\d.]+), loss with L1 ([\d.]+)", printed)
    assert loss > data_loss + 5

    def row(name: str) -> list[float]:
        return numbers(name + r" +([\d,]+) of 2,655 +([\d,]+) +([\d.]+)% +([\d.]+)% +([\d.]+)", printed)

    strength = r"0\.0\d+"
    zeros, near, _, test, certificate = row(rf"tl\.attach, {strength}")
    assert zeros > 2300
    assert near < 20
    assert test > 80
    assert certificate < 0.5
    zeros, near, _, test, certificate = row(rf"L1 in the loss, {strength}")
    assert zeros == 0
    assert near > 2000
    assert test > 80
    assert certificate > 1
    zeros, _, train, test, _ = row(r"L1 in the loss, 0\.1")
    assert zeros == 0
    assert max(train, test) < 40  # the tutorial's 0.1 leaves nothing but the most frequent class
    train, test = numbers(r"no penalty +0 of 2,655 +\d+ +([\d.]+)% +([\d.]+)%", printed)
    assert train > 99
    assert test < 70
    assert "bias, not penalised by default" in printed


def test_tutorial(tmp_path: Path) -> None:
    check_tutorial(run("tutorial.py", tmp_path))


def test_the_notebook_is_made_from_the_script() -> None:
    stored = TOOL.NOTEBOOK.read_text(encoding="utf-8")
    assert stored == TOOL.notebook_text(), "run python examples/make_notebook.py"


def test_the_notebook_is_valid_and_stored_without_outputs() -> None:
    notebook = nbformat.read(TOOL.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.cells[0].source == "%pip install torchlasso"
    assert notebook.cells[0].metadata.tags == ["install"]
    assert notebook.metadata.kernelspec.name == "python3"
    assert "colab" in notebook.metadata


@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::ResourceWarning")
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(TOOL.NOTEBOOK, as_version=4)
    notebook.cells = [c for c in notebook.cells if "install" not in c.metadata.get("tags", [])]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    check_tutorial("".join(output.text for output in outputs if output.output_type == "stream"))


def test_the_tutorials_class_is_the_librarys() -> None:
    source = (EXAMPLES / "tutorial.py").read_text(encoding="utf-8")
    namespace = {"nn": torch.nn}
    exec(
        source[source.index("class SimpleNet") : source.index("\n\n\nmodel = ")].partition("\nmodel")[0],
        namespace,
    )
    ours, theirs = tl.SimpleNet(100, 25, 5, 0.1), namespace["SimpleNet"](100, 25, 5, 0.1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 100)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.l1_regularization(), theirs.l1_regularization())


def test_group_lasso_neurons(tmp_path: Path) -> None:
    printed = run("group_lasso_neurons.py", tmp_path)
    alive, error = numbers(r"strength 0: (\d+) of 40 neurons alive, test error ([\d.]+)", printed)
    assert alive == 40
    left, smaller = numbers(r"strength 0\.02: (\d+) of 40 neurons alive, test error ([\d.]+)", printed)
    assert 2 <= left <= 6
    assert smaller < error
    (dead,) = numbers(r"0\.weight .*?(\d+) +0\n", printed)
    assert dead == 40 - left


def test_feature_selection(tmp_path: Path) -> None:
    printed = run("feature_selection.py", tmp_path)
    count, accuracy = numbers(r"own loop: (\d+) of 30 inputs, test accuracy ([\d.]+)", printed)
    assert 3 <= count <= 15
    assert accuracy > 0.9
    names = printed.splitlines()[1].split(",")
    assert len(names) == count
    assert any("worst" in name for name in names)
    for split in range(3):
        pattern = rf"split {split}: strength \S+, (\d+) of 30 inputs, test accuracy ([\d.]+)"
        count, accuracy = numbers(pattern, printed)
        assert 1 <= count <= 30
        assert accuracy > 0.9
    assert "worst" in printed.partition("selected in every split: ")[2]


def test_debias(tmp_path: Path) -> None:
    printed = run("debias.py", tmp_path)
    zeros, shrunk = numbers(r"elastic net +(\d+) of 20 .*distance to truth ([\d.]+)", printed)
    still, unshrunk = numbers(r"refitted +(\d+) of 20 .*distance to truth ([\d.]+)", printed)
    assert zeros == still == 17
    assert unshrunk < shrunk / 3
    assert numbers(r"largest difference (\S+)", printed)[0] < 1e-6


def test_same_strength_every_optimizer(tmp_path: Path) -> None:
    printed = run("same_strength_every_optimizer.py", tmp_path)
    (optimum,) = numbers(r"Lasso\(alpha=0\.2\): (\d+) nonzero", printed)
    found = {}
    for way in ("attach", "L1 in the loss", "step, then soft"):
        for name in ("SGD", "SGD, momentum 0.9", "Adam"):
            found[way, name] = numbers(rf"(?m)^{way} +{re.escape(name)} +(\d+) +(\S+)$", printed)
    for (way, name), (nonzero, difference) in found.items():
        if way == "attach" or (way, name) == ("step, then soft", "SGD"):
            assert nonzero == optimum
            assert difference < 1e-8
        else:
            assert nonzero > optimum
            assert difference > 1e-3
