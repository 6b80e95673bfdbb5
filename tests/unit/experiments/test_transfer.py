"""Adapting a trained network: every method in small, and what is made of rates and seeds."""

import copy
import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lowrank_opt as lo
from experiments.claims.finding import Verdict
from experiments.claims.transfer import gains_in_test, over_lora
from experiments.tables import markdown_table
from experiments.transfer import images, language, sentences, vision
from experiments.transfer.methods import FULL, HEAD, LORA, methods
from experiments.transfer.report import (
    Point,
    best,
    curve,
    final_table,
    kept_at,
    kept_when_rewound,
    measured,
    rate_table,
    usable,
)
from experiments.transfer.runs import Outcome, Setting, Split, Target, Task, batches, fine_tune
from lowrank_opt.errors import DataError

SETTING = Setting(rank=2, epochs=1, head_rate=1e-2)


@pytest.fixture(scope="module")
def task() -> Task:
    """Random images in two classes, told apart by their mean; the old skill is a constant."""
    torch.manual_seed(0)
    body = vision.Body().requires_grad_(False)
    labels = torch.arange(192) % 2
    inputs = 0.2 * torch.rand(192, 28, 28) + 0.6 * labels[:, None, None]
    parts = [Split(x, y) for x, y in zip(inputs.split(64), labels.split(64), strict=True)]

    def network() -> nn.Module:
        copied = vision.Body()
        copied.load_state_dict(body.state_dict())
        return copied

    return Task(network, vision.LAYERS, lambda _: Target(*parts), lambda _, test: 50.0 + test)


@pytest.mark.parametrize("name", methods())
def test_every_method_trains_only_what_it_says(name, task):
    outcome = fine_tune(task, name, 1e-2, 0, SETTING, test=True)
    lora = 2 * 2 * (4 * (64 + 64) + 2 * (64 + 128))
    assert (50.0, 51.0) == (outcome.kept, outcome.test_kept)
    assert outcome.holds is (True if methods()[name].bounded else None)
    lengths = 2 * 448 if "DoRA" in name else 0
    assert outcome.trained <= {FULL: 10**6, HEAD: 0}.get(name, lora + lengths + 12)
    assert (HEAD == name) == (outcome.trained == 0)


def test_updates_change_the_features_and_nothing_else_does(task):
    """The start is the trained network; the frozen rest stays what it was."""
    x = task.target(0).test.inputs
    network, again = task.network(), task.network()
    methods()[LORA].prepare(network, task.layers, 2, 0)
    assert torch.equal(network(x), again(x))
    assert not network.position.requires_grad
    assert 12 == sum(w.requires_grad for w in network.parameters()) / 2


def test_run_is_repeatable(task):
    first, again = (fine_tune(task, LORA, 1e-2, 3, SETTING) for _ in range(2))
    assert first == again
    assert first.test_accuracy is None


def test_every_row_is_seen_once_in_an_epoch():
    parts = list(batches(150, 2, seed=0))
    assert torch.equal(torch.cat(parts[:3]).sort().values, torch.arange(150))
    assert not torch.equal(parts[0], parts[3])


def test_parts_of_the_new_task_are_disjoint():
    found = vision.target(1, small=True)
    rows = torch.cat([part.inputs.flatten(1) for part in found]).unique(dim=0)
    assert [128, 256, 397] == [len(part.labels) for part in found]
    assert len(rows) == 781
    assert torch.equal(found.test.inputs, vision.target(2, small=True).test.inputs)


HILL = [Point(-3, 50, 90), Point(-2, 60, 80), Point(-1, 59, 50), Point(0, 40, 10)]


def test_usable_rates_end_between_neighbours():
    low, high = usable(HILL, 55)
    assert (-2.5, -1 + 4 / 19) == pytest.approx((low, high))
    assert (-3, 0) == usable(HILL, 40)
    assert usable(HILL, 61) is None
    # A second hill beyond a valley is not near the best rate.
    assert -2.5 == usable([Point(-5, 60, 0), Point(-4, 10, 0), *HILL[:2]][1:], 55)[0]


def test_what_is_kept_is_the_most_at_or_between_rates():
    assert 85.0 == kept_at(HILL, 55)
    assert 80.0 == kept_at(HILL, 60)
    assert kept_at(HILL, 60.5) is None
    assert HILL[1] == best(HILL)


def outcome(method, lr, seed, accuracy, kept):
    return Outcome(method, lr, seed, 4, accuracy, kept, accuracy - 1, kept - 1, 100, None)


RUNS = [
    outcome(method, lr, seed, accuracy + up, kept)
    for seed in (0, 1, 2)
    for method, up, kept in ((LORA, 0.0, 70.0), ("wide", 2.0, 75.0), ("weak", -30.0, 90.0))
    for lr, accuracy in ((1e-3, 50.0), (1e-2, 60.0), (1e-1, 59.5 if method == "wide" else 40.0))
]


