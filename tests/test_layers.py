"""The layers of the design: a package imports only from packages above it in the list."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "trapline"

LAYERS = (
    ("errors", "mapping", "paths", "registers", "sync", "turns"),
    ("abi",),
    ("bits",),
    ("arm64", "x86_64"),
    ("engine",),
    ("gic",),
    ("host",),
    ("kvm",),
    ("kvm.arm64",),
    ("backends",),
    ("bare",),
    ("devices",),
    ("vmm",),
    ("check",),
    ("ui",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

FACADE = ("trapline.__init__", "trapline.__main__", "trapline.x86")
"""Modules outside the layers: the public names, which come from the backends and the ABI, and the command line."""

SWITCHING = {"threading", "time", "random"}
"""Only sync.py may import these on behalf of the hypervisor."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def layer_of(name: str) -> str | None:
    """The layer that a dotted module name belongs to, None for the package itself."""
    parts = name.split(".")[1:]
    if parts[:2] == ["kvm", "arm64"]:
        return "kvm.arm64"
    return parts[0] if parts and parts[0] in RANK else None


def imports_of(path: Path) -> set[str]:
    """Every dotted name that a module imports, with relative imports resolved; imports under TYPE_CHECKING count too."""
    own = module_name(path).split(".")
    package = own[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            # `from trapline.kvm import arm64` names a module as much as `import trapline.kvm.arm64` does.
            names.update(".".join([*stem, alias.name]) for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_go_upwards_only(path: Path) -> None:
    name = module_name(path)
    if name in FACADE:
        return
    own = layer_of(name)
    assert own is not None, f"{name} is in no layer of the design"
    for imported in sorted(imports_of(path)):
        if not imported.startswith("trapline."):
            continue
        other = layer_of(imported)
        if other is not None:
            assert RANK[other] <= RANK[own], f"{name} (layer {own}) imports {imported} (layer {other}), which stands below it"


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(PACKAGE).parts[0] in ("kvm", "host")], ids=module_name)
def test_hypervisor_switches_tasks_only_through_sync(path: Path) -> None:
    forbidden = {name.split(".")[0] for name in imports_of(path)} & SWITCHING
    assert not forbidden, f"{module_name(path)} imports {', '.join(sorted(forbidden))}: go through trapline.sync"


def test_no_star_imports() -> None:
    stars = [module_name(p) for p in MODULES if any(name.endswith(".*") for name in imports_of(p))]
    assert not stars
