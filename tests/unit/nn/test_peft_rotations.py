"""Rotations of PEFT: its formulas, as its layers compute them, against the imported map."""

import json

import pytest
import safetensors.torch
import torch
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import OptionError, TargetError
from lowrank_opt.nn import (
    adapt,
    export_peft,
    import_peft,
    inspect_adapter,
    peft_residuals,
    save_adapter,
)
from lowrank_opt.nn.adapters.weights import adapted_weights
from lowrank_opt.parameterizations.published.peft_psoft import psoft_frames
from lowrank_opt.parameterizations.published.peft_rotations import to_peft_rotation

WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def normal(*shape, size=0.3):
    g = torch.Generator().manual_seed(2)
    return size * torch.randn(*shape, generator=g, dtype=torch.float64)


def skew(entries, b=4):
    """Entries above the diagonal, row by row."""
    Q = torch.zeros(len(entries), b, b, dtype=torch.float64)
    for block, values in zip(Q, entries, strict=True):
        block[tuple(torch.triu_indices(b, b, 1))] = values
    return Q - Q.mT


def outputs(module):
    return X @ (WEIGHT + module().detach().to_dense()).mT


@pytest.mark.parametrize("blocks", [2, 1])
def test_exact_oft_is_met(blocks):
    entries = normal(blocks, 6)
    Q, eye = skew(entries).expand(2, -1, -1), torch.eye(4, dtype=torch.float64)
    R = (eye - Q) @ torch.linalg.inv(eye + Q)
    rotated = torch.einsum("nkr,krc->nkc", X.view(5, 2, 4), R).reshape(5, 8)
    module, distance = lo.from_peft_rotation(WEIGHT, "OFT", {"oft_R.weight": entries})
    torch.testing.assert_close(outputs(module), rotated @ WEIGHT.mT, rtol=0, atol=1e-12)
    assert distance < 1e-14


@pytest.mark.parametrize("size", [0.01, 0.1])
def test_series_of_oft_is_left_by_as_much_as_it_says(size):
    entries = normal(2, 6, size=size)
    Q, eye = skew(entries), torch.eye(4, dtype=torch.float64)
    R = eye + 2 * Q + 2 * Q @ Q + 2 * Q @ Q @ Q + Q @ Q @ Q @ Q
    rotated = torch.einsum("nkr,krc->nkc", X.view(5, 2, 4), R).reshape(5, 8)
    module, distance = lo.from_peft_rotation(
        WEIGHT, "OFT", {"oft_R.weight": entries}, series_terms=5
    )
    missed = torch.linalg.matrix_norm(outputs(module) - rotated @ WEIGHT.mT)
    assert float(missed) <= distance * float(X.norm() * torch.linalg.matrix_norm(WEIGHT, 2))
    # The truncated series is (I - Q^4) times a rotation.
    largest = float(torch.linalg.matrix_norm(Q, 2).amax())
    assert distance == pytest.approx(largest**4, rel=1e-6)


def test_boft_of_one_factor_is_met():
    factors = normal(1, 2, 4, 4)
    Q = (factors[0] - factors[0].mT) / 2
    eye = torch.eye(4, dtype=torch.float64)
    R = torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q)))
    module, _ = lo.from_peft_rotation(
        WEIGHT, "BOFT", {"boft_R": factors, "boft_s": torch.ones(6, 1)}
    )
    torch.testing.assert_close(outputs(module), X @ (R @ WEIGHT.mT), rtol=0, atol=1e-12)


def test_butterflies_are_met():
    """Two factors of blocks of four: halves of the two blocks change places between them."""
    factors = normal(2, 2, 4, 4)
    eye, order = torch.eye(4, dtype=torch.float64), [0, 1, 4, 5, 2, 3, 6, 7]
    mats = []
    for given in factors:
        Q = (given - given.mT) / 2
        mats.append(torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q))))
    P = torch.eye(8, dtype=torch.float64)[order]
    R = P @ mats[1] @ P.mT @ mats[0]
    module, distance = lo.from_peft_rotation(WEIGHT, "BOFT", {"boft_R": factors})
    torch.testing.assert_close(outputs(module), X @ R @ WEIGHT.mT, rtol=0, atol=1e-12)
    assert distance < 1e-13


