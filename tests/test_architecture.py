"""The layout of the package: imports point down only, and every module has a floor.

The rules are plain functions over parsed source, so that they can be tried on small fake packages
below; the real package is never imported for them.
"""

import ast
import graphlib
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

import torchlasso

PACKAGE = "torchlasso"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE
MAX_LINES = 350

FACES = ("", "optim")  # the files that re-export public names: torchlasso.X and torchlasso.optim.X

# A module imports from strictly lower floors only. Names are relative to the package;
# "" is the face, the one file that re-exports.
FLOORS = {
    "errors": 1,
    "compaction.labels": 2,
    "compaction.trace": 2,
    "conjugates": 2,
    "devices": 2,
    "files": 2,
    "fit.settings": 2,
    "gaussian_knockoffs": 2,
    "layouts": 2,
    "loss_base": 2,
    "mlp": 2,
    "monitor.formats": 2,
    "nested": 2,
    "optim.copies": 2,
    "optim.kernels.build": 2,
    "optim.kernels.gpu_scalars": 2,
    "optim.kernels.mirror": 2,
    "optim.kernels.table": 2,
    "optim.metric": 2,
    "optim.pace": 2,
    "prox": 2,
    "proximal.constraints": 2,
    "proximal.nonconvex": 2,
    "rules": 2,
    "schedules": 2,
    "semi_structured": 2,
    "sparse_layers": 2,
    "sparse_rows": 2,
    "sparse_states": 2,
    "stability_bounds": 2,
    "steering": 2,
    "survival": 2,
    "tables": 2,
    "tabular.cells": 2,
    "tabular.delimited": 2,
    "tabular.fields": 2,
    "checkpoints": 3,
    "compaction.flows": 3,
    "compaction.report": 3,
    "compaction.verify": 3,
    "estimators_rows": 3,
    "groups": 3,
    "losses": 3,
    "monitor.plots": 3,
    "monitor.sentences": 3,
    "optim.kernels.gpu_steps": 3,
    "optim.kernels.library": 3,
    "optim.metric_adam": 3,
    "optim.metric_linear": 3,
    "optim.metric_squares": 3,
    "packing": 3,
    "penalties.base": 3,
    "proximal.coupled": 3,
    "proximal.groups": 3,
    "proximal.hierarchical": 3,
    "proximal.ordered": 3,
    "proximal.variation": 3,
    "sparsification": 3,
    "sparsity": 3,
    "tabular.data": 3,
    "tabular.scaling": 3,
    "tabular.targets": 3,
    "activations": 4,
    "compaction.liveness": 4,
    "compaction.rules_shape": 4,
    "estimators_checks": 4,
    "exporting.calls": 4,
    "monitor.story": 4,
    "optim.evidence": 4,
    "optim.kernels.cpu": 4,
    "optim.metrics": 4,
    "penalties.constraints": 4,
    "penalties.entrywise": 4,
    "penalties.hierarchical": 4,
    "penalties.ordered": 4,
    "penalties.spectral": 4,
    "penalties.structured": 4,
    "penalties.variation": 4,
    "simplenet": 4,
    "tabular.columns": 4,
    "tasks": 4,
    "terms": 4,
    "blueprint_layers": 5,
    "compaction.explain": 5,
    "compaction.rules_entry": 5,
    "compaction.rules_recurrent": 5,
    "compaction.surgery": 5,
    "exporting.onnx_file": 5,
    "exporting.pt2_file": 5,
    "gradients": 5,
    "monitor.console": 5,
    "monitor.report": 5,
    "optim.kernels.gpu": 5,
    "optim.kernels.reference": 5,
    "penalties.concave": 5,
    "penalties.separable": 5,
    "penalties.sparse_group": 5,
    "selection": 5,
    "tabular.features": 5,
    "tabular.importance": 5,
    "target": 5,
    "blueprint_graphs": 6,
    "compaction.modules": 6,
    "compaction.rules_layers": 6,
    "coupling": 6,
    "gaps": 6,
    "penalties.counting": 6,
    "penalties.group_mcp": 6,
    "penalties.nonconvex": 6,
    "regularizer": 6,
    "streams": 6,
    "tabular.encoding": 6,
    "validation": 6,
    "blueprint": 7,
    "certify": 7,
    "compaction.rules_mixing": 7,
    "compaction.shapes": 7,
    "hierarchy": 7,
    "optim.averaging": 7,
    "optim.fista": 7,
    "optim.targets": 7,
    "structure": 7,
    "tabular.predictor": 7,
    "compaction.rebuild": 8,
    "compaction.rules": 8,
    "exporting.table_graph": 8,
    "filling": 8,
    "optim.shrinkage": 8,
    "tabular.compacting": 8,
    "tabular.scoring": 8,
    "training": 8,
    "exporting.table_columns": 9,
    "exporting.table_probe": 9,
    "optim.metric_rule": 9,
    "optim.orthant": 9,
    "optim.rows": 9,
    "path": 9,
    "saving": 9,
    "export": 10,
    "fit.fitter": 10,
    "importance": 10,
    "lasso_points": 10,
    "levels": 10,
    "optim.fast_rule": 10,
    "optim.gpu_rule": 10,
    "fit.linear": 11,
    "knockoffs": 11,
    "lasso_plots": 11,
    "optim.attach": 11,
    "optim.fused_rule": 11,
    "stability": 11,
    "tabular.summary": 11,
    "compaction.optimizers": 12,
    "fit.network": 12,
    "fit.online": 12,
    "lasso_run": 12,
    "optim.fused": 12,
    "bench.ways": 13,
    "compaction.compact": 13,
    "cross_validation": 13,
    "fit.run": 13,
    "lasso_checkpoint": 13,
    "lasso_refit": 13,
    "bench.step": 14,
    "compaction.coupled": 14,
    "estimators_base": 14,
    "lasso_path": 14,
    "tabular.folding": 14,
    "bench.inference": 15,
    "estimators_folds": 15,
    "estimators_kinds": 15,
    "tabular.job": 15,
    "estimators": 16,
    "estimators_cv": 16,
    "tabular.outputs": 16,
    "tabular.walking": 16,
    "cli": 17,
    "": 20,
}


