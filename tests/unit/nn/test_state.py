import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, NotInSetError, ShapeError, TargetError
from lowrank_opt.nn import (
    AdapterStateError,
    adapt,
    combine,
    export_peft,
    inspect_adapter,
    load_adapter,
    merge,
    save_adapter,
)
from lowrank_opt.parameterizations.catalog import examples
from lowrank_opt.parameterizations.example import Example
from tests.adapted import member
from tests.preloaded import run_script

UPDATES = [
    *(e for e in examples() if e.listed and not e.name.startswith("WeightDecomposed")),
    Example("DenseCore", lambda shape, rank, dtype: lo.DenseCore(shape, dtype=dtype)),
]
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


def nb_lora(shape: tuple[int, int]) -> lo.NBLoRA:
    return lo.NBLoRA(shape, 2, radius=0.5)


def trained(make: object = nb_lora, **options: object) -> nn.Module:
    model = adapt(plain(), make, targets="all-linear", **options)
    torch.manual_seed(5)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("example", UPDATES, ids=lambda example: example.name)
def test_round_trip_of_every_parameterization(example: Example, tmp_path: Path) -> None:
    model = trained(partial(example.make, rank=1, dtype=torch.float32))
    assert not torch.allclose(plain()(X), model(X))
    save_adapter(model, tmp_path / "adapter")
    assert torch.equal(model(X), load_adapter(plain(), tmp_path / "adapter")(X))


def test_round_trip_in_another_process(tmp_path: Path) -> None:
    model = trained()
    save_adapter(model, tmp_path / "adapter")
    torch.save((plain().state_dict(), X), tmp_path / "base.pt")
    script = tmp_path / "load.py"
    script.write_text(f"""
import torch
from torch import nn
from lowrank_opt.nn import load_adapter
from tests.adapted import member
weights, x = torch.load({str(tmp_path / "base.pt")!r})
model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()
model.load_state_dict(weights)
torch.save(load_adapter(model, {str(tmp_path / "adapter")!r})(x), {str(tmp_path / "y.pt")!r})
""")
    run_script(script, folder=tmp_path).check_returncode()
    torch.testing.assert_close(model(X), torch.load(tmp_path / "y.pt"))


def test_trained_modules_travel_with_the_adapter(tmp_path: Path) -> None:
    model = trained(modules_to_train=["1"])
    model.train()(X)
    model.eval()
    save_adapter(model, tmp_path)
    loaded = load_adapter(plain(), tmp_path)
    assert torch.equal(model(X), loaded(X))
    assert loaded[1].weight.requires_grad


def test_tied_adapter_is_saved_once(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False))
        model[1].weight = model[0].weight
        return model

    model = adapt(tied(), lambda s: lo.Factored(s, 2, scaling=3.0), targets="0")
    nn.init.normal_(member(model[0]).left)
    save_adapter(model, tmp_path)
    loaded = load_adapter(tied(), tmp_path)
    indices = torch.tensor([1, 8])
    assert torch.equal(model(indices), loaded(indices))
    assert member(loaded[0]) is member(loaded[1])


def test_merged_model_is_saved_too(tmp_path: Path) -> None:
    model = trained()
    expected = model(X)
    merge(model)
    save_adapter(model, tmp_path)
    torch.testing.assert_close(expected, load_adapter(plain(), tmp_path)(X))


def test_combination_is_saved_by_name(tmp_path: Path) -> None:
    model = trained()
    combine(model, {"default": 0.5}, name="half")
    with pytest.raises(AdapterStateError, match=r"several adapters; the model has \['default'"):
        save_adapter(model, tmp_path)
    save_adapter(model, tmp_path, name="half")
    torch.testing.assert_close(model(X), load_adapter(plain(), tmp_path)(X))


def test_file_is_loaded_into_the_present_adapter(tmp_path: Path) -> None:
    model, other = trained(), adapt(plain(), nb_lora, targets="all-linear")
    parameters = list(other.parameters())
    save_adapter(model, tmp_path)
    load_adapter(other, tmp_path)
    assert torch.equal(model(X), other(X))
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))


def test_adapter_loads_on_a_meta_model_and_in_half_precision(tmp_path: Path) -> None:
    model = trained()
    save_adapter(model, tmp_path)
    empty = load_adapter(plain().to("meta"), tmp_path)
    assert not any(p.is_meta for p in member(empty[0]).parameters())
    base = {k: v for k, v in model.state_dict().items() if "adapters" not in k}
    empty.load_state_dict(base, strict=False, assign=True)
    assert torch.equal(model(X), empty(X))
    half = load_adapter(plain().bfloat16(), tmp_path)
    assert torch.bfloat16 == half(X.bfloat16()).dtype


