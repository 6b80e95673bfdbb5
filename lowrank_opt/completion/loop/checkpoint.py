"""What an iteration leaves on the disk, so that a killed process ends as one that was not."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from lowrank_opt import files
from lowrank_opt.errors import OptionError
from lowrank_opt.files import Json, JsonObject

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lowrank_opt.observations import Observations

# A tree of dictionaries with text for keys, lists and tuples; its leaves are tensors, arrays,
# numbers, text, truth values and None.
State: TypeAlias = object

T = TypeVar("T")

_LAYOUT = files.Layout(
    noun="a checkpoint",
    writer="Checkpoint",
    format="lowrank_opt.checkpoint",
    version=1,
    tensors="checkpoint.safetensors",
    description="checkpoint.json",
)


# Names of tensors of which each process has the lines of its own rows.
LINES = "lines."


@dataclass(frozen=True, eq=False)
class OwnLines:
    """A tensor or an array of a state of which other processes have the other lines."""

    x: Tensor | NDArray[np.generic]


def own_lines(state: State) -> State:
    """Mark all that has lines in a part of a state; a store of one process keeps it as it is."""
    match state:
        case Tensor() | np.ndarray():
            return OwnLines(state) if state.ndim > 0 else state
        case dict():
            return {k: own_lines(x) for k, x in state.items()}
        case list():
            return [own_lines(x) for x in state]
        case _:
            return state


class Store(Protocol):
    """Where a `Checkpoint` keeps its states."""

    def write(self, path: Path, description: JsonObject, tensors: dict[str, Tensor]) -> None:
        """Replace the state of a folder, whole or not at all."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether a folder has a state."""
        ...

    def read(self, path: Path) -> tuple[JsonObject, dict[str, Tensor]]:
        """Return the state of a folder."""
        ...

    def remove(self, path: Path) -> None:
        """Delete the state of a folder."""
        ...


class FileStore:
    """The store of one process: two files."""

    def write(self, path: Path, description: JsonObject, tensors: dict[str, Tensor]) -> None:
        """Replace the state of a folder, whole or not at all."""
        files.write(_LAYOUT, path, description, tensors)

    def exists(self, path: Path) -> bool:
        """Whether a folder has a state."""
        return files.exists(_LAYOUT, path)

    def read(self, path: Path) -> tuple[JsonObject, dict[str, Tensor]]:
        """Return the state of a folder."""
        return files.read(_LAYOUT, path)

    def remove(self, path: Path) -> None:
        """Delete the state of a folder, and the folder if nothing else is in it."""
        for name in (_LAYOUT.description, _LAYOUT.tensors):
            (path / name).unlink(missing_ok=True)
        with suppress(OSError):
            # Not empty, or not there.
            path.rmdir()


