"""Write one page of reference for each public module of a package, as far as they exist."""

import pkgutil
from pathlib import Path
from types import ModuleType

PAGE = """{title}
{line}

.. automodule:: {name}
   :members:
   :show-inheritance:
"""
TREE = """
.. toctree::
   :maxdepth: 1

"""


def write(package: ModuleType, folder: Path) -> None:
    """Write the pages, those of unchanged modules untouched, and remove those of modules gone."""
    names = [package.__name__, *_public_modules(package)]
    pages = {folder / f"{name}.rst": _page(package, name, names) for name in names}
    folder.mkdir(parents=True, exist_ok=True)
    for gone in set(folder.glob("*.rst")) - set(pages):
        gone.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _public_modules(package: ModuleType) -> list[str]:
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    return [m.name for m in found if not any(part.startswith("_") for part in m.name.split("."))]


def _page(package: ModuleType, name: str, names: list[str]) -> str:
    page = PAGE.format(title=name.replace("_", r"\_"), line="=" * (len(name) + 9), name=name)
    if name == package.__name__:
        page += _top_level(package)
    children = [child for child in names if child.rpartition(".")[0] == name]
    return page + (TREE + "".join(f"   {child}\n" for child in children) if children else "")


def _top_level(package: ModuleType) -> str:
    """Return the list of what the package re-exports, by the name it is documented under."""
    full = sorted(
        f"{value.__module__}.{name}"
        for name, value in vars(package).items()
        if not name.startswith("_") and hasattr(value, "__module__")
    )
    lines = "".join(f"- :py:obj:`~{name}`\n" for name in full)
    return f"\n.. rubric:: Names at the top of the package\n\n{lines}"
