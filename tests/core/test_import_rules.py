"""Who may import whom, read from the sources; and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import edgecil

ROOT = Path(edgecil.__file__).parent.parent

# Lowest first; a module may import modules of its own layer and of those before it.
LAYERS = (
    ("edgecil._version", "edgecil.errors", "edgecil.spelling", "edgecil.options",
     "edgecil.settings", "edgecil.units", "edgecil.figures"),
    ("edgecil.memory",),
    ("edgecil.data", "edgecil.nets", "edgecil.losses", "edgecil.synthesis", "edgecil.exemplars",
     "edgecil.rankings", "edgecil.metrics"),
    ("edgecil.context", "edgecil.method"),
    ("edgecil.parts",),
    ("edgecil.methods", "edgecil.registry", "edgecil.cards"),
    ("edgecil.manifest", "edgecil.workspace"),
    ("edgecil.model",),
    ("edgecil.engine",),
    ("edgecil.versions", "edgecil.evaluation", "edgecil.exporting"),
    ("edgecil.learning",),
    ("edgecil.foreign", "edgecil.upkeep", "edgecil.doctor", "edgecil.reporting", "edgecil.bench",
     "edgecil.diagnosis"),
    ("edgecil.api",),
    ("edgecil", "edgecil.__main__"),
    ("edgecil.demo",),
    ("edgecil_cli",),
)  # fmt: skip


def sources(package: str) -> dict[str, Path]:
    """Return the files of a package by module name."""
    home = {"edgecil": ROOT, "edgecil_cli": ROOT / "cli", "edgecil_runtime": ROOT / "devices"}
    base = home[package]
    return {
        ".".join(p.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): p
        for p in (base / package).rglob("*.py")
    }


def is_typing(node: ast.AST) -> bool:
    """Return whether a statement is ``if TYPE_CHECKING``: nothing in it is imported."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(path: Path, module: str) -> set[str]:
    """Return the full names that a file imports anywhere, functions included."""
    found = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        node = stack.pop()
        if is_typing(node):
            stack += node.orelse  # type: ignore[attr-defined]
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}".rstrip(".")
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        stack += ast.iter_child_nodes(node)
    return found


def layer(module: str) -> int:
    """Return the number of the layer of a module, by its longest known prefix."""
    known = {name: n for n, names in enumerate(LAYERS) for name in names}
    parts = module.split(".")
    for size in range(len(parts), 1 if parts[0] == "edgecil" and len(parts) > 1 else 0, -1):
        if ".".join(parts[:size]) in known:
            return known[".".join(parts[:size])]
    raise AssertionError(f"{module} has no place in the layers: give it one")


EVERY = {**sources("edgecil"), **sources("edgecil_cli")}


def ours(path: Path, module: str) -> set[str]:
    """Return the modules of this project that a file imports."""
    return {name for name in imports(path, module) if name in EVERY}


@pytest.mark.parametrize("module", sorted(EVERY))
def test_nothing_imports_a_higher_layer(module):
    mine = layer(module)
    # The package itself is above everything, but holds the version for everybody.
    names = ours(EVERY[module], module) - {"edgecil", "edgecil_cli"}
    high = {name for name in names if layer(name) > mine}
    if module == "edgecil.registry":
        high -= {n for n in high if n.startswith("edgecil.methods.")}
    assert not high, f"{module} imports {sorted(high)}"


def test_methods_import_neither_the_engine_nor_each_other():
    methods = {m: p for m, p in EVERY.items() if m.startswith("edgecil.methods.")}
    assert len(methods) >= 8
    allowed = ("edgecil.context", "edgecil.method", "edgecil.parts", "edgecil.data",
               "edgecil.nets", "edgecil.losses", "edgecil.exemplars", "edgecil.rankings",
               "edgecil.synthesis", "edgecil.memory", "edgecil.errors", "edgecil.options",
               "edgecil.settings", "edgecil.units")  # fmt: skip
    for module, path in methods.items():
        for name in ours(path, module) - {"edgecil"}:
            assert any(name == a or name.startswith(a + ".") for a in allowed), f"{module}: {name}"


def test_the_engine_knows_no_method_and_no_workspace():
    for module, path in EVERY.items():
        if module.startswith("edgecil.engine"):
            for name in ours(path, module):
                assert not name.startswith(("edgecil.methods", "edgecil.workspace")), module


def test_the_device_runtime_needs_numpy_and_onnxruntime_alone():
    files = sources("edgecil_runtime")
    assert files
    extern = set()
    for module, path in files.items():
        tops = {name.partition(".")[0] for name in imports(path, module)}
        if module == "edgecil_runtime.signatures":
            tops.remove("cryptography")  # only where a signature is required
        extern |= tops - set(sys.stdlib_module_names) - {"edgecil_runtime"}
    assert extern <= {"numpy", "onnxruntime", "PIL"}


def test_the_library_does_not_import_its_command_line():
    for module, path in sources("edgecil").items():
        names = imports(path, module)
        if module != "edgecil.demo":
            assert not [n for n in names if n.partition(".")[0] in ("edgecil_cli", "typer", "rich")]


@pytest.mark.parametrize(
    "module",
    ["edgecil", "edgecil.registry", "edgecil.workspace", "edgecil.metrics",
     "edgecil.learning.request", "edgecil.errors", "edgecil.units", "edgecil.settings",
     "edgecil_runtime.container"],
)  # fmt: skip
def test_importing_it_loads_no_torch(module):
    code = (
        f"import sys, {module}; bad = {{'torch', 'onnx', 'onnxruntime', 'torchvision', 'PIL'}}; "
        "print(sorted(bad & set(sys.modules)))"
    )
    paths = ":".join(str(p) for p in (ROOT, ROOT / "devices"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": paths, "PATH": "/usr/bin"},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_listing_methods_and_their_summaries_loads_no_torch():
    code = (
        "import sys; from edgecil import registry; m = registry.methods(); "
        "assert m['lwm'].summary.startswith('Learning without memorizing'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_public_names():
    names = {"__version__", "evaluate", "export", "init", "learn", "predict", "report_memory"}
    assert set(edgecil.__all__) == names
    from edgecil import api

    for name in names - {"__version__"}:
        assert getattr(edgecil, name) is getattr(api, name)
        assert f"edgecil.{name}" in (edgecil.__doc__ or "") or name == "predict"
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = edgecil.train


def test_using_a_subpackage_does_not_hide_a_public_function():
    code = (
        "import edgecil, edgecil.exporting, edgecil.evaluation, edgecil.learning.run; "
        "print(all(callable(getattr(edgecil, n)) for n in edgecil.__all__ if n[0] != '_'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
