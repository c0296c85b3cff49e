"""The sparse autoencoder example runs as it stands and shows what it promises."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.test_examples import EXAMPLES, numbers, run

pytestmark = pytest.mark.slow


def test_sparse_autoencoder(tmp_path: Path) -> None:
    printed = run("sparse_autoencoder.py", tmp_path)
    rows = [numbers(rf"(?m)^{s} +([\d.]+) +(\d+) +([\d.]+)$", printed) for s in ("0.0", "0.03", "0.1", "0.3")]
    for (parts, _, fit), (fewer, _, worse) in pairwise(rows):
        assert fewer < 0.8 * parts
        assert worse < fit
    parts, dead, fit = rows[-1]
    assert 5 < parts < 25  # of 128
    assert dead < 30
    assert fit > 0.75
    counts = re.findall(r"(\d+) of 20 a \d", printed)
    assert len(counts) == 4
    assert all(int(count) >= 15 for count in counts)
    assert len(re.findall(r"(?m)^[·░▒▓█]{16}(   [·░▒▓█]{16}){3}$", printed)) == 8


def test_the_dictionary_is_drawn_where_asked(tmp_path: Path) -> None:
    file = tmp_path / "dictionary.png"
    short = tmp_path / "short.py"  # the same with one epoch, as only the picture counts here
    source = (EXAMPLES / "sparse_autoencoder.py").read_text(encoding="utf-8")
    assert "128, 60, 100" in source
    short.write_text(source.replace("128, 60, 100", "128, 1, 100"), encoding="utf-8")
    subprocess.run([sys.executable, "-W", "error", short, "--plot", file], check=True, capture_output=True)
    assert file.read_bytes().startswith(b"\x89PNG")