# ---- the rules --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Import:
    """One import of a module of the package, as it stands in the source."""

    target: str
    line: int
    lazy: bool


@dataclass(frozen=True)
class Module:
    """One parsed file; names are relative to the package."""

    name: str
    is_package: bool
    lines: int
    imports: tuple[Import, ...]


class _Imports(ast.NodeVisitor):
    """Collect (dotted module, imported name or None, line, lazy) of every import that runs."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.depth = 0
        self.found: list[tuple[str, str | None, int, bool]] = []

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(alias.name, None, node.lineno, self.depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")
            parents = parents[: len(parents) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        self.found += [(base, alias.name, node.lineno, self.depth > 0) for alias in node.names]

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) not in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            self.generic_visit(node)
            return
        for child in node.orelse:
            self.visit(child)

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function


def parse_package(root: Path) -> dict[str, Module]:
    """Parse every module under ``root``; the folder's name is the package's."""
    paths = {".".join(_parts(path, root)): path for path in root.rglob("*.py")}
    modules = {}
    for name, path in paths.items():
        text = path.read_text(encoding="utf-8")
        is_package = path.name == "__init__.py"
        full = [root.name, *filter(None, name.split("."))]
        visitor = _Imports(".".join(full if is_package else full[:-1]))
        visitor.visit(ast.parse(text))
        imports = (
            Import(target, line, lazy)
            for base, what, line, lazy in visitor.found
            if (target := _resolve(base, what, root.name, paths)) is not None
        )
        modules[name] = Module(name, is_package, len(text.splitlines()), tuple(imports))
    return modules


def _parts(path: Path, root: Path) -> tuple[str, ...]:
    parts = path.relative_to(root).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def _resolve(base: str, what: str | None, package: str, known: dict[str, Path]) -> str | None:
    """Return the module that an import reaches, or None if it lies outside the package."""
    if base != package and not base.startswith(f"{package}."):
        return None
    name = base[len(package) + 1 :]
    below = f"{name}.{what}".lstrip(".")
    return below if what is not None and below in known else name


def circles(modules: dict[str, Module]) -> list[str]:
    """Rule 1: no circle among the imports that run when a module is imported."""
    graph = {m.name: {i.target for i in m.imports if not i.lazy} for m in modules.values()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"import circle: {' <- '.join(error.args[1])}"]
    return []


def climbs(modules: dict[str, Module], floors: dict[str, int]) -> list[str]:
    """Rule 2: every import, also one inside a function, points to a strictly lower floor."""
    return [
        f"{m.name}:{i.line} (floor {floors[m.name]}) imports {i.target!r} (floor {floors[i.target]})"
        for m in modules.values()
        for i in m.imports
        if m.name in floors and i.target in floors and floors[i.target] >= floors[m.name]
    ]


def detours(modules: dict[str, Module]) -> list[str]:
    """Rule 3: names come from the file that defines them; no ``__init__`` but the faces re-exports."""
    through = [
        f"{m.name}:{i.line} imports from {i.target or 'the face'!r}, no file that defines names"
        for m in modules.values()
        for i in m.imports
        if i.target not in modules or modules[i.target].is_package
    ]
    packages = [m for m in modules.values() if m.is_package and m.name not in FACES]
    again = [f"{m.name} re-exports" for m in packages if m.imports]
    return through + again


def too_long(modules: dict[str, Module]) -> list[str]:
    """Rule 4: a file can be read in one sitting."""
    return [f"{m.name}: {m.lines} lines" for m in modules.values() if m.lines > MAX_LINES]


def without_floor(modules: dict[str, Module], floors: dict[str, int]) -> list[str]:
    """Rule 5: every module has a floor; an ``__init__`` that imports nothing needs none."""
    return [m.name for m in modules.values() if m.name not in floors and not (m.is_package and m.name)]


# ---- the package obeys them -------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return parse_package(SOURCE)


def test_the_package_was_found(modules: dict[str, Module]) -> None:
    assert {found.target for found in modules["files"].imports} == {"errors"}


def test_no_import_circle(modules: dict[str, Module]) -> None:
    assert circles(modules) == []


def test_imports_point_down(modules: dict[str, Module]) -> None:
    assert climbs(modules, FLOORS) == []


def test_imports_name_the_defining_file(modules: dict[str, Module]) -> None:
    assert detours(modules) == []


def test_no_file_is_too_long(modules: dict[str, Module]) -> None:
    assert too_long(modules) == []


def test_every_module_has_a_floor(modules: dict[str, Module]) -> None:
    assert without_floor(modules, FLOORS) == []


def test_the_floors_and_the_files_agree(modules: dict[str, Module]) -> None:
    assert set(FLOORS) == {m.name for m in modules.values() if not (m.is_package and m.name)}


# ---- the face ---------------------------------------------------------------------------------


def test_all_equals_the_public_namespace() -> None:
    names = torchlasso.__all__
    assert all(isinstance(name, str) for name in names)
    assert len(set(names)) == len(names)
    public = {
        name
        for name, value in vars(torchlasso).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert {name for name in names if not name.startswith("__")} == public
    assert all(hasattr(torchlasso, name) for name in names)


def test_all_is_sorted() -> None:
    def kind(name: str) -> tuple[int, str]:  # ruff's order: CONSTANTS and acronyms, Classes, functions
        return (0 if name.isupper() else 1 if name[0].isupper() else 2), name

    assert list(torchlasso.__all__) == sorted(torchlasso.__all__, key=kind)


# ---- the rules can fail -----------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> types.SimpleNamespace:
    """Write a small package ``fake`` with the modules low (1), sub.mid (2), high (3) and a face."""
    root = tmp_path / "fake"

    def package(**files: str) -> dict[str, Module]:
        for name, text in (
            {"__init__": "", "low": "", "sub.__init__": "", "sub.mid": "", "high": ""} | files
        ).items():
            path = root.joinpath(*name.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return parse_package(root)

    return types.SimpleNamespace(package=package, floors={"low": 1, "sub.mid": 2, "high": 3, "": 20})


def all_rules(modules: dict[str, Module], floors: dict[str, int]) -> set[str]:
    """Return the names of the rules that are broken."""
    broken = {
        "circles": circles(modules),
        "climbs": climbs(modules, floors),
        "detours": detours(modules),
        "too_long": too_long(modules),
        "without_floor": without_floor(modules, floors),
    }
    return {rule for rule, found in broken.items() if found}


GOOD = {
    "absolute": {"high": "from fake.low import name\nimport fake.sub.mid"},
    "relative": {
        "high": "from .low import name\nfrom .sub import mid\nfrom . import low",
        "sub.mid": "from ..low import name",
    },
    "the face re-exports": {"__init__": "from fake.high import name\nfrom fake.sub.mid import other"},
    "a module through its package": {"high": "from fake.sub import mid\nfrom fake import low"},
    "for types only": {
        "low": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fake.high import name"
    },
    "typing.TYPE_CHECKING": {"low": "import typing\nif typing.TYPE_CHECKING:\n    from .sub import mid"},
    "lazy third party": {"low": "def plot():\n    import matplotlib.pyplot\n    from os import path"},
    "a foreign name alike": {"low": "import fakes\nimport other.fake.high\nfrom fakery.high import name"},
    "not an import": {"low": "'''>>> from fake.high import name'''\ntext = 'import fake.high'"},
    "at the limit": {"low": "\n" * MAX_LINES},
}

BAD = {
    "upwards": ({"low": "import fake.high"}, {"climbs"}),
    "upwards, relative": ({"sub.mid": "from ..high import name"}, {"climbs"}),
    "upwards, a module from its package": ({"low": "from fake.sub import mid"}, {"climbs"}),
    "upwards, in a function": ({"low": "def f():\n    from fake.high import name"}, {"climbs"}),
    "upwards, in a method": (
        {"low": "class C:\n    async def f(self):\n        import fake.high"},
        {"climbs"},
    ),
    "upwards, in a class": ({"low": "class C:\n    import fake.high"}, {"climbs"}),
    "upwards, in a try": ({"low": "try:\n    import fake.high\nexcept ImportError:\n    pass"}, {"climbs"}),
    "upwards, beside type checking": (
        {"low": "if TYPE_CHECKING:\n    import os\nelse:\n    import fake.high"},
        {"climbs"},
    ),
    "upwards, under another condition": ({"low": "if not TYPE_CHECKING:\n    import fake.high"}, {"climbs"}),
    "the same module": ({"low": "from . import low"}, {"climbs", "circles"}),
    "a circle": ({"low": "import fake.high", "high": "import fake.low"}, {"climbs", "circles"}),
    "a long circle": (
        {"low": "import fake.high", "high": "from .sub import mid", "sub.mid": "from ..low import name"},
        {"climbs", "circles"},
    ),
    "a circle broken by a function": (
        {"low": "def f():\n    import fake.high", "high": "import fake.low"},
        {"climbs"},
    ),
    "from the face": ({"high": "from fake import name"}, {"climbs", "detours"}),
    "the face itself": ({"high": "import fake"}, {"climbs", "detours"}),
    "from a package": ({"high": "from fake.sub import name"}, {"detours"}),
    "from a package, by the face": ({"__init__": "from fake.sub import name"}, {"detours"}),
    "a star from a package": ({"high": "from .sub import *"}, {"detours"}),
    "a package that re-exports": ({"sub.__init__": "from .mid import name"}, {"detours"}),
    "a module that is not there": ({"high": "from fake.gone import name"}, {"detours"}),
    "too long": ({"low": "\n" * (MAX_LINES + 1)}, {"too_long"}),
    "a new module": ({"new": ""}, {"without_floor"}),
    "a new module in a package": ({"sub.new": ""}, {"without_floor"}),
}


@pytest.mark.parametrize("files", GOOD.values(), ids=GOOD.keys())
def test_good_packages_pass(fake: types.SimpleNamespace, files: dict[str, str]) -> None:
    assert all_rules(fake.package(**files), fake.floors) == set()


@pytest.mark.parametrize(("files", "broken"), BAD.values(), ids=BAD.keys())
def test_bad_packages_fail(fake: types.SimpleNamespace, files: dict[str, str], broken: set[str]) -> None:
    assert all_rules(fake.package(**files), fake.floors) == broken


def test_a_complaint_names_the_place(fake: types.SimpleNamespace) -> None:
    modules = fake.package(low="\nimport fake.high")
    assert climbs(modules, fake.floors) == ["low:2 (floor 1) imports 'high' (floor 3)"]
