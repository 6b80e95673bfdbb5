"""Modules that pytest collects start nothing when they are imported."""

import ast

from tests.test_architecture import PACKAGES, ROOT

# What a file that is collected may not do when it is imported: it would be done while pytest looks
# for examples, in the process of all tests.
STARTS = {"fork", "Popen", "spawn", "kill", "_exit", "init_process_group", "main"}


def started_on_import(text: str) -> set[str]:
    """Return what a module's own lines start, those under ``__name__`` left out."""
    lines = [
        node
        for node in ast.parse(text).body
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
    ]
    calls = [x.func for node in lines for x in ast.walk(node) if isinstance(x, ast.Call)]
    names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
    return names & STARTS


def test_nothing_starts_when_it_is_imported() -> None:
    files = [path for folder in ("tests", *PACKAGES) for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): started_on_import(path.read_text()) for path in files}
    assert {} == {name: starts for name, starts in found.items() if starts}
    assert {"fork"} == started_on_import(
        "import os\ntry:\n    child = os.fork()\nfinally:\n    pass"
    )
    assert set() == started_on_import("if __name__ == '__main__':\n    main()")
