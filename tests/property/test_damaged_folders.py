"""Folders damaged in any way load what was saved, or raise and change nothing."""

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

import lowrank_opt as lo
from lowrank_opt.cli import main
from lowrank_opt.errors import DataError, LowRankError
from lowrank_opt.nn import adapt, load_adapter, save_adapter
from lowrank_opt.nn.adapters.weights import dropout_of

TENSORS, DESCRIPTION = "adapter.safetensors", "adapter.json"
X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(2, 6)


def base():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = (nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(3, 2))
        return nn.Sequential(*parts).double().eval()


def make(shape):
    return lo.NBLoRA(shape, 2, radius=0.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two folders of adapters of one model, and what the first computes."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("first", "second")):
        given = {"modules_to_train": "3", "dropout": 0.25, "name": name}
        model = adapt(base(), make, targets="0|2", **given)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in (p for p in model.parameters() if p.requires_grad):
                p.copy_(torch.randn(p.shape, generator=generator))
        save_adapter(model, folder / name)
        if name == "first":
            expected = model(X)
    return folder, expected


def seal(folder, tensors):
    """Write tensors, and a description that says they are the right ones."""
    safetensors.torch.save_file(tensors, folder / TENSORS)
    told = json.loads((folder / DESCRIPTION).read_text())
    told["sha256"] = hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()
    (folder / DESCRIPTION).write_text(json.dumps(told))


def cut(folder, draw):
    path = folder / draw(st.sampled_from([TENSORS, DESCRIPTION]))
    data = path.read_bytes()
    path.write_bytes(data[: draw(st.integers(0, len(data) - 1))])


def flip(folder, draw):
    path = folder / draw(st.sampled_from([TENSORS, DESCRIPTION]))
    data = bytearray(path.read_bytes())
    data[draw(st.integers(0, len(data) - 1))] ^= draw(st.integers(1, 255))
    path.write_bytes(bytes(data))


def lengthen(folder, draw):
    with (folder / draw(st.sampled_from([TENSORS, DESCRIPTION]))).open("ab") as file:
        file.write(draw(st.binary(min_size=1, max_size=9)))


def leaves(data, at=()):
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*at, key))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 10**9, 2**63, -(2**70), 1e308, 1e-320, 0.5]),
    st.sampled_from(["", "0.weight", "3.bias", "../../x", "torch.float64", "torch.load", "buffer"]),
    st.sampled_from([[], {}, [[]], {"class": "os.system"}, [10**8, 10], ["0.weight"] * 2]),
)


def describe_otherwise(folder, draw):
    told = json.loads((folder / DESCRIPTION).read_text())
    content = (way for way in leaves(told) if way[0] not in ("format", "version", "seal"))
    *way, last = draw(st.sampled_from(sorted(content, key=repr)))
    inner = told
    for key in way:
        inner = inner[key]
    before = copy.deepcopy(told)
    how = draw(st.sampled_from(["set", "drop", "double"]))
    if how == "set":
        inner[last] = draw(VALUES)
    elif how == "drop":
        del inner[last]
    elif isinstance(inner, list):
        inner.append(copy.deepcopy(inner[last]))
    else:
        inner[f"{last}2"] = inner[last]
    assume(told != before)
    (folder / DESCRIPTION).write_text(json.dumps(told))