def test_constraint_scales_large_blocks_down():
    entries = torch.stack([normal(6), 1e-3 * normal(6)])
    Q, eye = skew(entries), torch.eye(4, dtype=torch.float64)
    Q[0] *= 0.1 / 2**0.5 / torch.linalg.matrix_norm(Q[0])
    R = torch.block_diag(*((eye - Q) @ torch.linalg.inv(eye + Q)))
    module, _ = lo.from_peft_rotation(WEIGHT, "OFT", {"oft_R.weight": entries}, constraint=0.1)
    torch.testing.assert_close(outputs(module), X @ R @ WEIGHT.mT, rtol=0, atol=1e-12)


def test_scales_are_refused():
    tensors = {"boft_R": normal(1, 2, 4, 4), "boft_s": 2 * torch.ones(6, 1)}
    with pytest.raises(TargetError, match="rows that are scaled are no rotation"):
        lo.from_peft_rotation(WEIGHT, "BOFT", tensors)


@pytest.mark.parametrize("u", [torch.ones(8, 3), torch.ones(8, 8), torch.zeros(8, 2)])
def test_reflections_without_a_pair_are_refused(u):
    with pytest.raises(TargetError, match="reflections are imported in pairs"):
        lo.from_peft_rotation(WEIGHT, "HRA", {"hra_u": u})


@pytest.mark.parametrize("gram_schmidt", [False, True])
def test_hra_is_met(gram_schmidt):
    u, R = normal(8, 4), torch.eye(8, dtype=torch.float64)
    columns = list(u.mT)
    for i, column in enumerate(columns):
        for earlier in columns[:i] if gram_schmidt else ():
            column = column - (earlier @ column) * earlier
        columns[i] = column / column.norm()
        R = R @ (torch.eye(8) - 2 * torch.outer(columns[i], columns[i]))
    module, _ = lo.from_peft_rotation(WEIGHT, "HRA", {"hra_u": u}, gram_schmidt=gram_schmidt)
    torch.testing.assert_close(outputs(module), X @ (WEIGHT @ R).mT, rtol=0, atol=1e-12)


def psoft_tensors(*vectors):
    names = {f"psoft_R.vector_{x}": 1 + normal(3) for x in vectors}
    return {"psoft_R.weight": normal(3), **names}


@pytest.mark.parametrize("vectors", ["", "a", "ab"])
@pytest.mark.parametrize("frame", ["right", "balanced"])
@pytest.mark.parametrize("series", [None, 4])
def test_psoft_is_met(vectors, frame, series):
    """B (diag(b) R diag(a) - I) A between the leading singular vectors, R above the diagonal."""
    tensors, frames = psoft_tensors(*vectors), psoft_frames(WEIGHT, 3, frame)
    (Q,), eye = skew(tensors["psoft_R.weight"][None], 3), torch.eye(3, dtype=torch.float64)
    R = (eye + Q) @ torch.linalg.inv(eye - Q)
    if series is not None:
        U, _, Vh = torch.linalg.svd(eye + 2 * Q + 2 * Q @ Q + Q @ Q @ Q)
        R = U @ Vh
    a, b = (tensors.get(f"psoft_R.vector_{x}", torch.ones(3)) for x in "ab")
    B, A = (x.double() for x in frames)
    module, distance = lo.from_peft_rotation(
        WEIGHT, "PSOFT", tensors, series_terms=series, frames=frames
    )
    expected = B @ (b[:, None] * R * a - eye) @ A.mT
    torch.testing.assert_close(module().detach().to_dense(), expected, rtol=0, atol=1e-5)
    assert (distance > 0) == (series is not None)
    assert isinstance(module, lo.Orthogonal) == (not vectors and frame == "right")


KINDS = {
    "OFT": lambda: {"oft_R.weight": normal(2, 6).float()},
    "BOFT": lambda: {"boft_R": boft(1), "boft_s": torch.ones(6, 1)},
    "BOFT of two factors": lambda: {"boft_R": boft(2), "boft_s": torch.ones(6, 1)},
    "HRA": lambda: {"hra_u": normal(8, 4).float()},
    "PSOFT": lambda: {k: x.float() for k, x in psoft_tensors().items()},
    "PSOFT with vectors": lambda: {k: x.float() for k, x in psoft_tensors("a", "b").items()},
}


def boft(factors):
    given = normal(factors, 2, 4, 4).float()
    return given - given.mT