def test_widths_and_what_is_kept_are_measured_by_seed():
    rows = {(r["method"], r["seed"]): r for r in measured(RUNS)}
    assert 9 == len(rows)
    lora, wide, weak = (rows[name, 1] for name in (LORA, "wide", "weak"))
    assert (0.15, False, 70.0) == (pytest.approx(lora["width"]), lora["cut"], lora["kept"])
    assert (1.1, True, 75.0) == (pytest.approx(wide["width"]), wide["cut"], wide["kept"])
    assert (0.0, None) == (weak["common_width"], weak["kept"])


def test_tables_have_one_row_for_each_method():
    header, rows = rate_table(RUNS, measured(RUNS))
    assert [LORA, "wide", "weak"] == [row[0] for row in rows]
    assert {len(header)} == {len(row) for row in rows}
    assert ("≥ 1.10 ± 0.00", "not reached") == (rows[1][3], rows[2][7])
    header, rows = final_table([o for o in RUNS if o.lr == 1e-2])
    assert ["61.0 ± 0.0", "2.0 ± 0.0"] == rows[1][3:5]
    assert {len(header)} == {len(row) for row in rows}


def test_verdicts_follow_from_seeds():
    record = {"measured": measured(RUNS), "final": [vars(o) for o in RUNS if o.lr == 1e-2]}
    wider = over_lora(record, ("wide", "weak"), "kept", unit="points", telling=2.0)
    assert ["wide"] == [e.label for e in wider.effects]
    assert "weak" in wider.remark
    assert Verdict.REPRODUCED == wider.verdict
    behind = gains_in_test(record, ("weak", "absent"), "test_accuracy", unit="points", margin=1.0)
    assert [("weak", False)] == [(e.label, e.holds) for e in behind.effects]
    assert math.isclose(behind.effects[0].value, -30.0)


def test_record_says_what_its_runs_say():
    path = Path(__file__).parents[3] / "docs" / "_static" / "vision-transfer.json"
    record = json.loads(path.read_text("utf-8"))
    runs, final = ([Outcome(**run) for run in record[part]] for part in ("runs", "final"))
    assert record["measured"] == measured(runs)
    assert record["tables"] == {
        "test": markdown_table(*final_table(final)),
        "rates": markdown_table(*rate_table(runs, measured(runs))),
    }
    chosen = {o.method: o.lr for o in final}
    assert chosen == {
        m: pytest.approx(10 ** best(curve(runs, m, (0, 1, 2))).log_rate) for m in chosen
    }


def test_best_rate_is_that_of_the_mean():
    lost = [replace(o, accuracy=0.0) if (o.lr, o.seed) == (1e-2, 0) else o for o in RUNS]
    assert -3 == best(curve(lost, LORA, (0, 1, 2))).log_rate


@pytest.mark.parametrize("name", [FULL, HEAD, "DeLoRA, radius 8", "LoRA-XS"])
def test_encoder_keeps_its_vectors_and_its_skill_is_watched(name):
    before = language.pretrained(small=True).below.vectors.weight.clone()
    outcome = language.run(name, 1e-2, 0, SETTING, data="trec", small=True, test=True)
    assert torch.equal(before, language.pretrained(small=True).below.vectors.weight)
    assert (HEAD == name) == (outcome.trained == 0)
    assert 0 < outcome.test_accuracy <= 100
    # A few steps leave the order of similarities nearly as it is.
    assert min(outcome.kept, outcome.test_kept) > 80


@pytest.fixture
def layered():
    """The same random encoder, whole and with its first block below the cut."""
    torch.manual_seed(0)
    vectors, blocks = nn.Embedding(20, 4), [nn.Linear(4, 4) for _ in range(2)]

    class Both(nn.Module):
        def __init__(self, parts):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x, there):
            for part in self.parts:
                x = part(x) * there.unsqueeze(-1)
            return x

    whole = language.Encoder(language.Below(vectors), Both(blocks))
    cut = language.Encoder(language.Below(vectors, Both(blocks[:1])), Both(blocks[1:]))
    return whole, cut


def test_what_is_below_the_cut_is_computed_once(layered):
    whole, cut = layered
    words = torch.tensor([[5, 9, 2], [7, 0, 0], [5, 9, 2]])
    for part in (words, words[1:2], words[:2]):
        torch.testing.assert_close(whole(part), cut(part))
    assert {(5, 9, 2), (7,)} == set(cut.below.kept)