def change_a_tensor(folder, draw):
    tensors = safetensors.torch.load_file(folder / TENSORS)
    key = draw(st.sampled_from(sorted(tensors)))
    x = tensors[key]
    change = draw(
        st.sampled_from(["nan", "inf", "shape", "flat", "kind", "drop", "more", "narrow", "name"])
    )
    if change in ("nan", "inf") and x.is_floating_point() and x.numel():
        x.view(-1)[0] = float(change)
    elif change == "shape":
        tensors[key] = x.new_zeros([n + 1 for n in x.shape])
    elif change == "flat":
        tensors[key] = x.flatten().clone()
    elif change == "kind":
        other = [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
        tensors[key] = x.to(
            draw(st.sampled_from(other[:2] if not x.is_floating_point() else other))
        )
    elif change == "drop":
        del tensors[key]
    elif change == "more":
        tensors[f"{key}/more"] = x.clone()
    elif change == "narrow" and x.is_floating_point():
        tensors[key] = x.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
    elif change == "name":
        tensors[draw(st.sampled_from(["x", "../x", f"trained/{key}", f"0{key}"]))] = tensors.pop(
            key
        )
    seal(folder, tensors)


def exchange_tensors(folder, draw):
    tensors = safetensors.torch.load_file(folder / TENSORS)
    one, two = draw(st.permutations(sorted(tensors)))[:2]
    tensors[one], tensors[two] = tensors[two], tensors[one]
    seal(folder, tensors)


def exchange_files(folder, draw):
    shutil.copy(folder.parent / "second" / draw(st.sampled_from([TENSORS, DESCRIPTION])), folder)


def add_files(folder, draw):
    name = draw(st.sampled_from([".hidden", "adapter.json.bak", "adapter_config.json", "sub/x"]))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(draw(st.binary(max_size=9)))


def link(folder, draw):
    path = folder / draw(st.sampled_from([TENSORS, DESCRIPTION]))
    moved = folder / "elsewhere"
    path.rename(moved)
    target = draw(st.sampled_from([moved, folder, folder / "nothing", path, Path("/dev/null")]))
    path.symlink_to(target)


def turn_into_a_folder(folder, draw):
    path = folder / draw(st.sampled_from([TENSORS, DESCRIPTION]))
    path.unlink()
    path.mkdir()


def turn_into_a_pipe(folder, draw):
    path = folder / draw(st.sampled_from([TENSORS, DESCRIPTION]))
    path.unlink()
    os.mkfifo(path)


DAMAGES = [
    cut, flip, lengthen, describe_otherwise, change_a_tensor, exchange_tensors, exchange_files,
    add_files, link, turn_into_a_folder, *([turn_into_a_pipe] if hasattr(os, "mkfifo") else []),
]  # fmt: skip


def state(model):
    return {**model.state_dict(), "y": model(X).detach()}, [type(m) for m in model.modules()]


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_folder_loads_equal_or_changes_nothing(damage, adapted, saved, capsys):
    folder, expected = saved

    @given(data=st.data())
    @settings(max_examples=12, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    def holds(data):
        with TemporaryDirectory(dir=folder) as place:
            path = Path(place) / "first"
            shutil.copytree(folder / "first", path)
            shutil.copytree(folder / "second", Path(place) / "second")
            damage(path, data.draw)
            model = base()
            if adapted:
                load_adapter(model, folder / "second", name="first")
            before, types = state(model)
            others = sorted(p.name for p in folder.iterdir())
            loaded = True
            try:
                load_adapter(model, path, name="first")
            except LowRankError:
                loaded = False
            if loaded:
                torch.testing.assert_close(expected, model(X), rtol=1e-4, atol=1e-6)
                assert dropout_of(model, "first") == 0.25
                assert damage is not describe_otherwise
            else:
                after, types_after = state(model)
                assert before.keys() == after.keys()
                assert all(torch.equal(x, after[key]) for key, x in before.items())
                assert types == types_after
            assert others == sorted(p.name for p in folder.iterdir())
            assert main(["inspect", str(path)]) in (0, 1, 2)

    holds()


def test_numbers_of_eight_bits_are_refused(saved, tmp_path):
    shutil.copytree(saved[0] / "first", tmp_path / "a")
    tensors = safetensors.torch.load_file(tmp_path / "a" / TENSORS)
    tensors["trained/3.bias"] = tensors["trained/3.bias"].to(torch.float8_e4m3fn)
    seal(tmp_path / "a", tensors)
    with pytest.raises(DataError, match=r"16 bits or more; trained/3.bias holds torch.float8_e4"):
        load_adapter(base(), tmp_path / "a")


@pytest.mark.parametrize("damage", [cut, turn_into_a_folder], ids=lambda f: f.__name__)
def test_inspect_says_that_a_folder_is_incomplete(damage, saved, capsys):
    folder, _ = saved

    @given(data=st.data())
    @settings(max_examples=8, deadline=None, database=None, derandomize=True)
    def holds(data):
        with TemporaryDirectory() as place:
            path = Path(place) / "first"
            shutil.copytree(folder / "first", path)
            damage(path, data.draw)
            assert main(["inspect", str(path)]) != 0

    holds()
