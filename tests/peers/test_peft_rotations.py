"""Folders of OFT, BOFT and HRA that PEFT has written: its own outputs against the imported ones."""

import peft
import pytest
import torch
from peft.tuners.boft import layer as boft_layer
from torch import nn

import lowrank_opt as lo
from lowrank_opt.errors import DataError, NotInSetError, TargetError
from lowrank_opt.nn import (
    adapt,
    export_peft,
    import_peft,
    load_adapter,
    merge,
    peft_residuals,
    save_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(3, 4, 9, 9, generator=torch.Generator().manual_seed(5))
# Of the largest change of an output, in float32: PEFT multiplies the weight, we the activations.
ROUNDING = 2e-5


class Net(nn.Module):
    """Convolutions of both kinds, linear layers, and one that is trained whole."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 12, 3, padding=1, stride=2)
        self.one = nn.Conv2d(12, 16, 1)
        self.lin = nn.Linear(16, 12)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 6)

    def forward(self, x):
        x = self.one(torch.relu(self.conv(x)))
        return self.head(self.norm(self.lin(torch.relu(x).mean((2, 3)))))


def base():
    torch.manual_seed(3)
    return Net()


def outputs(model):
    with torch.no_grad():
        return model.eval()(X)


ALL = ["conv", "one", "lin"]
FLAT = ["one", "lin"]
CONFIGS = {
    "oft": lambda: peft.OFTConfig(
        r=0, oft_block_size=4, target_modules=FLAT, use_cayley_neumann=False, bias="oft_only"
    ),
    "oft shared": lambda: peft.OFTConfig(
        r=2, oft_block_size=0, target_modules=FLAT, use_cayley_neumann=False, block_share=True
    ),
    "coft": lambda: peft.OFTConfig(
        r=2, oft_block_size=0, target_modules=FLAT, use_cayley_neumann=False, coft=True, eps=0.3
    ),
    "boft": lambda: peft.BOFTConfig(
        boft_block_size=4, target_modules=ALL, modules_to_save=["norm"], bias="boft_only"
    ),
    "boft, linear": lambda: peft.BOFTConfig(
        boft_block_size=0, boft_block_num=2, target_modules=["head", "lin"]
    ),
    "psoft": lambda: peft.PsoftConfig(r=4, psoft_alpha=8, target_modules=["lin"]),
    "psoft, balanced": lambda: peft.PsoftConfig(
        r=4, target_modules=["lin"], ab_svd_init="pissa_init", psoft_mag_b=False
    ),
    "psoft, without vectors": lambda: peft.PsoftConfig(
        r=4, target_modules=["lin"], psoft_mag_b=False, psoft_mag_a=False, psoft_svd="lowrank"
    ),
    "hra": lambda: peft.HRAConfig(r=4, target_modules=ALL, modules_to_save=["norm"]),
    "hra, orthogonal": lambda: peft.HRAConfig(r=4, target_modules=ALL, apply_GS=True),
}


def trained(config, folder):
    """Train with PEFT for a few steps and write the folder; return its outputs."""
    torch.manual_seed(0)
    model = peft.get_peft_model(base(), config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        nn.init.normal_(p, std=0.2) if p.ndim < 2 or p.shape[-1] > 1 else None
    optimizer = torch.optim.Adam(parameters, 3e-2)
    for _ in range(6):
        optimizer.zero_grad()
        (model(X) - 1).square().sum().backward()
        optimizer.step()
    expected = outputs(model)
    model.save_pretrained(folder)
    # Constrained blocks are cut back in the forward pass, not after the step.
    return outputs(peft.PeftModel.from_pretrained(base(), folder)), expected


def difference(got, expected):
    """Return how far two outputs are, in units of what the adapter changes."""
    change = float((expected - outputs(base())).abs().max())
    assert change > 1e-3
    return float((got - expected).abs().max()) / change


@pytest.mark.parametrize("name", CONFIGS)
def test_folder_computes_what_peft_does(name, tmp_path):
    expected, _ = trained(CONFIGS[name](), tmp_path)
    model = import_peft(base(), tmp_path)
    assert difference(outputs(model), expected) < ROUNDING


@pytest.mark.parametrize("name", ["oft", "hra"])
def test_imported_folder_merges_saves_and_has_no_residual(name, tmp_path):
    expected, _ = trained(CONFIGS[name](), tmp_path / "peft")
    model = import_peft(base(), tmp_path / "peft")
    assert max(x.relative for x in peft_residuals(model, tmp_path / "peft")) < 1e-6
    save_adapter(model, tmp_path / "own")
    assert difference(outputs(load_adapter(base(), tmp_path / "own")), expected) < ROUNDING
    merge(model)
    assert difference(outputs(model), expected) < ROUNDING


# Whose numbers are exactly those of a rotation.
WRITTEN = {
    "boft, linear": "boft",
    "hra": "hra",
    "psoft": "psoft",
    "psoft, balanced": "psoft",
    "oft": "oft",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_folder_goes_out_as_it_came(name, tmp_path):
    """PEFT computes with the folder that is written what it did with its own, to the last bit."""
    expected, _ = trained(CONFIGS[name](), tmp_path / "theirs")
    model = import_peft(base(), tmp_path / "theirs")
    export_peft(model, tmp_path / "ours", method=WRITTEN[name])
    again = peft.PeftModel.from_pretrained(base(), tmp_path / "ours")
    theirs, ours = (peft.utils.load_peft_weights(str(tmp_path / x)) for x in ("theirs", "ours"))
    if name in ("oft", "hra", "psoft"):
        assert torch.equal(expected, outputs(again))
        assert all(torch.equal(x, ours[key]) for key, x in theirs.items())
    # Of the others PEFT rounds otherwise: scales of rows, frames divided by the root of a scaling.
    assert difference(outputs(again), expected) < ROUNDING


MADE = {
    "oft": lambda W: lo.oft(W, blocks=4, radius=0.7),
    "boft": lambda W: lo.oft(W, blocks=2, map="exponential"),
    "hra": lambda W: lo.hra(W, 4),
    "psoft": lambda W: lo.psoft(W, 4, radius=1.0),
}


@pytest.mark.parametrize("method", MADE)
def test_peft_computes_what_our_rotations_do(method, tmp_path):
    model = adapt(base(), lambda shape, weight: MADE[method](weight), targets="lin|head")
    for p in model.parameters():
        nn.init.normal_(p, std=0.5) if p.requires_grad else None
    export_peft(model, tmp_path, method=method)
    again = peft.PeftModel.from_pretrained(base(), tmp_path)
    assert difference(outputs(again), outputs(model)) < ROUNDING


def test_series_is_taken_on_demand_and_says_how_far_it_was(tmp_path):
    config = peft.OFTConfig(
        r=0, oft_block_size=4, target_modules=FLAT, use_cayley_neumann=True, init_weights=False
    )
    expected, _ = trained(config, tmp_path)
    with pytest.raises(NotInSetError, match="sums a truncated series"):
        import_peft(base(), tmp_path)
    model = import_peft(base(), tmp_path, project=True)
    far = max(x.relative for x in peft_residuals(model, tmp_path))
    assert far > 1e-4
    exact = import_peft(base(), tmp_path, make=lambda shape: lo.Factored(shape, min(shape)))
    assert difference(outputs(exact), expected) < ROUNDING
    assert difference(outputs(model), expected) > 1e-4


def test_bounded_maps_take_rotations(tmp_path):
    expected, _ = trained(CONFIGS["hra"](), tmp_path)
    make = lambda shape: lo.NBLoRA(shape, 4, radius=20.0)  # noqa: E731
    assert difference(outputs(import_peft(base(), tmp_path, make=make)), expected) < 1e-3
    with pytest.raises(NotInSetError):
        import_peft(base(), tmp_path, make=lambda shape: lo.NBLoRA(shape, 4, radius=0.1))


class BlockDiagonal:
    """PEFT's kernel for several factors, which needs CUDA, in plain torch."""

    @staticmethod
    def apply(blocks):
        return torch.stack([torch.block_diag(*x) for x in blocks])


@pytest.mark.parametrize(("size", "factors"), [(4, 2), (4, 3), (2, 3), (8, 2)])
def test_butterflies_are_those_of_peft(size, factors, tmp_path, monkeypatch):
    monkeypatch.setattr(boft_layer, "get_fbd_cuda", lambda: True)
    monkeypatch.setattr(boft_layer, "FastBlockDiag", BlockDiagonal)
    config = peft.BOFTConfig(
        boft_block_size=size, boft_n_butterfly_factor=factors, target_modules=["lin"]
    )
    expected, _ = trained(config, tmp_path)
    tensors = peft.utils.load_peft_weights(str(tmp_path))
    assert factors == len(next(x for key, x in tensors.items() if "boft_R" in key))
    assert difference(outputs(import_peft(base(), tmp_path)), expected) < ROUNDING


REFUSED = {
    "adds overlapping patches": lambda: peft.OFTConfig(
        r=0, oft_block_size=4, target_modules=["conv"], use_cayley_neumann=False
    ),
    "imported in pairs": lambda: peft.HRAConfig(r=3, target_modules=["lin"]),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_rotation_of_the_weight_is_refused_by_name(message, tmp_path):
    trained(REFUSED[message](), tmp_path)
    model = base()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    with pytest.raises(TargetError, match=message):
        import_peft(model, tmp_path)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in after)


def test_oft_of_a_wider_kernel_changes_the_layer_at_its_start():
    """Why it is refused: PEFT sums overlapping patches, at R = I too."""
    model = peft.get_peft_model(base(), REFUSED["adds overlapping patches"]())
    assert float((outputs(model) - outputs(base())).abs().max()) > 0.1


def test_unknown_fields_are_refused(tmp_path):
    trained(CONFIGS["hra"](), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace('"apply_GS": false', '"apply_QR": true'))
    with pytest.raises(DataError, match="apply_QR=True"):
        import_peft(base(), tmp_path)


@pytest.mark.parametrize(("frame", "start"), [("right", "psoft_init"), ("balanced", "pissa_init")])
def test_psoft_with_scales_is_that_of_peft(frame, start):
    config = peft.PsoftConfig(r=4, psoft_alpha=8, target_modules=["lin"], ab_svd_init=start)
    torch.manual_seed(0)
    model = peft.get_peft_model(base(), config)
    layer = model.base_model.model.lin
    for p in layer.psoft_R.parameters():
        nn.init.normal_(p, mean=float(p.mean()), std=0.3)
    turn = layer.psoft_R["default"]
    weight = base().lin.weight.detach()
    own = lo.psoft(weight, 4, scales=True, frame=frame)
    skew = -turn._skew_symmetric().detach()
    # Signs of singular vectors: the frames of both, in which R stands.
    A, B = (x.detach() for x in layer._get_psoft_ab_cache_buffers("default"))
    with torch.no_grad():
        own.skew.copy_(skew[tuple(torch.tril_indices(4, 4, -1))])
        own.before.copy_(turn.vector_a)
        own.after.copy_(turn.vector_b)
        own.outer.copy_(layer.scaling["default"] * B)
        own.inner.copy_(A.mT)
    torch.testing.assert_close(
        B @ A * 2,
        lo.psoft(weight, 4, scales=True, frame=frame).outer
        @ lo.psoft(weight, 4, scales=True, frame=frame).inner.mT,
    )
    expected = layer.get_delta_weight("default").detach()
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(own().detach().to_dense(), expected, rtol=1e-4, atol=1e-5)