@pytest.mark.parametrize("name", KINDS)
def test_tensors_come_back_bit_by_bit(name):
    tensors = KINDS[name]()
    module, distance = lo.from_peft_rotation(WEIGHT.float(), name.split()[0], tensors)
    again = to_peft_rotation(module, name.split()[0])
    assert tensors.keys() == again.keys()
    assert all(torch.equal(x, again[key]) for key, x in tensors.items())
    assert 0.0 == distance


MADE = {
    "oft": lambda W: lo.oft(W, blocks=2),
    "oft of a radius": lambda W: lo.oft(W, blocks=2, radius=0.5),
    "oft by the exponential": lambda W: lo.oft(W, map="exponential"),
    "boft": lambda W: lo.boft(W, blocks=2, stages=2, butterfly="halves"),
    "boft of pairs": lambda W: lo.boft(W, blocks=4, stages=3),
    "boft of one factor": lambda W: lo.oft(W, blocks=4),
    "hra": lambda W: lo.hra(W, 4),
    "psoft": lambda W: lo.psoft(W, 3),
    "psoft with scales": lambda W: lo.psoft(W, 3, scales=True, frame="balanced"),
    "psoft of a radius": lambda W: lo.psoft(W, 4, radius=1.0),
}


def turned_model(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 6))
    model = adapt(model, lambda shape, weight: make(weight), targets="0|3")
    for p in model.parameters():
        nn.init.normal_(p, mean=float(p.detach().mean()), std=0.4) if p.requires_grad else None
    return model


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 6))


@pytest.mark.parametrize("name", MADE)
def test_folders_go_out_and_come_back(name, tmp_path):
    model, x = turned_model(MADE[name]), X.float()
    sites = export_peft(model, tmp_path / "a", method=name.split()[0])
    assert ["0", "3"] == [site.name for site in sites]
    again = import_peft(base(), tmp_path / "a")
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=2e-6)
    for site in peft_residuals(again, tmp_path / "a"):
        dense = again.get_submodule(site.name).weight - base().get_submodule(site.name).weight
        assert float(dense.norm()) == pytest.approx(site.norm, rel=1e-5)
        assert site.relative < 1e-5
    export_peft(again, tmp_path / "b", method=name.split()[0])
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("oft", "hra", "PEFT's HRA has rotations of its own form; got a Orthogonal"),
        ("hra", "oft", "that of HRA"),
        ("psoft with scales", "boft", "that of PSOFT"),
        ("boft", "oft", "that of BOFT"),
    ],
)
def test_rotations_of_another_form_are_refused(name, method, message, tmp_path):
    with pytest.raises(TargetError, match=message):
        export_peft(turned_model(MADE[name]), tmp_path / "a", method=method)
    assert not (tmp_path / "a").exists()


def test_strides_of_wider_blocks_have_no_form_of_peft(tmp_path):
    W = torch.randn(6, 27)
    with pytest.raises(TargetError, match="that of no method of PEFT"):
        to_peft_rotation(lo.boft(W, blocks=9, stages=2), "BOFT")


def test_additive_maps_are_no_rotations(tmp_path):
    model = adapt(base(), lambda shape: lo.Factored(shape, 2), targets="0")
    with pytest.raises(TargetError, match="0 has a Factored: export it as LoRA"):
        export_peft(model, tmp_path, method="oft")
    with pytest.raises(OptionError, match="method must be one of"):
        export_peft(model, tmp_path, method="vera")