class Checkpoint:
    """A folder to which an iteration writes its whole state every so often.

    The state is that of the optimizer too: the gradients and steps that L-BFGS remembers, the
    moments of Adam, the covariances of a posterior, what the stopping rule has seen, and the best
    iterate. An iteration that goes on from it takes the same steps as one that was never stopped,
    to the last bit, on the same machine and number of threads. A checkpoint is replaced whole or
    not at all.

    Parameters
    ----------
    path : str or path
        Folder, made when the first state is written.
    every : int
        Iterations between two states.
    seconds : float
        After the first state, also at least so long between two: one may cost what a step does.
    resume : bool
        Go on from the state that is there, if there is one.
    settings : mapping of str to JSON values, optional
        What the iteration depends on. A state that was written with others is refused.
    store : Store, optional
        Two files by default; `lowrank_opt.distributed.SharedStore` where there are more processes.

    Raises
    ------
    OptionError
        If `every` is not a positive integer.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     Checkpoint(folder, every=2).offer(4, lambda: {"x": torch.ones(2), "step": 4})
    ...     Checkpoint(folder, resume=True).restored()
    {'x': tensor([1., 1.]), 'step': 4}
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        every: int = 10,
        seconds: float = 0.0,
        resume: bool = False,
        settings: Mapping[str, Json] | None = None,
        store: Store | None = None,
    ) -> None:
        if int(every) != every or every < 1:
            raise OptionError(f"every must be a positive integer; got every={every!r}")
        self.path: Path
        self.every: int
        self.resume: bool
        self.path, self.every, self.resume = Path(path), every, resume
        self.seconds: float
        self.last: float
        self.seconds, self.last = seconds, -math.inf
        self.store: Store = FileStore() if store is None else store
        self.settings: JsonObject = dict(settings or {})

    def offer(self, iteration: int, state: Callable[[], State]) -> None:
        """Write the state if this iteration is one of those to be written.

        Raises
        ------
        DataError
            If it cannot be written.
        """
        if iteration % self.every == 0 and time.monotonic() - self.last >= self.seconds:
            tensors: dict[str, Tensor] = {}
            tree = _encode(state(), tensors)
            description: JsonObject = {"settings": self.settings, "state": tree}
            self.store.write(self.path, description, tensors)
            self.last = time.monotonic()

    def restored(self, device: torch.device | str = "cpu") -> State | None:
        """Return the state to go on from; None if there is none, or `resume` is false.

        Parameters
        ----------
        device : torch.device or str
            Where its tensors go, whichever they were on.

        Raises
        ------
        DataError
            If it is damaged, foreign, or of a later version.
        OptionError
            If it was written with other settings.
        """
        if not (self.resume and self.store.exists(self.path)):
            return None
        description, tensors = self.store.read(self.path)
        self._check_settings(description.get("settings"))
        try:
            placed = {k: _placed(x, device) for k, x in tensors.items()}
            return _decode(description["state"], placed)
        except (KeyError, TypeError, ValueError) as error:
            raise files.damaged(_LAYOUT, self.path, f"the state is damaged ({error})") from error

    def remove(self) -> None:
        """Delete the state, once the result is safe."""
        self.store.remove(self.path)

    def _check_settings(self, found: Json) -> None:
        known = found if isinstance(found, dict) else {}
        # As JSON brings them back: tuples are lists there.
        asked = json.loads(json.dumps(self.settings))
        names = [k for k in {**known, **asked} if known.get(k) != asked.get(k)]
        if names:
            changes = ", ".join(f"{k}={asked.get(k)!r} after {known.get(k)!r}" for k in names)
            raise OptionError(
                f"an iteration goes on with the settings it began with; got {changes} in "
                f"{str(self.path)!r}: repeat those, or start anew"
            )


def fingerprint(observations: Observations) -> str:
    """Return a digest of entries, values and weights, for the settings of a `Checkpoint`."""
    digest = sha256(repr(observations.shape).encode())
    for x in (observations.rows, observations.cols, observations.values, observations.weights):
        digest.update(b"|" if x is None else x.cpu().numpy().tobytes())
    return digest.hexdigest()


def unpacked(x: object) -> State:
    """Return a list, or a dataclass, as a state: its fields by name, those of fields too."""
    if isinstance(x, list):
        return [unpacked(part) for part in x]
    if is_dataclass(x) and not isinstance(x, type):
        return {f.name: unpacked(getattr(x, f.name)) for f in fields(x)}
    return x


def packed(template: T, state: State) -> T:
    """Return what was unpacked, with the classes of a template that has the same structure."""
    if isinstance(template, list):
        assert isinstance(state, list), "as `unpacked` returned it"
        return [packed(*pair) for pair in zip(template, state, strict=True)]  # pyright: ignore[reportReturnType]
    if is_dataclass(template) and not isinstance(template, type):
        assert isinstance(state, dict), "as `unpacked` returned it"
        parts = {k: packed(getattr(template, k), x) for k, x in state.items()}
        return replace(template, **parts)
    return state  # pyright: ignore[reportReturnType]


def _encode(tree: State, tensors: dict[str, Tensor]) -> Json:
    match tree:
        case None | bool() | int() | str():
            return tree
        case float():
            # JSON has no NaN; finite numbers come back to the last bit.
            return tree if math.isfinite(tree) else {"float": repr(tree)}
        case OwnLines():
            if isinstance(tree.x, Tensor):
                return {"tensor": _keep(tree.x, tensors, LINES)}
            lines = torch.from_numpy(np.ascontiguousarray(tree.x))
            return {"array": _keep(lines, tensors, LINES)}
        case Tensor():
            return {"tensor": _keep(tree, tensors)}
        case np.ndarray():
            # In another memory order, a product may be summed in another order.
            swapped = tree.flags.f_contiguous and not tree.flags.c_contiguous
            array = np.ascontiguousarray(tree.T if swapped else tree)
            kind = "transposed" if swapped else "array"
            return {kind: _keep(torch.from_numpy(array), tensors)}
        case dict():
            return {"dict": {str(k): _encode(v, tensors) for k, v in tree.items()}}
        case list():
            return [_encode(x, tensors) for x in tree]
        case tuple():
            return {"tuple": [_encode(x, tensors) for x in tree]}
        case _:
            raise OptionError(
                f"a state is made of tensors, numbers and text; got a {type(tree).__name__}: "
                "this iteration cannot leave checkpoints"
            )


def _keep(x: Tensor, tensors: dict[str, Tensor], prefix: str = "") -> str:
    key = f"{prefix}{len(tensors)}"
    tensors[key] = x
    return key


def _placed(x: Tensor, device: torch.device | str) -> Tensor:
    # Counters of optimizers are scalars, and stay on the CPU.
    return x.to(device) if x.ndim > 0 else x


def _decode(tree: Json, tensors: dict[str, Tensor]) -> State:
    if isinstance(tree, list):
        return [_decode(x, tensors) for x in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind, content:
        case "float", str():
            return float(content)
        case "tensor", str():
            return tensors[content].clone()
        case "array", str():
            return tensors[content].cpu().clone().numpy()
        case "transposed", str():
            return tensors[content].cpu().clone().numpy().T
        case "dict", dict():
            return {k: _decode(v, tensors) for k, v in content.items()}
        case "tuple", list():
            return tuple(_decode(x, tensors) for x in content)
        case _:
            raise ValueError(f"unknown part {kind!r}")
