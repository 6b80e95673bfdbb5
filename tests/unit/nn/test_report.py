import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank_opt as lo
from lowrank_opt.errors import OptionError
from lowrank_opt.nn import adapt, adapter_report, merge, monitor, summary
from lowrank_opt.parameterizations.certificate import Certificate, certify
from tests.adapted import base_weight, member


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    adapt(model, lambda s: lo.NBLoRA(s, 2, radius=0.5), targets="0")
    adapt(model, lambda s: lo.Factored(s, 1), targets="1", name="free")
    for parameter in (p for p in model.parameters() if p.requires_grad):
        nn.init.normal_(parameter)
    return model


def test_report_gives_norms_and_drift_of_the_dense_update(model: nn.Module) -> None:
    site = adapter_report(model, "default")[0]
    W0, W = (
        base_weight(model[0]).detach(),
        member(model[0])().to_dense().detach(),
    )
    expected = [float(torch.linalg.matrix_norm(W, p)) for p in (2, "fro", "nuc")]
    assert expected == pytest.approx([site.spectral, site.frobenius, site.nuclear], rel=1e-5)
    assert float(W.norm() / W0.norm()) == pytest.approx(site.drift, rel=1e-5)
    assert ("0.weight", "spectral <= 0.5", True) == (site.name, site.bound, site.holds)


def test_drift_of_a_merged_model_is_against_the_base(model: nn.Module) -> None:
    expected = [site.drift for site in adapter_report(model)]
    merge(model)
    assert expected == pytest.approx([site.drift for site in adapter_report(model)])


def test_summary_lists_every_adapted_weight(model: nn.Module) -> None:
    lines = summary(model).splitlines()
    assert 4 == len(lines)
    assert ["0.weight", "default", "NBLoRA"] == lines[1].split()[:3]
    assert "none" in lines[2]
    assert lines[3].startswith("trainable: ")


def test_adapters_of_one_kind_are_factorized_together(model: nn.Module) -> None:
    many = nn.Sequential(*(nn.Linear(6, 5) for _ in range(4)))
    for name in ("a", "b", "c"):
        adapt(many, lambda s: lo.NBLoRA(s, 2, radius=0.5), targets=".*", name=name)
    for parameter in many.parameters():
        nn.init.normal_(parameter)
    calls: list[str] = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    with Counting():
        sites = adapter_report(many)
    assert (12, 1) == (len(sites), sum("linalg_svd" in call for call in calls))
    alone = [site for name in ("a", "b", "c") for site in adapter_report(many, name)]
    assert {(x.name, x.adapter, x.holds) for x in alone} == {
        (x.name, x.adapter, x.holds) for x in sites
    }


class Doubtful(lo.Factored):
    """Has a certificate of its own."""

    def certify(self, *, exact: bool = False) -> Certificate:
        return certify(self().detach(), lo.SchattenBall(2, 1e-9, 1))


def test_a_certificate_of_its_own_is_asked_of_a_map() -> None:
    model = adapt(nn.Linear(4, 3), lambda s: Doubtful(s, 1), targets=".*")
    nn.init.normal_(member(model).left)
    site = adapter_report(model)[0]
    assert (False, "Doubtful") == (site.holds, site.kind)
    assert "none" == site.bound


def test_monitor_logs_every_so_often(model: nn.Module) -> None:
    logged: list[int] = []
    after_step = monitor(model, lambda step, sites: logged.append(step + len(sites)), every=2)
    for _ in range(5):
        after_step()
    assert [4, 6] == logged
    with pytest.raises(OptionError, match="every must be at least 1"):
        monitor(model, lambda step, sites: None, every=0)


def test_base_on_the_meta_device_has_no_drift() -> None:
    model = nn.Linear(3, 3, device="meta")
    adapted = adapt(model, lambda s: lo.Factored(s, 1, device="cpu"), targets=".*")
    member(adapted).to_empty(device="cpu")
    for parameter in member(adapted).parameters():
        nn.init.zeros_(parameter)
    assert math.isnan(adapter_report(adapted)[0].drift)