class Halved(lo.Parameterization):
    """Of one's own, with an option, and a set that `factors` can break."""

    def __init__(self, shape: tuple[int, int], radius: float) -> None:
        super().__init__(shape, 1)
        self.radius = radius
        self.left = nn.Parameter(torch.zeros(shape[0], 1))

    @property
    def feasible_set(self) -> lo.SchattenBall:
        return lo.SchattenBall(2, self.radius, 1)

    def factors(self) -> lo.LowRankOperator:
        one = self.left.new_ones(self.shape[1], 1)
        return lo.LowRankOperator(self.left / 2, self.left.new_ones(1), one)


def test_parameterization_of_ones_own_is_loaded_where_its_class_is_known(tmp_path: Path) -> None:
    model = trained(partial(Halved, radius=100.0))
    save_adapter(model, tmp_path)
    assert torch.equal(model(X), load_adapter(plain(), tmp_path)(X))
    file = tmp_path / "adapter.json"
    file.write_text(file.read_text().replace("test_state.Halved", "elsewhere.Halved"))
    with pytest.raises(TargetError, match=r"known to the program; got .*elsewhere.Halved.*make="):
        load_adapter(plain(), tmp_path)


class Forgetful(Halved):
    """Holds its option under another name, so that a file cannot tell it."""

    def __init__(self, shape: tuple[int, int], size: float) -> None:
        super().__init__(shape, size)


def test_parameterization_that_forgets_its_options_needs_make(tmp_path: Path) -> None:
    make = partial(Forgetful, size=100.0)
    model = trained(make)
    save_adapter(model, tmp_path)
    with pytest.raises(TargetError, match=r"hold its options; .*Forgetful.*or pass make="):
        load_adapter(plain(), tmp_path)
    assert torch.equal(model(X), load_adapter(plain(), tmp_path, make=make)(X))


def test_adapter_outside_its_declared_set_is_refused(tmp_path: Path) -> None:
    save_adapter(trained(partial(Halved, radius=1e-3)), tmp_path)
    base = plain()
    with pytest.raises(NotInSetError, match="must be inside the set declared for it"):
        load_adapter(base, tmp_path, make=partial(Halved, radius=1e-3))
    assert nn.Linear is type(base[0])


def edit(folder: Path, **changes: object) -> None:
    file = folder / "adapter.json"
    description = json.loads(file.read_text())
    site = description["sites"][0]
    for key, value in changes.items():
        target = {"options": site["members"][0], "site": site, "shape": site}.get(key, description)
        target[key] = {**target[key], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"options": {"radius": 0.01}}, NotInSetError, "norm that was recorded"),
        ({"shape": [6, 6]}, ShapeError, r"must have the shape of the file, \[6, 6\]"),
        ({"site": "7.weight"}, DataError, r"tied to one with an update; got \['7.weight'\]"),
        ({"version": 3}, DataError, "version 3: use the release"),
        ({"format": "x"}, DataError, "another format"),
        ({"sites": 3}, DataError, "is damaged"),
        (
            {"trained": [{"places": ["9.weight"], "kind": "parameter", "norm": 1.0}]},
            DataError,
            "trained tensors missing",
        ),
    ],
)
def test_edited_description_is_refused(
    change: dict, error: type, message: str, tmp_path: Path
) -> None:
    save_adapter(trained(), tmp_path)
    edit(tmp_path, **change)
    base = plain()
    with pytest.raises(error, match=message):
        load_adapter(base, tmp_path)
    assert nn.Linear is type(base[0])


NEVER_WRITTEN = [
    {"dropout": 1.5}, {"dropout": "half"}, {"adapter": 3}, {"tied_to": None},
    {"frobenius_norms": []}, {"members": [], "frobenius_norms": []}, {"magnitude": "diagonals"},
    {"shape": [5]}, {"shape": [5, True]}, {"settled": [-1]}, {"settled": [1, 1]}, {"base": []},
    {"base": [{"weight": {"dtype": "torch.load", "print": [1, 2]}}]},
]  # fmt: skip


