"""The C library is built from its source, told from an older one, and not needed."""

import ctypes
import os
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchlasso.errors import TorchlassoError
from torchlasso.optim.kernels import build, library

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return where the library is looked for in this test."""
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "steps.so")
    library._load.cache_clear()
    yield tmp_path / "steps.so"
    library._load.cache_clear()


def test_a_missing_library_is_explained(path: Path) -> None:
    assert not library.available()
    assert "was not built" in library.why_not()
    assert "python -m torchlasso.optim.kernels.build" in library.why_not()
    with pytest.raises(TorchlassoError, match="cannot be used"):
        library.walk()


def test_what_is_no_library_is_explained(path: Path) -> None:
    path.write_bytes(b"no library")
    assert "does not load" in library.why_not()


@needs_compiler
def test_a_library_of_another_source_is_refused(path: Path) -> None:
    source = path.with_name("old.c")
    source.write_text(
        'const char *torchlasso_source(void) { return "older"; }\nvoid torchlasso_walk(void) {}\n'
    )
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    assert "another version" in library.why_not()


@pytest.mark.skipif(not library.available(), reason=library.why_not())
def test_the_library_says_what_it_was_built_from() -> None:
    loaded = ctypes.CDLL(str(build.LIBRARY))
    loaded.torchlasso_source.restype = ctypes.c_char_p
    assert loaded.torchlasso_source().decode() == build.digest()


@pytest.mark.parametrize(
    ("compiler", "said"), [("no-such-compiler", "no C compiler"), ("false", "false failed")]
)
def test_a_failed_build_says_why_and_leaves_the_library_alone(
    compiler: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("build.py", *build.SOURCES):
        shutil.copy(build.FOLDER / name, tmp_path)
    (tmp_path / "steps.so").write_bytes(b"older")
    monkeypatch.setenv("CC", compiler)
    assert said in runpy.run_path(str(tmp_path / "build.py"))["build"]()
    assert (tmp_path / "steps.so").read_bytes() == b"older"
    assert sorted(os.listdir(tmp_path)) == sorted(["build.py", "steps.so", *build.SOURCES])


@needs_compiler
def test_the_source_has_no_warnings() -> None:
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fsyntax-only"]
    command = [str(COMPILER), "-std=c11", *strict, '-DTORCHLASSO_SOURCE=""', "steps.c"]
    subprocess.run(command, cwd=build.FOLDER, check=True)
