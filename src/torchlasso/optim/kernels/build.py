"""Compile the C library of this folder; the build hook runs this file, and so may a user.

``python -m torchlasso.optim.kernels.build`` builds it again, after a compiler was installed, say.  Nothing
but the standard library is imported here, because the build hook runs before anything is installed.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "steps.so"
SOURCES = ("steps.c", "stages.h", "pool.h")

# Nothing here may change what a number is: no fast-math, and no fused multiply-add, which some processors
# have and some have not.
_FLAGS = (
    "-std=c11",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
    "-fno-thread-jumps",
    "-fPIC",
    "-shared",
)


def digest() -> str:
    """Return what tells one version of the C source from another."""
    text = b"".join((FOLDER / name).read_bytes().replace(b"\r\n", b"\n") for name in SOURCES)
    return hashlib.sha256(text).hexdigest()[:16]


def build() -> str:
    """Compile the library beside its source.

    Returns:
        What prevented it, or an empty text.
    """
    compiler = _compiler()
    if not compiler:
        return "no C compiler (cc, gcc or clang) was found"
    try:
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            made = Path(folder) / LIBRARY.name
            source = f'-DTORCHLASSO_SOURCE="{digest()}"'
            command = [*compiler, *_FLAGS, "-pthread", source, "steps.c", "-o", str(made), "-lm"]
            subprocess.run(command, cwd=FOLDER, check=True, capture_output=True, text=True, timeout=600)
            os.replace(made, LIBRARY)  # a running process keeps the file that it has loaded
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"{compiler[0]} failed: {said[0] if said else 'no message'}"
    return ""


def _compiler() -> list[str]:
    """Return the command of a C compiler, the environment's ``CC`` first, or nothing."""
    wanted = shlex.split(os.environ.get("CC", ""))
    candidates = [wanted] if wanted else [["cc"], ["gcc"], ["clang"]]
    return next((c for c in candidates if shutil.which(c[0])), [])


if __name__ == "__main__":
    problem = build()
    print(f"the C library was not built: {problem}" if problem else f"built {LIBRARY}")
    sys.exit(bool(problem))