@pytest.mark.parametrize("change", NEVER_WRITTEN, ids=str)
def test_what_no_save_has_written_is_refused_without_a_seal(change: dict, tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    file = tmp_path / "adapter.json"
    told = json.loads(file.read_text())
    # Folders of before have none of these.
    del told["seal"], told["dtypes"]
    file.write_text(json.dumps(told))
    load_adapter(plain(), tmp_path)
    for key, value in change.items():
        (told if key in told else told["sites"][0])[key] = value
    file.write_text(json.dumps(told))
    base = plain()
    with pytest.raises(DataError, match="is damaged"):
        load_adapter(base, tmp_path)
    assert nn.Linear is type(base[0])


@pytest.mark.parametrize("what", ["description", "dtypes"])
def test_a_folder_is_as_it_was_written_in_each_part(what: str, tmp_path: Path) -> None:
    save_adapter(trained(modules_to_train="1"), tmp_path)
    load_adapter(plain(), tmp_path)
    if what == "description":
        # Nothing else tells of it.
        file = tmp_path / "adapter.json"
        told = json.loads(file.read_text())
        told["sites"][0]["layer"] = "another.Layer"
        file.write_text(json.dumps(told))
    else:
        rewritten(tmp_path, lambda t: t.update({(k := "trained/1.weight"): t[k].double()}))
    base = plain()
    with pytest.raises(DataError, match="description or the dtypes were changed after saving"):
        load_adapter(base, tmp_path)
    assert nn.Linear is type(base[0])


def test_truncated_tensors_are_refused(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match="truncated, changed, or of another save"):
        load_adapter(plain(), tmp_path)


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is a folder with adapter\.json"):
        load_adapter(plain(), tmp_path / "nowhere")


def test_another_method_is_refused(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    other = adapt(plain(), lambda s: lo.NBLoRA(s, 2, radius=0.1), targets="all-linear")
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(TargetError, match="must be of the method of 'default'"):
        load_adapter(other, tmp_path)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in before.items())


def test_other_sites_are_listed(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    other = adapt(plain(), nb_lora, targets="0")
    with pytest.raises(DataError, match=r"unexpected in the file: \['2.weight'\]"):
        load_adapter(other, tmp_path)


def test_other_shape_is_refused(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    with pytest.raises(ShapeError, match=r"0\.weight must have the shape of the file, \[5, 6\]"):
        load_adapter(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), tmp_path)


@pytest.mark.parametrize("name", ["file", "file/x", "a" * 300, "x\0", "loop/x"])
@pytest.mark.parametrize("write", [save_adapter, export_peft])
def test_folder_that_cannot_be_made_is_refused(write, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="written to a folder"):
        write(trained(), tmp_path / name)
    assert ["file", "loop"] == sorted(p.name for p in tmp_path.iterdir())


def test_nothing_is_pickled_and_nothing_temporary_stays(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    assert ["adapter.json", "adapter.safetensors"] == sorted(p.name for p in tmp_path.iterdir())
    assert b"pickle" not in (tmp_path / "adapter.safetensors").read_bytes()


def rewritten(folder: Path, change: object) -> None:
    """Change the tensors of a folder and let its description tell of them."""
    file = folder / "adapter.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    edit(folder, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


HEAD, FACTOR = "trained/2.weight", "0.weight/0/left_rows"
DAMAGES = {
    "head gone": (lambda t: t.pop(HEAD), DataError, "trained tensors missing"),
    "factor gone": (lambda t: t.pop(FACTOR), DataError, r"missing in the file: \['left_rows'\]"),
    "one more": (lambda t: t.update(more=torch.ones(1)), DataError, r"unexpected.*\['more'\]"),
    "nan": (lambda t: t[FACTOR].fill_(torch.nan), DataError, "must be finite"),
    "infinity": (lambda t: t[HEAD].fill_(torch.inf), DataError, "must be finite; 2.weight is not"),
    "scaled head": (lambda t: t[HEAD].mul_(2), DataError, "must have the norm that was recorded"),
    "scaled factor": (lambda t: t[FACTOR].mul_(2), NotInSetError, "norm that was recorded"),
    "integers": (lambda t: t.update({FACTOR: t[FACTOR].int()}), DataError, "must hold torch.float"),
    "flat": (lambda t: t.update({FACTOR: t[FACTOR].flatten()}), ShapeError, "must have shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", ["load", "inspect"])
def test_damaged_tensors_are_refused(damage: str, read: str, tmp_path: Path) -> None:
    change, error, message = DAMAGES[damage]
    model = adapt(plain(), nb_lora, targets="0", modules_to_train="2")
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path)
    rewritten(tmp_path, change)
    base = plain()
    with pytest.raises(error, match=message):
        load_adapter(base, tmp_path) if read == "load" else inspect_adapter(tmp_path)
    assert nn.Linear is type(base[0])


@pytest.mark.parametrize("sites", [[{}], [1], "x", [{"members": [1]}], []])
def test_description_of_another_form_is_refused(sites: object, tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    edit(tmp_path, sites=sites)
    with pytest.raises(DataError, match=r"is damaged|must have an update"):
        inspect_adapter(tmp_path)


def test_nothing_larger_than_the_file_is_made(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path)
    file = tmp_path / "adapter.json"
    description = json.loads(file.read_text())
    site = description["sites"][0]
    site["shape"] = site["members"][0]["shape"] = site["members"][0]["options"]["shape"] = [
        10**8,
        6,
    ]
    file.write_text(json.dumps(description))
    with pytest.raises(DataError, match="must not claim more than its file holds"):
        inspect_adapter(tmp_path)


def test_digest_is_no_path(tmp_path: Path) -> None:
    folder, victim = tmp_path / "adapter", tmp_path / "victim"
    save_adapter(trained(), folder)
    victim.write_text("kept")
    edit(folder, sha256="x/../../victim")
    with pytest.raises(DataError, match="has no digest of its tensors"):
        load_adapter(plain(), folder)
    save_adapter(trained(), folder)
    assert "kept" == victim.read_text()
    load_adapter(plain(), folder)
