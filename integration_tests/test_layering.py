"""Who imports whom (architecture: descriptions below catalogue below adapters; plugins never each other)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "src" / "graftwork"
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
# what each low module of the core may import from the core; adapters, cli and testing may import anything
ALLOWED = {
    "spec": set(),
    "hookspecs": {"spec"},
    "discovery": set(),
    "catalog": {"spec", "assembly", "discovery"},
    "assembly": {"spec", "hookspecs", "catalog", "discovery", "__version__"},
    "backends": {"spec", "catalog", "extension"},
    "extension": {"extension"},
    "report": set(),
    "bench": {"report", "contributed"},
    "demo": {"report", "bench", "contributed"},
    "contributed": {"catalog", "discovery"},
    "classify": set(),
}
ADAPTERS = {"timm", "mmengine", "nerfstudio", "registry", "cli", "doctor", "runner", "testing"}
FOR_PLUGINS = {"extension", "backends", "spec", "hookspecs", "catalog", "bench", "demo", "classify", "report"}


def imports(path: Path) -> set[str]:
    """Return the dotted names a file imports, type-checking blocks excluded."""
    found: set[str] = set()
    for node in ast.walk(_without_type_checking(ast.parse(path.read_text(encoding="utf-8")))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _without_type_checking(tree: ast.Module) -> ast.Module:
    class Remove(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if guarded else self.generic_visit(node)

    return Remove().visit(tree)


def from_core(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("graftwork.")}


@pytest.mark.parametrize("module", sorted(ALLOWED))
def test_low_modules_of_the_core_do_not_import_upwards(module):
    files = (
        [CORE / f"{module}.py"] if (CORE / f"{module}.py").exists() else sorted((CORE / module).rglob("*.py"))
    )
    assert files, f"{module} has moved; adapt this test"
    for file in files:
        assert from_core(file) <= ALLOWED[module], file.name


def test_the_core_names_no_plugin():
    slugs = {path.name.replace("-", "_") for path in PLUGINS}
    for file in CORE.rglob("*.py"):
        named = {name.partition(".")[0] for name in imports(file)} & {f"graftwork_{slug}" for slug in slugs}
        assert not named, f"{file.relative_to(ROOT)} imports {named}"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_plugins_import_neither_each_other_nor_an_adapter(plugin):
    own = f"graftwork_{plugin.name.replace('-', '_')}"
    for file in (plugin / "src").rglob("*.py"):
        names = imports(file)
        others = {name for name in names if name.startswith("graftwork_") and name.partition(".")[0] != own}
        assert not others, f"{file.relative_to(ROOT)} imports {others}"
        if plugin.name == "autoload":  # starting the adapter is all it is for
            continue
        core = {name.split(".")[1] for name in names if name.startswith("graftwork.")}
        if file.name == "config.py":  # a scene's configuration calls the nerfstudio adapter's `specification`
            core -= {"nerfstudio"}
        assert not core & ADAPTERS, f"{file.relative_to(ROOT)} imports {core & ADAPTERS}"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda path: path.name)
def test_describing_methods_needs_the_standard_library_and_graftwork_only(plugin):
    import sys

    for file in (plugin / "src").glob("*/plugin.py"):
        own = file.parent.name
        roots = {name.partition(".")[0] for name in imports(file)}
        assert roots <= set(sys.stdlib_module_names) | {"graftwork", own, "__future__"}, file


def test_source_names_no_path_of_a_machine():
    for file in [
        *ROOT.glob("src/**/*.py"),
        *ROOT.glob("plugins/*/src/**/*.py"),
        *ROOT.glob("plugins/*/README.md"),
    ]:
        text = file.read_text(encoding="utf-8")
        assert "/home/" not in text and "/root/" not in text and "/work/" not in text, file
