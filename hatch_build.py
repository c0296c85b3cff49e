"""Compile the C library of the CPU kernels when the package is built or installed.

Without a compiler the installation succeeds all the same, and the kernels run in torch.
"""

import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Build the library beside its source, and mark the wheel as made for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, or say in one line why not."""
        script = Path(self.root, "src", "torchlasso", "optim", "kernels", "build.py")
        problem = runpy.run_path(str(script))["build"]()
        if problem:
            self.app.display_warning(f"torchlasso: the fast CPU kernels were not built: {problem}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"  # loaded with ctypes, so any Python will do
        build_data["artifacts"].append("src/torchlasso/optim/kernels/steps.so")