def test_layers_share_what_peft_says_once(tmp_path):
    make = lambda shape, weight: lo.oft(weight, blocks=2)  # noqa: E731
    model = adapt(base(), make, targets="0|2")
    assert export_peft(model, tmp_path, method="oft")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (2, 0, False) == (config["r"], config["oft_block_size"], config["use_cayley_neumann"])
    export_peft(model, tmp_path, method="boft")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (2, 0) == (config["boft_block_num"], config["boft_block_size"])
    make = lambda shape, weight: lo.oft(weight, blocks=shape[0] // 2 - 1)  # noqa: E731
    model = adapt(base(), make, targets="0|2")
    with pytest.raises(TargetError, match="one oft_block_size or r for all layers"):
        export_peft(model, tmp_path, method="oft")


def test_frames_of_another_weight_are_refused():
    module = lo.psoft(WEIGHT.float(), 3)
    with torch.no_grad():
        module.weight.copy_(normal(6, 8))
    with pytest.raises(TargetError, match="takes the frames of PSOFT from the weight"):
        to_peft_rotation(module, "PSOFT")


def test_signs_of_frames_are_those_of_peft():
    """A frame with other signs is the same update: what is written stands in PEFT's."""
    module = lo.psoft(WEIGHT, 3, scales=True)
    sign = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(1 + normal(*p.shape))
        expected = module().to_dense()
        module.outer.mul_(sign)
        module.inner.mul_(sign)
        S = torch.zeros(3, 3, dtype=torch.float64)
        S[tuple(torch.tril_indices(3, 3, -1))] = module.skew
        module.skew.copy_((sign[:, None] * S * sign)[tuple(torch.tril_indices(3, 3, -1))])
    again, _ = lo.from_peft_rotation(WEIGHT, "PSOFT", to_peft_rotation(module, "PSOFT"))
    torch.testing.assert_close(again().detach().to_dense(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MADE)
def test_folders_say_how_far_rotations_are_from_the_identity(name, tmp_path):
    model = turned_model(MADE[name])
    (member,) = (x.updates[0] for x in adapted_weights(model) if x.slot.layer.name == "0")
    export_peft(model, tmp_path / "peft", method=name.split()[0])
    save_adapter(model, tmp_path / "own")
    found = (inspect_adapter(tmp_path / x) for x in ("peft", "own"))
    theirs, own = (next(s.bound for s in x if s.name.startswith("0")) for x in found)
    if isinstance(member, lo.ScaledRotation):
        core = float(torch.linalg.matrix_norm(member.core().detach(), 2))
        assert (f"|R - I| = {core:.3g}", "needs the base weight") == (theirs, own)
        return
    limit = "" if member.radius is None else f" <= {member.radius:g}"
    assert f"|R - I| = {member.distance():.3g}" == theirs
    assert f"{theirs}{limit}" == own


def test_zero_reflections_are_written_as_what_they_do(tmp_path):
    module = lo.hra(WEIGHT, 4)
    with torch.no_grad():
        module.vectors.copy_(normal(8, 4))
        module.vectors[:, 1] = 0
    again, _ = lo.from_peft_rotation(WEIGHT, "HRA", to_peft_rotation(module, "HRA"))
    torch.testing.assert_close(outputs(again), outputs(module), rtol=0, atol=1e-12)


def test_scales_of_rows_go_out_as_boft(tmp_path):
    tensors = {"boft_R": boft(1), "boft_s": 1 + 0.2 * normal(6, 1).float()}
    config = {"peft_type": "BOFT", "boft_block_size": 4, "boft_n_butterfly_factor": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    named = {f"base_model.model.0.{key}": x.clone() for key, x in tensors.items()}
    safetensors.torch.save_file(named, tmp_path / "adapter_model.safetensors")
    model = import_peft(base(), tmp_path)
    export_peft(model, tmp_path / "again", method="boft")
    again = safetensors.torch.load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert torch.equal(tensors["boft_R"], again["base_model.model.0.boft_R"])
    torch.testing.assert_close(again["base_model.model.0.boft_s"], tensors["boft_s"])
    with pytest.raises(TargetError, match="PEFT's OFT has no magnitudes"):
        export_peft(model, tmp_path / "oft", method="oft")


CONFIGS = {
    "OFT": {"oft_block_size": 4, "use_cayley_neumann": False},
    "BOFT": {"boft_block_size": 4, "boft_n_butterfly_factor": 1},
    "HRA": {"r": 4},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_biases_go_out_with_their_rotation(kind, tmp_path):
    bias = {"peft_type": kind, "bias": f"{kind.lower()}_only"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIGS[kind] | bias))
    tensors = {f"base_model.model.0.{key}": x.clone() for key, x in KINDS[kind]().items()}
    tensors["base_model.model.0.base_layer.bias"] = normal(6).float()
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    model = import_peft(base(), tmp_path)
    export_peft(model, tmp_path / "again", method=kind.lower())
    again = safetensors.torch.load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert tensors.keys() == again.keys()
    assert all(torch.equal(x, again[key]) for key, x in tensors.items())
    written = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert bias["bias"] == written["bias"]
    assert written["modules_to_save"] is None


def test_free_matrices_of_psoft_are_refused(tmp_path):
    config = {"peft_type": "PSOFT", "r": 3, "psoft_orth": False}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"base_model.model.0.psoft_R.weight": torch.eye(3)}
    safetensors.torch.save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(TargetError, match="its matrix is free"):
        import_peft(base(), tmp_path)
