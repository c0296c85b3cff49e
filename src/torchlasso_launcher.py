"""The command ``torchlasso``, answering Ctrl-C from its first moment on.

Importing torch takes seconds, and an interrupt in the middle of an import ends in a traceback, or in
whatever the interrupted library makes of it.  Nothing has been written by then, so leaving at once is safe.
This module stands outside the package because importing the package is what takes those seconds.
"""

import os
import signal
from types import FrameType


def main() -> None:
    """Import the command line and run it."""
    signal.signal(signal.SIGINT, _leave)
    from torchlasso.cli import main as run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"torchlasso: error: interrupted; no file was left half-written\n")
    os._exit(2)
