"""Options as plain data, read off an instance, and instances made again from such data.

An instance holds what its constructor takes, each under the name of the argument: that is all a
class has to do to be shown, compared, saved and made again. Sizes of tensors belong to the options,
their numbers to the state dict. Nothing here imports what a file names: only classes that the
program has already are made.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Self, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn

from lowrank_opt.errors import OptionError
from lowrank_opt.operator import LowRankOperator
from lowrank_opt.parameterizations.example import Example
from lowrank_opt.sets import FeasibleSet

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
JsonObject: TypeAlias = dict[str, Json]
T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)

# Arguments that say how tensors are made, not what the map is: the tensors themselves tell.
_OF_TENSORS = ("dtype", "device", "generator")


class Configured(nn.Module):
    """A module that knows its options: shown, written down, and made again from them.

    Examples
    --------
    >>> class Scaled(Configured):
    ...     def __init__(self, factor):
    ...         super().__init__()
    ...         self.factor = factor
    >>> Scaled(2.0), Scaled.from_config(Scaled(3.0).config())
    (Scaled(factor=2.0), Scaled(factor=3.0))
    """

    def options(self) -> dict[str, object]:
        """Return the constructor's arguments by name; here, the attributes of the same names.

        Arguments ``dtype``, ``device`` and ``generator`` are left out: tensors tell.

        Raises
        ------
        OptionError
            If there is no such attribute.
        """
        return constructor_options(self)

    def config(self) -> JsonObject:
        """Return `options` as data for JSON; tensors as their sizes, modules as descriptions."""
        return _plain_options(self.options())

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Json],
        state: Mapping[str, Tensor] | None = None,
        *,
        classes: Iterable[type] = (),
        **given: object,
    ) -> Self:
        """Return an instance with these options, holding the tensors of `state`.

        Parameters
        ----------
        config : mapping
            From `config()`, perhaps through JSON.
        state : mapping of str to Tensor, optional
            A state dict, loaded strictly; its dtypes are kept. Without it, tensors are of the right
            size only.
        classes : iterable of type
            Classes of inner modules and sets, preferred to others of the same name.
        **given
            Options instead of those of `config`, like a base weight to share.

        Raises
        ------
        OptionError
            If options do not fit the constructor, or name a class unknown to the program.
        """
        kinds = tuple(classes)
        options = {name: _value(x, kinds) for name, x in config.items() if name not in given}
        made = _called(cls, options | given)
        return made if state is None else load_tensors(made, state)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Yield ways to make the class, for the table of methods and for tests.

        Here, the class itself, if it needs a shape and a rank and nothing else.
        """
        arguments = inspect.signature(cls).parameters.values()
        if [a.name for a in arguments if a.default is a.empty] == ["shape", "rank"]:
            yield Example(cls.__name__, cls)

    def extra_repr(self) -> str:
        held = {name: getattr(self, name, None) for name in ("shape", "rank")}
        held |= constructor_options(self, strict=False) | self._known_options()
        return ", ".join(
            f"{name}={_shown(value)}"
            for name, value in held.items()
            if value is not None and not isinstance(value, nn.Module)
        )

    def _known_options(self) -> dict[str, object]:
        try:
            return self.options()
        except OptionError:
            return {}


def constructor_options(instance: object, *, strict: bool = True) -> dict[str, object]:
    """Return what the constructor of an instance takes, as the instance holds it.

    Raises
    ------
    OptionError
        If the constructor takes something that the instance does not hold under that name.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> constructor_options(SchattenBall(p=1, radius=2.0, rank=3))
    {'p': 1, 'radius': 2.0, 'rank': 3}
    """
    held: dict[str, object] = {}
    for name, argument in inspect.signature(type(instance)).parameters.items():
        open_ended = argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
        if name in _OF_TENSORS:
            continue
        missing = open_ended or not hasattr(instance, name)
        if missing and strict:
            raise OptionError(
                f"an instance must hold what its constructor takes; {class_name(type(instance))} "
                f"has no {name!r}: store it under that name, or override options()"
            )
        if not missing:
            held[name] = getattr(instance, name)
    return held


