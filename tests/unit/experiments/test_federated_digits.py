"""The federated experiment in small."""

import math

import pytest
import torch

from experiments.federated_digits import RULES, best_rate, run
from experiments.federated_task import (
    DOMAINS,
    Federation,
    Rule,
    disguised,
    federation,
    of_one_domain,
)
from experiments.private_averages import run as private_run


def test_domains_are_six_views_of_the_same_digits() -> None:
    image = torch.arange(64.0).view(1, 8, 8) / 64
    views = torch.stack([disguised(image, k) for k in range(len(DOMAINS))])
    assert (6, 1, 64) == views.shape
    assert 6 == len(torch.unique(views, dim=0))
    assert torch.equal(image.flatten(1), disguised(disguised(image, 1).view(1, 8, 8), 1))


def test_parts_of_the_data_do_not_overlap() -> None:
    task = federation(0)
    counts = [task.held_out[name][0].shape[1] for name in ("validation", "test")]
    assert [200, 1797 - 900 - 400 - 200] == counts
    mine = {tuple(x.tolist()) for x in task.images[0]}
    assert mine.isdisjoint(tuple(x.tolist()) for x in task.held_out["test"][0][0])


def test_digits_of_all_clients_are_dealt_anew_in_one_domain() -> None:
    """As many, with their labels, each as that domain shows it; blurred ones stay blurred."""
    six, one = federation(0), of_one_domain(0, 300, "turned")
    assert (300, 3, 64) == one.images.shape
    assert torch.equal(six.labels.flatten(), one.labels.flatten())
    view = DOMAINS.index("turned")
    assert torch.equal(six.images[view], one.images.view(6, 150, 64)[view])
    upright = disguised(six.images[0].view(-1, 8, 8), view)
    assert torch.equal(upright, one.images.view(6, 150, 64)[0])


@pytest.mark.parametrize("mechanism", ["dense", "ffa"])
def test_private_averages_move_the_model_and_cut_what_is_large(mechanism) -> None:
    small, large = (private_run(mechanism, 1e6, radius, 0, 1) for radius in (1e-6, 8.0))
    assert (1.0, 0.0) == (small.cut, large.cut)
    assert small.before == pytest.approx(small.test)
    assert large.test > large.before + 2


def test_clients_get_the_gradients_of_their_own_losses() -> None:
    together, alone = (Federation(federation(0), 0) for _ in range(2))
    batch = torch.randint(150, (6, 32), generator=torch.Generator().manual_seed(1000))
    together.generator.manual_seed(1000)
    together.train(1, 0.1, frozen_right=False)
    task, k = alone.task, 3
    left = {i: alone.left[i][k].clone().requires_grad_() for i in alone.left}
    x = task.images[k, batch[k]]
    for i, weight in enumerate(task.weights):
        x = x @ (weight + left[i] @ alone.right[i][k].mT).mT + task.biases[i]
        x = x.relu() if i < 2 else x
    torch.nn.functional.cross_entropy(x, task.labels[k, batch[k]]).backward()
    gradients = [x.grad for x in left.values() if x.grad is not None]
    # The gradients of right factors are zero at the start, where left factors are.
    norm = torch.stack([g.norm() for g in gradients]).norm()
    assert norm > 1
    assert torch.allclose(-0.1 * gradients[0] / norm, together.left[0][k], atol=1e-6)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_all_clients_start_the_next_round_from_one_model(rule: Rule) -> None:
    state = Federation(federation(0), 0)
    state.train(2, 0.1, frozen_right=rule.method == "ffa")
    state.aggregate(rule)
    assert all(bool((x == x[0]).all()) for x in (*state.left.values(), *state.right.values()))


def test_a_rate_that_diverges_is_never_the_best() -> None:
    diverged = run(0, 20, 1e30, 0, test=False, rounds=2)
    fine = run(0, 2, 0.05, 0, test=False, rounds=2)
    assert 0.0 == diverged.validation
    assert 0.05 == best_rate([diverged, fine])
    assert 2 == len(fine.biases)
    assert all(map(math.isfinite, fine.biases))
