"""How the package is laid out: imports run one way, and no file imports one that imports it."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import acodm_cli

PACKAGE = Path(acodm_cli.__file__).parent
FLOORS = (
    {"cli", "__main__"},
    {"commands"},
    {"runs", "display", "adapters", "__init__"},
    {"engine", "mixing", "corpus", "schedule", "exports"},
    {"alignment", "settings", "errors", "limits", "writing"},
)


def module_name(path: Path) -> str:
    """`acodm_cli.engine.trainer`; of a package, its name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, for types only ones and late ones included."""
    modules = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                targets = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found[name] |= {target for target in targets if target in modules and target != name}
    return found


def floor_of(module: str) -> int:
    part = module.split(".")[1] if "." in module else "__init__"
    (floor,) = (number for number, parts in enumerate(FLOORS) if part in parts)
    return floor


def test_imports_run_one_way() -> None:
    upward = [
        f"{name} -> {target}"
        for name, targets in imports().items()
        for target in targets
        if floor_of(target) < floor_of(name) and target != "acodm_cli"
    ]
    assert not upward


def test_no_cycles() -> None:
    """A package's __init__ that offers what its modules define is not a cycle: it imports them when they are asked for."""
    graph = {name: targets - {"acodm_cli"} for name, targets in imports().items() if name != "acodm_cli"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names it


def test_only_the_command_line_knows_typer() -> None:
    knowing = [path.name for path in PACKAGE.rglob("*.py") if "import typer" in path.read_text()]
    assert sorted(knowing) == ["cli.py", "options.py"]
