"""Operations on adapters with one defect each, of the kinds that were found in use."""

import copy
from contextlib import contextmanager

import torch
from torch import nn

from lowrank_opt import nn as ours
from lowrank_opt.errors import DataError
from lowrank_opt.nn.adapters.adapted import adapted_modules
from lowrank_opt.nn.adapters.present import record_of
from lowrank_opt.nn.adapters.prints import PRINTS
from lowrank_opt.testing.laws import adapter_moves as moves
from lowrank_opt.testing.laws.adapter_stage import Operations


def save_what_is_trained(model, path, *, name):
    """Write own modules only while they are not frozen."""
    other = copy.deepcopy(model)
    for _, store in adapted_modules(other):
        part = store.part(name)
        for key in () if part is None else list(part.own.homes):
            own = part.own.get(key)
            if isinstance(own, nn.Parameter) and not own.requires_grad:
                del part.own.homes[key]
    ours.save_adapter(other, path, name=name)


def save_without_buffers(model, path, *, name):
    other = copy.deepcopy(model)
    for module, store in adapted_modules(other):
        part = store.part(name)
        for key in () if part is None else list(part.own.homes):
            if key in module._buffers:
                del part.own.homes[key]
    ours.save_adapter(other, path, name=name)


def load_into_sums(model, path, *, name):
    """Load into a merged model, where nobody reads it."""
    merged = any(True for _ in adapted_modules(model)) and record_of(model).state.merged
    if merged:
        record_of(model).set(merged=None)
    ours.load_adapter(model, path, name=name)
    if merged:
        record_of(model).set(merged=merged)
    return model


@contextmanager
def disabled_until_the_first_end(model):
    """Forget, at the end of an inner block, that an outer one is open."""
    record = record_of(model)
    record.set(disabled=record.state.disabled + 1)
    yield
    record.set(disabled=0)


def switch_with_the_last_head(model, weights):
    """Activate updates, and leave the modules of the adapter before in their places."""
    before = [n for n, _ in record_of(model).state.active]
    ours.switch(model, weights)
    for _, store in adapted_modules(model):
        parts = [p for n in before for p in [store.part(n)] if p is not None]
        for name in weights:
            part = store.part(name)
            for key in () if part is None else part.own.homes:
                own, last = part.own.get(key), [p.own.get(key) for p in parts]
                if last and last[0] is not None and isinstance(own, nn.Parameter):
                    own.data.copy_(last[0].data)


def merge_into_the_base(model):
    """Write the sums where the base weights were."""
    ours.merge(model)
    with torch.no_grad():
        for found in ours.adapted_weights(model):
            found.slot.parameter.copy_(getattr(found.slot.layer.module, found.slot.weight))


def unmerge_at_last(model):
    """Take the sums away only where nothing is disabled."""
    if not record_of(model).state.disabled:
        ours.unmerge(model)


def leave_trained(model, weights):
    """Activate adapters and leave the others to the optimizer."""
    ours.switch(model, weights)
    for _, store in adapted_modules(model):
        for part in store.parts().values():
            part.requires_grad_(True)


def wake_all_that_is_active(model, weights):
    """Train what counts, whether the caller has frozen it or not."""
    ours.switch(model, weights)
    for _, store in adapted_modules(model):
        for name, part in store.parts().items():
            part.requires_grad_(name in weights)


def remove_nothing(model, name):
    """Say that an adapter is removed."""
    return model


def combine_alike(model, weights, *, name):
    ours.combine(model, dict.fromkeys(weights, 1.0), name=name)


def per_sample_of_the_neighbour(model, names, *, axis):
    return ours.per_sample(model, [*names[1:], names[0]], axis=axis)


def save_what_asks_for_gradients(model, path, *, name):
    """Write base parameters by their flag, as it is now, and not by what they are."""
    other = copy.deepcopy(model)
    for module in other.modules():
        vars(module).update({PRINTS: dict.fromkeys(vars(module).get(PRINTS, {}))})
    ours.save_adapter(other, path, name=name)


