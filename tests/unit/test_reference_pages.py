"""The reference shows each public name once, under the path that users import it by."""

import importlib.util
import pkgutil
from pathlib import Path
from types import ModuleType

import lowrank_opt
from tests.preloaded import ROOT

# Rooms that users do not import from.
INTERNAL = {
    "check_certificate", "checks", "cli", "combination", "distributed", "extras", "files",
    "locks",
    "operator", "proofs", "sparse",
}  # fmt: skip


def reference_pages() -> ModuleType:
    path = ROOT / "docs" / "reference_pages.py"
    spec = importlib.util.spec_from_file_location("reference_pages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_room_is_public_or_known_to_be_internal() -> None:
    found = {m.name for m in pkgutil.iter_modules(lowrank_opt.__path__)}
    public = set(reference_pages().PUBLIC)
    assert found - public - {name for name in found if name.startswith("_")} == INTERNAL


def test_a_name_has_its_page_where_it_is_imported_from() -> None:
    homes = reference_pages().homes(lowrank_opt)
    assert homes["lowrank_opt.complete"] == "lowrank_opt.complete"
    assert homes["lowrank_opt.completion.complete"] == "lowrank_opt.complete"
    assert homes["lowrank_opt.parameterizations.NBLoRA"] == "lowrank_opt.NBLoRA"
    assert homes["lowrank_opt.nn.adapt"] == "lowrank_opt.nn.adapt"
    assert homes["lowrank_opt.solvers.ALS"] == "lowrank_opt.solvers.ALS"
    assert set(homes.values()) <= set(homes)


def test_pages_of_names_that_are_gone_are_removed(tmp_path: Path) -> None:
    pages = reference_pages()
    gone, kept = tmp_path / "lowrank_opt.Gone.rst", tmp_path / "lowrank_opt.complete.rst"
    gone.write_text("old", encoding="utf-8")
    pages.write(lowrank_opt, tmp_path)
    assert not gone.exists()
    assert "autofunction:: lowrank_opt.complete" in kept.read_text(encoding="utf-8")
    assert (tmp_path / "lowrank_opt-package.rst").is_file()
