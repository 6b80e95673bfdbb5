"""Short ways to the parts of adapted models, for tests."""

from torch import Tensor, nn

from lowrank_opt.nn import adapted_weights
from lowrank_opt.nn.adapters.adapted import store_of
from lowrank_opt.parameterizations import Parameterization


def member(layer: nn.Module, adapter: str = "default", index: int = 0) -> Parameterization:
    """Return the parameterization of a layer's first adapted weight."""
    found = [x for x in adapted_weights(layer, {adapter}) if not x.slot.layer.name]
    return found[0].updates[index]


def is_adapted(module: nn.Module) -> bool:
    """Whether adapters have something in this very module."""
    return store_of(module) is not None


def adapted_layers(model: nn.Module) -> list[str]:
    """Return the names of the modules of which a weight is adapted, in order."""
    return list(dict.fromkeys(x.slot.layer.name for x in adapted_weights(model)))


def base_weight(layer: nn.Module, name: str = "weight") -> Tensor:
    """Return the weight that stands in the layer itself."""
    return dict(layer.named_parameters(recurse=False))[name]
