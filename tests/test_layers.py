"""Imports go down only.

The layers stand in `LAYERS`, top to bottom; a module may import from its own layer and from those below. Imports inside
functions count too: an upward import is no better for being late.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "alignkit"

LAYERS = [
    {"cli", "cli_rewards", "__main__", "pytest_plugin"},
    {"recipe", "run", "chat", "rating"},
    {"trainers", "held_out", "evaluation", "comparison", "report", "progress", "testing", "scaffold"},
    {"decoding", "metrics"},
    {"models", "data"},
    {"losses", "advantages", "importance", "diagnostics", "text"}
    | {"json_lines", "path_names", "registry", "compose", "foreign"},
    {"reward"},
    {"errors", "settings", "arguments", "search_options", "whole_files", "run_lock", "launcher", "console"},
]
DEPTH = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}

# `alignkit rewards list` answers at once because importing these loads nothing but the standard library.
QUICK = [
    *("reward", "settings", "registry", "compose", "foreign", "errors", "whole_files", "run_lock", "launcher"),
    *("scaffold", "search_options", "arguments", "cli", "cli_rewards"),
]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
# The public names load lazily: `from alignkit import PPOTrainer` is an import from alignkit.trainers.
HOMES = {
    ast.literal_eval(key): ast.literal_eval(value)
    for node in ast.parse(MODULES["alignkit"].read_text(encoding="utf-8")).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOME" and isinstance(node.value, ast.Dict)
    for key, value in zip(node.value.keys, node.value.values, strict=True)
}


def imported(node: ast.AST, module: str, is_package: bool) -> list[str]:
    """Full names of the modules that one statement or call imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            anchor = module.split(".") if is_package else module.split(".")[:-1]
            anchor = anchor[: len(anchor) - node.level + 1]
            source = ".".join([*anchor, source] if source else anchor)
        if source == "alignkit":
            targets = [f"alignkit.{HOMES.get(alias.name, alias.name)}" for alias in node.names]
            return [target if target in MODULES else "alignkit" for target in targets]  # or a plain name, __version__
        nested = [f"{source}.{alias.name}" for alias in node.names]
        return [name if name in MODULES else source for name in nested]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module" and node.args:
        target = node.args[0]
        if isinstance(target, ast.Constant) and isinstance(target.value, str):
            return [target.value]
    return []


def all_imports(module: str) -> list[tuple[int, str]]:
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.name == "__init__.py"
    return [(getattr(node, "lineno", 0), name) for node in ast.walk(tree) for name in imported(node, module, package)]


def load_time_imports(module: str) -> list[str]:
    """What importing the module imports: everything outside functions and `if TYPE_CHECKING`."""
    path = MODULES[module]
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                visit(other)
            return
        found.extend(imported(node, module, path.name == "__init__.py"))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def layer_faults(module: str) -> list[str]:
    own = module.split(".")[1]
    faults = []
    for line, name in all_imports(module):
        parts = name.split(".")
        if parts[0] != "alignkit" or len(parts) == 1:
            continue
        if parts[1] not in DEPTH:
            faults.append(f"{MODULES[module].name}:{line} imports {name}, which stands in no layer")
        elif DEPTH[parts[1]] < DEPTH[own]:
            faults.append(f"{module}:{line} imports {name}, which is a layer above it")
    return faults


def test_every_module_has_a_layer():
    homeless = sorted({name.split(".")[1] for name in MODULES if name != "alignkit"} - set(DEPTH))
    assert not homeless, f"put into LAYERS: {homeless}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "alignkit"])
def test_imports_go_down_only(module):
    assert layer_faults(module) == []


def test_the_lazy_names_point_at_modules_that_exist():
    missing = {name: home for name, home in HOMES.items() if f"alignkit.{home}" not in MODULES}
    assert not missing


@pytest.mark.parametrize("module", MODULES)
def test_alignkit_never_imports_its_rewards_package(module):
    """The registry finds the rewards by their entry points, as it finds a third party's."""
    assert [(line, name) for line, name in all_imports(module) if name.split(".")[0] == "alignkit_rewards"] == []


@pytest.mark.parametrize("module", QUICK)
def test_quick_modules_import_only_the_standard_library(module):
    seen: set[str] = set()
    queue = [f"alignkit.{module}"]
    heavy = []
    while queue:
        current = queue.pop()
        if current in seen:
            continue
        seen.add(current)
        # Importing a.b.c runs a and a.b first.
        queue.extend(current.rsplit(".", n)[0] for n in range(1, current.count(".") + 1))
        for name in load_time_imports(current):
            if name.split(".")[0] == "alignkit":
                queue.append(name)
            elif name.split(".")[0] not in sys.stdlib_module_names:
                heavy.append(f"{current} imports {name}")
    assert heavy == []


def test_importing_the_quick_modules_loads_no_heavy_library():
    """The same claim, asked of the interpreter."""
    imports = "; ".join(f"import alignkit.{module}" for module in QUICK)
    heavy = ["torch", "transformers", "trl", "datasets", "numpy", "pandas", "rich", "yaml"]
    probe = f"import sys; {imports}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_an_upward_import_is_noticed(monkeypatch, tmp_path):
    """The check itself can fail, also for imports inside functions and through the lazy names."""
    source = (
        "def late():\n    from alignkit import PPOTrainer\n    from ..models import tiny\n    import alignkit.errors\n"
    )
    guilty = tmp_path / "guilty.py"
    guilty.write_text(source)
    monkeypatch.setitem(MODULES, "alignkit.reward", guilty)
    faults = layer_faults("alignkit.reward")
    assert len(faults) == 1 and "alignkit.trainers.ppo" in faults[0]
    guilty.write_text("from .models import tiny\n")
    assert "alignkit.models" in layer_faults("alignkit.reward")[0]
    guilty.write_text("class Later:\n    import torch\n")
    assert load_time_imports("alignkit.reward") == ["torch"]