def test_update_that_spares_inputs_does_not_act_on_them():
    """Half of the directions, of as many rows as have more than that."""
    encoder = language.pretrained(small=True)
    network = copy.deepcopy(encoder)
    language.ways(small=True)[language.PROTECTED].prepare(network, language.LAYERS, 2, 0)
    spared = language._spared(encoder, language.LAYERS, small=True)
    updates = [m for m in network.modules() if isinstance(m, lo.Complement)]
    assert len(spared) == len(updates) == 6
    for update, basis in zip(updates, spared.values(), strict=True):
        assert (update.shape[1], update.shape[1] // 2) == basis.shape
        with torch.no_grad():
            for p in update.parameters():
                p.normal_()
        op = update().detach()
        moved = op.to(dtype=torch.float64) @ basis.double()
        assert float(moved.abs().max()) < 1e-5 * float(op.schatten_norm(1))


def test_what_is_rewound_is_tested_before_and_after():
    first, second = language.run_and_rewind(LORA, 1e-2, 0, SETTING, data="trec", small=True)
    alone = language.run(LORA, 1e-2, 0, SETTING, data="trec", small=True, test=True)
    assert alone == replace(first, path=())
    assert [1.0, 0.8, 0.6, 0.4, 0.2] == [fraction for fraction, _, _ in first.path]
    # Stored anew, so rounded anew: orders of nearly equal cosines change.
    assert (first.accuracy, first.kept) == pytest.approx(first.path[0][1:], abs=1.0)
    assert second.accuracy == max(accuracy for _, accuracy, _ in first.path)
    assert (f"{LORA}, rewound", True) == (second.method, second.holds)


def test_what_is_kept_when_rewound_is_compared_at_one_accuracy():
    runs = [
        replace(outcome(name, 1e-2, 0, 60, 0), path=((1.0, top, 50.0), (0.5, top - 4, 90.0)))
        for name, top in ((LORA, 60.0), ("low", 50.0), ("high", 61.0))
    ]
    kept = {row["method"]: row["kept"] for row in kept_when_rewound(runs)}
    assert {LORA: 80.0, "low": None, "high": 90.0} == kept


def test_padding_changes_no_feature():
    words = torch.tensor([[5, 9, 2], [7, 0, 0]])
    encoder = language.pretrained(small=True)
    padded = torch.nn.functional.pad(words, (0, 4))
    torch.testing.assert_close(encoder(words), encoder(padded))


def test_skill_of_a_network_that_is_broken_is_nothing():
    class Broken(nn.Module):
        def forward(self, words):
            return torch.full((len(words), 4), math.nan)

    assert 0.0 == language.skill(Broken(), False, small=True)


def test_sentences_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(tmp_path))
    for name in ("banking77", "clinc150", "trec", "stsb"):
        (tmp_path / name).mkdir()
    for part in ("train", "test"):
        (tmp_path / "banking77" / f"{part}.csv").write_text('text,category\n"a, b",x\n')
        (tmp_path / "trec" / f"TREC.{part}.all").write_bytes(b"3 Qu\xe9 ?\n")
    (tmp_path / "clinc150" / "data_full.json").write_text('{"train": [["a", "x"]], "test": []}')
    (tmp_path / "stsb" / "sts-dev.csv").write_text("g\tf\ty\t1\t2.5\tone\ttwo\textra\n")
    assert ((["a, b"], ["x"]),) * 2 == sentences.labelled("banking77")
    assert ((["Qu\xe9 ?"], ["3"]),) * 2 == sentences.labelled("trec")
    assert ((["a"], ["x"]), ([], [])) == sentences.labelled("clinc150")
    assert (["one"], ["two"], [2.5]) == sentences.similar("dev")
    with pytest.raises(DataError, match=r"stsb needs a folder with sts-test\.csv"):
        sentences.similar("test")


def test_images_are_found_where_the_library_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(tmp_path))
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    pixels = np.arange(2 * 784, dtype=np.uint8)
    for name, header, content in (("images-idx3", 16, pixels), ("labels-idx1", 8, pixels[:2])):
        with gzip.open(folder / f"t10k-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(header) + content.tobytes())
    found, labels = images.fashion_mnist("t10k")
    assert (2, 28, 28) == found.shape
    assert [0, 1] == labels.tolist()
    assert found[1, 0, 3].item() == pytest.approx(float(pixels[787]) / 255)
    with pytest.raises(DataError, match=r"kmnist needs a folder with .*set LOWRANK_OPT_DATA"):
        images.kmnist("test")


def test_official_files_and_their_beginning_are_read_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(tmp_path))
    (tmp_path / "kmnist").mkdir()
    pixels, labels = np.zeros((7012, 28, 28), np.uint8), np.arange(7012) % 10
    pixels[7010] = 255
    for part in ("train", "test"):
        np.savez(tmp_path / "kmnist" / f"kmnist-{part}-imgs.npz", pixels)
        np.savez(tmp_path / "kmnist" / f"kmnist-{part}-labels.npz", labels)
    found = images.kmnist("train")
    assert (7011, 784.0) == (len(found[1]), found[0].sum())
    assert 7012 == len(images.kmnist("test")[1])
    first = tmp_path / "kmnist" / "kmnist-train7011.npz"
    np.savez(first, imgs=pixels[:7011], labels=labels[:7011])
    assert all(torch.equal(a, b) for a, b in zip(found, images.kmnist("train"), strict=True))