def plain(value: object) -> Json:
    """Return an option as data for JSON; tensors and operators as their sizes.

    Raises
    ------
    OptionError
        If an option is of another kind.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> plain(torch.ones(3, 2)), plain(float("inf")), plain((1, 2))
    ({'tensor': [3, 2]}, {'number': 'inf'}, [1, 2])
    >>> plain(SchattenBall(1, 2.0, 3))["options"]
    {'p': 1, 'radius': 2.0, 'rank': 3}
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"number": str(value)}
        case tuple() | list():
            return [plain(x) for x in cast("Sequence[object]", value)]
        case Tensor():
            stored = {"stored": int(value._nnz())} if value.is_sparse else {}
            return {"tensor": [*value.shape], **stored}
        case LowRankOperator():
            return {"operator": [*value.shape, value.rank]}
        case Configured():
            return describe(value)
        case FeasibleSet():
            options = constructor_options(value)
            return {"class": class_name(type(value)), "options": _plain_options(options)}
        case _:
            raise OptionError(
                f"an option to write down must be plain data, a tensor, a set or a "
                f"parameterization; got {value!r}: override options()"
            )


def _plain_options(options: Mapping[str, object]) -> JsonObject:
    return {name: plain(value) for name, value in options.items()}


def describe(module: Configured) -> JsonObject:
    """Return class, shape, rank and options of a parameterization, for `rebuild`.

    Examples
    --------
    >>> from lowrank_opt import Factored
    >>> describe(Factored((4, 3), 2))["options"]
    {'shape': [4, 3], 'rank': 2, 'scaling': 1.0}
    """
    fixed = {name: plain(getattr(module, name, None)) for name in ("shape", "rank")}
    return {"class": class_name(type(module)), **fixed, "options": module.config()}


def rebuild(
    description: Mapping[str, Json],
    state: Mapping[str, Tensor] | None = None,
    *,
    classes: Iterable[type] = (),
    **given: object,
) -> Configured:
    """Return a module like the described one; its tensors are those of `state`.

    Parameters
    ----------
    description : mapping
        From `describe`, perhaps through JSON.
    state : mapping of str to Tensor, optional
        A state dict, whose dtypes are kept. Without it tensors are of the right size only.
    classes : iterable of type
        To be preferred to those that the program defined elsewhere.
    **given
        Options to be used instead of the described ones, like a base weight to share.

    Raises
    ------
    OptionError
        If the class is not known to the program, or made another shape or rank than described.

    Examples
    --------
    >>> from lowrank_opt import HomogeneousBall
    >>> ball = HomogeneousBall((4, 3), 2, radius=5.0, dtype=torch.float64)
    >>> rebuild(describe(ball), ball.state_dict())
    HomogeneousBall(shape=(4, 3), rank=2, radius=5.0, p=1.0)
    """
    kinds = tuple(classes)
    kind, config = _class_and_options(description, kinds)
    if not issubclass(kind, Configured):
        raise OptionError(f"a module must be described; got {class_name(kind)}")
    # Before anything of a wrong size is made, and once more for what follows from other options.
    _check_written(description, {x: config[x] for x in ("shape",) if x in config})
    module = kind.from_config(config, None, classes=kinds, **given)
    _check_written(description, {x: plain(getattr(module, x, None)) for x in ("shape", "rank")})
    return module if state is None else load_tensors(module, state)


def _check_written(description: Mapping[str, Json], found: Mapping[str, Json]) -> None:
    for name in ("shape", "rank"):
        expected = description.get(name)
        if expected is not None and name in found and found[name] != expected:
            raise OptionError(
                f"options must make the {name} they were written with, {expected}; got "
                f"{found[name]!r}: write the description again"
            )


def load_tensors(module: M, state: Mapping[str, Tensor]) -> M:
    """Load a state dict strictly, keeping the dtype of each of its tensors."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name in own.keys() & state.keys():
        own[name].data = own[name].data.to(state[name].dtype)
    module.load_state_dict(dict(state))
    return module


