"""Write the reference: a page for each public name, as users import it, and one for each package.

A name is public if it is in ``__all__``, or if a public module defines it or imports it as itself
(``import name as name``), or all names of another.
One that several packages offer has its page under the shortest path; the others point there.
"""

import ast
import importlib
import inspect
from pathlib import Path
from types import ModuleType

CLASS = """   :members:
   :show-inheritance:
"""
HEAD = """{title}
{line}

.. py:currentmodule:: {package}

"""
# In the order of the table of contents: what most people look for comes first.
PUBLIC = (
    "solvers", "estimators", "nn", "training", "merging", "testing", "plots", "completion",
    "parameterizations", "sets", "observations", "metrics", "tables", "linalg", "kernels", "errors",
)  # fmt: skip


def write(package: ModuleType, folder: Path) -> None:
    """Write the pages, those of unchanged names untouched, and remove those of names gone."""
    pages = {folder / f"{name}.rst": text for name, text in _pages(package).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for gone in set(folder.glob("*.rst")) - set(pages):
        gone.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def public_modules(package: ModuleType) -> list[ModuleType]:
    """Return the package and its public modules, in the order of the pages."""
    return [package, *(importlib.import_module(f"{package.__name__}.{name}") for name in PUBLIC)]


def public_names(module: ModuleType) -> list[str]:
    """Return the classes, functions and constants that a module offers, modules left out."""
    offered = getattr(module, "__all__", None) or _defined_or_passed_on(module)
    names = [
        n for n in offered if not n.startswith("_") and not inspect.ismodule(getattr(module, n))
    ]
    return sorted(names, key=str.casefold)


def _defined_or_passed_on(module: ModuleType) -> list[str]:
    names: list[str] = []
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            names.append(statement.name)
        if isinstance(statement, ast.ImportFrom):
            names += [alias.name for alias in statement.names if alias.asname == alias.name]
            if statement.names[0].name == "*" and statement.module is not None:
                names += public_names(importlib.import_module(statement.module))
    return names


def homes(package: ModuleType) -> dict[str, str]:
    """Return, for each public path, the path under which its object has its page."""
    first: dict[int, str] = {}
    paths: dict[str, str] = {}
    for module in public_modules(package):
        for name in public_names(module):
            path = f"{module.__name__}.{name}"
            paths[path] = first.setdefault(id(getattr(module, name)), path)
    return paths


def _pages(package: ModuleType) -> dict[str, str]:
    paths = homes(package)
    pages: dict[str, str] = {}
    for module in public_modules(package):
        pages[f"{module.__name__}-package"] = _package_page(module, paths)
        for name in public_names(module):
            path = f"{module.__name__}.{name}"
            if paths[path] == path:
                pages[path] = _name_page(module, name)
    return pages


def _package_page(module: ModuleType, paths: dict[str, str]) -> str:
    names = public_names(module)
    rows = [
        f"   * - :py:obj:`{name} <{paths[f'{module.__name__}.{name}']}>`\n"
        f"     - {_summary(getattr(module, name))}\n"
        for name in names
    ]
    own = [f"{module.__name__}.{name}" for name in names]
    tree = "".join(f"   {path}\n" for path in own if paths[path] == path)
    title = module.__name__.replace("_", r"\_")
    return (
        f"{title}\n{'=' * len(title)}\n\n.. automodule:: {module.__name__}\n   :no-members:\n\n"
        + (".. list-table::\n   :widths: 30 70\n\n" + "".join(rows) if rows else "")
        + (f"\n.. toctree::\n   :hidden:\n\n{tree}" if tree else "")
    )


def _name_page(module: ModuleType, name: str) -> str:
    value = getattr(module, name)
    path = f"{module.__name__}.{name}"
    title = path.replace("_", r"\_")
    head = HEAD.format(title=title, line="=" * len(title), package=module.__name__)
    if inspect.isclass(value) and _is_ours(value):
        return f"{head}.. autoclass:: {path}\n{CLASS}"
    if callable(value) and _is_ours(value):
        return f"{head}.. autofunction:: {path}\n"
    # What the library made nothing of, as an alias of a type, has the docstring of something else.
    return f"{head}.. py:data:: {path}\n   :value: {_value(value)}\n"


def _value(value: object) -> str:
    """Return a constant as it is read on a page: the names it holds, for a table of objects."""
    if isinstance(value, dict):
        return "{" + ", ".join(map(repr, value)) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(str(getattr(one, "name", one)) for one in value) + ")"
    return str(value)


def _summary(value: object) -> str:
    """Return the first sentence of a docstring, on one line."""
    if not _is_ours(value):
        return f"Constant or alias: ``{type(value).__name__}``."
    text = inspect.getdoc(value) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _is_ours(value: object) -> bool:
    return callable(value) and str(getattr(value, "__module__", "")).startswith("lowrank_opt")
