"""Whether `module:object` can be imported, found out without importing torch.

`alignkit rewards list` shows broken plugins and must answer at once. So a module's source is read first: a missing
file, a syntax error, a name that is not there and an import that nothing satisfies show without running it. If nothing
heavy is imported on the way, the module is then imported for real, which shows everything else.
"""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path


def quick_fault(target: str) -> str | None:
    """What is wrong with `module:object`, as far as it shows without importing a heavy library; None if nothing is."""
    module, _, name = target.partition(":")
    try:
        path = _source(module)
        if path is None:
            if not _exists(module):
                return f"ModuleNotFoundError: no module named '{module}'"
            return None
        names, wildcard = _top_level(path)
        attribute = name.split(".")[0].split(" ")[0]
        if attribute and attribute not in names and not wildcard:
            return f"AttributeError: module '{module}' has no '{attribute}'"
        missing = _missing(module, frozenset())
        if missing:
            return f"ModuleNotFoundError: no module named '{missing}'"
    except SyntaxError as error:
        return f"SyntaxError: {error}"
    if not _light(module, module.split(".")[0], set()):
        return None
    try:
        found = importlib.import_module(module)
        for part in filter(None, name.split(" ")[0].split(".")):
            found = getattr(found, part)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _exists(module: str) -> bool:
    top = module.split(".")[0]
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False


def _source(module: str) -> Path | None:
    """The `.py` file of a module, found without importing its parents."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder).joinpath(*rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _top_level(path: Path) -> tuple[set[str], bool]:
    """Names that a module binds outside functions and classes, and whether it may bind others at run time."""
    names: set[str] = set()
    wildcard = False
    for node in _outside_functions(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            wildcard = wildcard or node.name == "__getattr__"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                wildcard = wildcard or alias.name == "*"
                names.add((alias.asname or alias.name).split(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("globals", "setattr", "exec"):
            wildcard = True
    return names, wildcard


def _outside_functions(tree: ast.AST) -> list[ast.AST]:
    found = []
    queue: list[ast.AST] = list(ast.iter_child_nodes(tree))
    while queue:
        node = queue.pop()
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            queue.extend(ast.iter_child_nodes(node))
    return found


def _imports(module: str) -> list[str]:
    """Modules that importing `module` imports, those inside `try` left out: their absence may be provided for."""
    path = _source(module)
    if path is None:
        return []
    guarded = {
        id(inner) for node in ast.walk(_tree(path)) if isinstance(node, ast.Try | ast.If) for inner in ast.walk(node)
    }
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = []
    for node in _outside_functions(_tree(path)):
        if id(node) in guarded:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*parents, *([node.module] if node.module else [])])
            else:
                source = node.module or ""
            found.append(source)
            # `from package import module` names a module only where there is one.
            found += [f"{source}.{alias.name}" for alias in node.names if _source(f"{source}.{alias.name}")]
    parents = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
    return list(dict.fromkeys([*parents, *found]))


def _own(module: str, top: str) -> bool:
    return module.split(".")[0] in (top, "alignkit")


def _missing(module: str, seen: frozenset[str]) -> str | None:
    """The first module that is imported, directly or by the plugin's own modules, and does not exist."""
    top = module.split(".")[0]
    for name in _imports(module):
        if name in seen or name in sys.modules:
            continue
        if not _exists(name) or (name.split(".")[0] == top and _source(name) is None and "." in name):
            return name
        if name.split(".")[0] == top:
            deeper = _missing(name, seen | {module, name})
            if deeper:
                return deeper
    return None


def _light(module: str, top: str, seen: set[str]) -> bool:
    """Whether importing it imports only the standard library, alignkit's light modules and the plugin's own."""
    if module in seen:
        return True
    seen.add(module)
    path = _source(module)
    if path is None:
        return False
    guarded = any(isinstance(node, ast.Try | ast.If) for node in _outside_functions(_tree(path)))
    if guarded and not _guards_are_light(path):
        return False
    for name in _imports(module):
        if name in sys.modules or name.split(".")[0] in sys.stdlib_module_names:
            continue
        if not _own(name, top) or not _light(name, top, seen):
            return False
    return True


def _guards_are_light(path: Path) -> bool:
    """Whether imports inside `try` and `if` stay within the standard library, or are for type checkers only."""
    for node in _outside_functions(_tree(path)):
        if not isinstance(node, ast.Try | ast.If):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        for inner in ast.walk(node):
            names = [alias.name for alias in inner.names] if isinstance(inner, ast.Import) else []
            names += [inner.module or ""] if isinstance(inner, ast.ImportFrom) else []
            if any(name.split(".")[0] not in sys.stdlib_module_names for name in names):
                return False
    return True
