"""Warm starts: settings stay, rows follow their ids, and what was reached is kept."""

import numpy as np
import pytest
import torch

from lowrank_opt.completion import AdditiveBias, CompletionResult, CompletionStatus, History
from lowrank_opt.estimators import MatrixCompletion
from lowrank_opt.estimators.choice.starts import moved
from lowrank_opt.operator import LowRankOperator
from tests.unit.estimators.cases import quick, ratings


@pytest.mark.parametrize("options", [{}, {"solver": "als"}, {"radius": 100.0}], ids=str)
def test_settings_stay_and_nothing_is_chosen_again(options: dict[str, object]):
    pairs, y = ratings()
    model = MatrixCompletion(random_state=0, warm_start=True, **options).fit(pairs[:600], y[:600])
    setting, path = dict(model.setting_), model.path_
    before = model.predict_interval(pairs)
    model.fit(pairs, y)
    assert (setting, path) == (model.setting_, model.path_)
    cold = MatrixCompletion(random_state=0, **options).fit(pairs, y)
    errors = [np.sqrt(np.mean((x.predict(pairs) - y) ** 2)) for x in (model, cold)]
    assert errors[0] < 1.5 * errors[1] + 0.05
    assert [x.shape for x in before] == [x.shape for x in model.predict_interval(pairs)]


def test_a_fit_goes_on_from_the_last_one():
    pairs, y = ratings()
    one = quick(max_iterations=1, warm_start=True).fit(pairs, y)
    first = one.result_.history.objective[-1]
    for _ in range(5):
        one.fit(pairs, y)
    again = quick(max_iterations=1).fit(pairs, y)
    assert one.result_.history.objective[-1] < first == again.result_.history.objective[-1]


def test_rows_follow_their_ids():
    rng = torch.Generator().manual_seed(0)
    op = LowRankOperator(
        torch.randn(3, 2, generator=rng), torch.ones(2), torch.randn(2, 2, generator=rng)
    )
    bias = AdditiveBias(1.0, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0]))
    old = CompletionResult(op, bias, CompletionStatus.CONVERGED, History())
    new = moved(old, torch.tensor([2, -1, 0]), torch.tensor([1, 0, -1]))
    assert (3, 3) == new.shape
    dense = old.to_dense()
    torch.testing.assert_close(new.to_dense()[0, :2], dense[2].flip(0))
    torch.testing.assert_close(new.to_dense()[1], torch.tensor([6.0, 5.0, 1.0]))
    assert 2.0 == float(new.to_dense()[2, 2])