def _class_and_options(
    description: Mapping[str, Json], classes: tuple[type, ...]
) -> tuple[type, Mapping[str, Json]]:
    name, options = description.get("class"), description.get("options")
    if not isinstance(options, Mapping):
        raise OptionError(
            f"a description must have the options of its class; got {options!r} for {name}: make "
            "the instance yourself and load its state"
        )
    return known_class(str(name), classes), options


def _called(kind: type[T], options: Mapping[str, object]) -> T:
    try:
        return kind(**options)
    except TypeError as error:
        raise OptionError(
            f"options must fit the constructor of {class_name(kind)}; got {sorted(options)}; "
            f"{error}: correct them, or override options()"
        ) from error


def unplain(data: Json, classes: Iterable[type] = ()) -> object:
    """Return the option that `plain` wrote as `data`; tensors hold no meaningful numbers.

    Examples
    --------
    >>> from lowrank_opt import SchattenBall
    >>> unplain(plain(SchattenBall(1, 2.0, 3)))
    SchattenBall(p=1, radius=2.0, rank=3)
    """
    return _value(data, tuple(classes))


def _value(data: Json, classes: tuple[type, ...]) -> object:
    """Return the option that `plain` wrote as `data`; tensors hold no meaningful numbers."""
    match data:
        case {"class": _, "rank": _}:
            return rebuild(data, classes=classes)
        case {"class": _}:
            kind, options = _class_and_options(data, classes)
            return _called(kind, {name: _value(x, classes) for name, x in options.items()})
        case {"tensor": shape, **rest}:
            return _placeholder(cast("list[int]", shape), cast("int | None", rest.get("stored")))
        case {"operator": [int(m), int(n), int(rank)]}:
            return LowRankOperator(torch.zeros(m, rank), torch.ones(rank), torch.zeros(n, rank))
        case {"number": str(word)}:
            return float(word)
        case list() | tuple():
            return tuple(_value(x, classes) for x in data)
        case _:
            return data


def _placeholder(shape: list[int], stored: int | None) -> Tensor:
    """Return what every constructor accepts: positive weights, orthonormal frames, full ranks."""
    if stored is not None:
        cell = torch.arange(stored)
        index = torch.stack((cell // shape[1], cell % shape[1]))
        return torch.sparse_coo_tensor(
            index, torch.ones(stored), shape, is_coalesced=True, check_invariants=False
        )
    return torch.eye(*shape) if len(shape) == 2 else torch.ones(shape)


def class_name(kind: type) -> str:
    """Return the name under which a class is written down."""
    return f"{kind.__module__}.{kind.__qualname__}"


def subclasses(kind: type) -> Iterator[type]:
    """Yield the classes that the program has derived from `kind`, each once, in order."""
    seen: set[type] = set()
    waiting = [kind]
    while waiting:
        found = waiting.pop(0).__subclasses__()
        new = [x for x in found if x not in seen]
        seen.update(new)
        waiting += new
        yield from new


def known_class(name: str, classes: Iterable[type] = ()) -> type:
    """Return the class of that name among `classes` and all that the program has defined.

    Raises
    ------
    OptionError
        If there is none. Nothing is imported.
    """
    from_program = (k for base in (Configured, FeasibleSet) for k in subclasses(base))
    # The latest of several is meant: a notebook's cell that was run again.
    for kind in (*classes, *reversed([k for k in from_program if class_name(k) == name])):
        if class_name(kind) == name:
            return kind
    raise OptionError(
        f"a class named in a file must be known to the program; got {name}: import the module "
        "that defines it, or pass the class itself"
    )


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return "x".join(map(str, value.shape)) + " tensor"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return repr(value)
