"""Whether `module:object` can be imported, found out without importing torch.

`alignkit rewards list` shows broken plugins and must answer at once. So a module's source is read first: a missing
file, a syntax error, a name that is not there and an import that nothing satisfies show without running it. If nothing
heavy is imported on the way, the module is then imported for real, which shows everything else.
"""

import ast
import importlib
import importlib.util
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass
class _Facts:
    """What the source of one module shows.

    Attributes:
        names: bound outside functions and classes.
        open_ended: it may bind others when it runs.
        imports: (module, level, names) of each import that is always executed.
        conditional: modules imported inside `try` or `if`, those for type checkers left out.
        summaries: first lines of the docstrings of its functions and classes.
    """

    names: set[str] = field(default_factory=set)
    open_ended: bool = False
    imports: list[tuple[str, int, list[str]]] = field(default_factory=list)
    conditional: list[str] = field(default_factory=list)
    summaries: dict[str, str] = field(default_factory=dict)


class Survey:
    """Reads the sources of plugins, each file once."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}
        self._sources: dict[str, Path | None] = {}
        self._facts: dict[Path, _Facts] = {}

    def fault(self, target: str) -> str | None:
        """What is wrong with `module:object`, as far as it shows without importing a heavy library; None if nothing."""
        module, _, name = target.partition(":")
        path = [part for part in name.split(" ")[0].split(".") if part]
        try:
            source = self.source(module)
            if source is None:
                # Compiled or bundled modules have no source to read.
                return None if self._top(module) else f"ModuleNotFoundError: no module named '{module}'"
            facts = self.facts(source)
            if path and path[0] not in facts.names and not facts.open_ended:
                return f"AttributeError: module '{module}' has no '{path[0]}'"
            missing = self._missing(module, {module})
            if missing:
                return f"ModuleNotFoundError: no module named '{missing}'"
        except SyntaxError as error:
            return f"SyntaxError: {error}"
        if not self._light(module, module.split(".")[0], set()):
            return None
        try:
            found = importlib.import_module(module)
            for part in path:
                found = getattr(found, part)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None

    def summary(self, target: str) -> str | None:
        """The first line of the docstring of `module:object`, read from its source; None where that has none."""
        module, _, name = target.partition(":")
        source = self.source(module)
        return self.facts(source).summaries.get(name) if source else None

    def _top(self, module: str) -> ModuleSpec | None:
        name = module.split(".")[0]
        if name not in self._specs:
            try:
                self._specs[name] = importlib.util.find_spec(name)
            except (ImportError, ValueError):
                self._specs[name] = getattr(sys.modules.get(name), "__spec__", None)
        return self._specs[name]

    def source(self, module: str) -> Path | None:
        """The `.py` file of a module, found without importing its parents."""
        if module not in self._sources:
            self._sources[module] = self._find(module)
        return self._sources[module]

    def _find(self, module: str) -> Path | None:
        _, *rest = module.split(".")
        spec = self._top(module)
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

    def facts(self, path: Path) -> _Facts:
        """What a source file shows; SyntaxError if it does not compile."""
        if path not in self._facts:
            self._facts[path] = _read(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        return self._facts[path]

    def _imports(self, module: str) -> list[str]:
        """Modules that importing `module` always imports, its parents first."""
        source = self.source(module)
        if source is None:
            return []
        package = (module if source.name == "__init__.py" else module.rpartition(".")[0]).split(".")
        found = [module.rsplit(".", n)[0] for n in range(1, module.count(".") + 1)]
        for name, level, aliases in self.facts(source).imports:
            if level:
                name = ".".join([*package[: len(package) - level + 1], *([name] if name else [])])
            found.append(name)
            # `from package import thing` names a module only where there is one.
            if self._own(name, module.split(".")[0]):
                found += [f"{name}.{alias}" for alias in aliases if self.source(f"{name}.{alias}")]
        return list(dict.fromkeys(found))

    @staticmethod
    def _own(module: str, top: str) -> bool:
        return module.split(".")[0] in (top, "alignkit")

    def _missing(self, module: str, seen: set[str]) -> str | None:
        """The first module that does not exist of those that it, or the plugin's own modules, always import."""
        top = module.split(".")[0]
        for name in self._imports(module):
            if name in seen or name in sys.modules:
                continue
            seen.add(name)
            own = name.split(".")[0] == top
            if not self._top(name) or (own and "." in name and self.source(name) is None):
                return name
            deeper = self._missing(name, seen) if own else None
            if deeper:
                return deeper
        return None

    def _light(self, module: str, top: str, seen: set[str]) -> bool:
        """Whether importing it imports only the standard library, alignkit's light modules and the plugin's own."""
        if module in seen:
            return True
        seen.add(module)
        source = self.source(module)
        if source is None:
            return False
        if any(name.split(".")[0] not in sys.stdlib_module_names for name in self.facts(source).conditional):
            return False
        for name in self._imports(module):
            if name in sys.modules or name.split(".")[0] in sys.stdlib_module_names:
                continue
            if not self._own(name, top) or not self._light(name, top, seen):
                return False
        return True


def _read(tree: ast.Module) -> _Facts:
    facts = _Facts()
    queue: list[tuple[ast.AST, bool]] = [(node, False) for node in tree.body]
    while queue:
        node, conditional = queue.pop()
        modules: list[tuple[str, int, list[str]]]
        if isinstance(node, ast.Import):
            modules = [(alias.name, 0, []) for alias in node.names]
            facts.names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = [(node.module or "", node.level, [alias.name for alias in node.names])]
            facts.names |= {alias.asname or alias.name for alias in node.names}
            facts.open_ended = facts.open_ended or "*" in facts.names
        else:
            modules = []
        if conditional:
            facts.conditional += [name for name, level, _ in modules if not level]
        else:
            facts.imports += modules
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            facts.names.add(node.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("globals", "setattr", "exec"):
            facts.open_ended = True
        if isinstance(node, _FUNCTIONS):
            if not isinstance(node, ast.Lambda):
                facts.names.add(node.name)
                facts.open_ended = facts.open_ended or node.name == "__getattr__"
                facts.summaries[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        inside = conditional or isinstance(node, ast.Try | ast.If)
        queue.extend((child, inside) for child in ast.iter_child_nodes(node))
    return facts