def load_with_the_names_of_wrappers(model, path, *, name):
    if type(model) is nn.DataParallel:
        raise DataError("names must be those of the file")
    return ours.load_adapter(model, path, name=name)


def switch_of_the_past_too(model, weights):
    """Change the state that checkpoints have kept."""
    for state in record_of(model)._seen:
        vars(state)["active"] = tuple(weights.items())
    vars(record_of(model).state)["active"] = tuple(weights.items())


def export_half(model, path, *, name):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for found in ours.adapted_weights(other, {name}):
            for p in found.updates[0].parameters():
                p.mul_(0.5)
    ours.export_peft(other, path, name=name)


@contextmanager
def per_sample_until_the_first_switch(model, names, *, axis):
    with ours.per_sample(model, names, axis=axis):
        yield
    record_of(model).set(disabled=1)


A, B = ("adapt", {"name": "a", "head": True}), ("adapt", {"name": "b", "head": True})
PLAIN_B = ("adapt", {"name": "b", "head": False})
PLAIN_A = ("adapt", {"name": "a", "head": False})
TO_A = ("switch", {"weights": {"a": 1.0}})


def steps(*names):
    return [(name, {}) if isinstance(name, str) else name for name in names]


def reload(name, new, *, fresh):
    return ("reload", {"name": name, "new": new, "fresh": fresh})


# (operations, kind of model, the steps after which the defect is noticed)
BROKEN_OPERATIONS = [
    (
        Operations(save=save_what_is_trained),
        "linear",
        steps(A, "freeze", reload("a", "a", fresh=True)),
    ),
    (
        Operations(save=save_without_buffers),
        "normalised",
        steps(PLAIN_A, "train", reload("a", "a", fresh=True)),
    ),
    (
        Operations(load=load_into_sums),
        "linear",
        steps(A, "merge", reload("a", "b", fresh=False)),
    ),
    (
        Operations(disabled=disabled_until_the_first_end),
        "linear",
        steps(A, "enter", "enter", "leave"),
    ),
    (Operations(switch=switch_with_the_last_head), "linear", steps(A, B, TO_A)),
    (Operations(merge=merge_into_the_base), "recurrent", steps(A, "merge")),
    (
        Operations(unmerge=unmerge_at_last),
        "linear",
        steps(A, B, "merge", "enter", "unmerge", "leave", TO_A),
    ),
    (Operations(switch=leave_trained), "linear", steps(A, B, TO_A)),
    (
        Operations(switch=wake_all_that_is_active),
        "linear",
        steps(A, (moves.freeze_one, {"which": 1})),
    ),
    (Operations(remove=remove_nothing), "linear", steps(A, B, ("remove", {"name": "a"}), A)),
    (
        Operations(combine=combine_alike),
        "linear",
        steps(A, ("combine", {"weights": {"a": 0.5}, "name": "b"})),
    ),
    (
        Operations(per_sample=per_sample_of_the_neighbour),
        "linear",
        steps(PLAIN_A, ("check_samples", {"names": ["a", None]})),
    ),
    (
        Operations(save=save_what_asks_for_gradients),
        "linear",
        steps(A, (moves.train_base, {"which": 1}), reload("a", "a", fresh=True)),
    ),
    (
        Operations(load=load_with_the_names_of_wrappers),
        "linear",
        steps(
            A,
            (
                moves.reload_wrapped,
                {"name": "a", "new": "b", "fresh": False, "wrapper": "data parallel"},
            ),
        ),
    ),
    (
        Operations(switch=switch_of_the_past_too),
        "linear",
        steps(PLAIN_A, PLAIN_B, (moves.switch_before_backward, {"weights": {"a": 1.0}})),
    ),
    (
        Operations(export_peft=export_half),
        "linear",
        steps(PLAIN_A, (moves.exchange_with_peft, {"name": "a", "new": "b"})),
    ),
    (
        Operations(per_sample=per_sample_until_the_first_switch),
        "linear",
        steps(PLAIN_A, ("route", {"names": ["a", None]}), "leave"),
    ),
]
