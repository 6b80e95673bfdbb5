"""The comparison in a causal model: likelihoods against plain ones, runs in small, and tables."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import peft_comparison
from experiments.claims.comparison import at_equal_accuracy, bounded
from experiments.claims.finding import Verdict
from experiments.tables import markdown_table
from experiments.transfer import comparison, questions
from experiments.transfer.causal import Text, small
from experiments.transfer.comparison import Work, front_table, results_table, run
from experiments.transfer.methods import LORA, bounded_families
from experiments.transfer.questions import Question
from experiments.transfer.report import measured
from experiments.transfer.runs import Outcome
from lowrank_opt.errors import DataError

WORK = Work(16, 8, 8, 2, 16, depth=1, batch=8, epochs=1, rank=2, small=True)


def plain_loss(text: Text) -> float:
    """Of one row by itself, without padding and without what rows share."""
    model = small()
    vectors = model.vectors(torch.tensor([text.tokens[:-1]]))
    logs = (model.above(model.below(vectors))[0] @ model.words.T).log_softmax(-1)
    places = range(text.start, len(text.tokens))
    return -sum(float(logs[k - 1, text.tokens[k]]) for k in places) / len(places)


def test_losses_are_those_of_each_row_alone():
    texts = [
        Text((5, 7, 2, 9), 2),
        Text((5, 7, 2, 8), 3),
        Text((4, 1), 1),
        Text((5, 7, 2, 8), 1),
        Text((9, 8, 7, 6, 5, 4), 4),
    ]
    found = small().losses(small().above, texts)
    torch.testing.assert_close(torch.tensor([plain_loss(t) for t in texts]), found.detach())
    # What was kept of rows that came before changes nothing.
    assert torch.equal(found, small().losses(small().above, texts))


def test_the_likeliest_choice_by_token_is_the_answer():
    model = small()
    asked = [Question("1 2 3", ("7", "8 9", "11 12 13"), 0), Question("6", ("3", "2"), 1)]
    losses = [[plain_loss(t) for t in model.told(q)] for q in asked]
    right = [loss.index(min(loss)) for loss in losses]
    told = [q._replace(right=k) for q, k in zip(asked, right, strict=True)]
    assert 100.0 == model.accuracy(model.above, told)
    assert 50.0 == model.accuracy(model.above, [told[0], told[1]._replace(right=1 - right[1])])


def test_windows_have_one_length_and_go_on_with_the_next_paragraph():
    found = small().windows(["1 2 3", "4 5", "6 7 8", "9 10 11 12"], 2, 4)
    assert [Text((1, 2, 3, 4), 1), Text((6, 7, 8, 9), 1)] == found


@pytest.mark.parametrize("name", bounded_families(2, 2.0))
def test_every_family_runs_and_its_bound_holds(name):
    bounded = bounded_families(2, 2.0)[name].bounded
    outcome = run(name, 1e-2, 0, WORK, test=True)
    assert outcome.holds is (True if bounded else None)
    # LoRA's of two layers, and a core of r x r in each.
    assert 0 < outcome.trained <= 2 * (2 * (64 + 64) + 2 * 2)
    assert outcome.kept != 0
    assert outcome.test_kept != 0
    assert 0 <= outcome.test_accuracy <= 100


def test_balls_hold_the_spectral_one_at_their_rank():
    """Of rank 4 and singular values 3: a Frobenius norm of 6 and a nuclear one of 12."""
    names = bounded_families(4, 3.0)
    assert {"NBLoRA, radius 3", "RadialBall, radius 6", "DeLoRA, radius 12"} <= names.keys()


def test_rate_of_nothing_forgets_nothing_and_runs_are_repeatable():
    still = run(LORA, 0.0, 1, WORK, test=True)
    assert (0.0, 0.0) == (still.kept, still.test_kept)
    assert comparison.before(WORK)["accuracy"] == still.test_accuracy
    assert run(LORA, 1e-2, 1, WORK) == run(LORA, 1e-2, 1, WORK)


def test_training_makes_the_right_answer_likelier():
    from experiments.transfer import causal

    told = [small().told(q)[q.right] for q in comparison.asked(WORK)[0][:16]]
    with pytest.MonkeyPatch.context() as patched:
        after: list[float] = []
        accuracy = causal.Causal.accuracy

        def watched(model, network, asked):
            after.append(model.loss(network, told))
            return accuracy(model, network, asked)

        patched.setattr(causal.Causal, "accuracy", watched)
        for rate in (0.0, 3e-2):
            run(LORA, rate, 0, replace(WORK, epochs=5, training=100))
    assert after[1] < 0.9 * after[0]


def test_sets_of_arc_are_read(tmp_path):
    choices = [{"text": "iron", "label": "A"}, {"text": "wood", "label": "B"}]
    row = {"question": {"stem": "What rusts?", "choices": choices}, "answerKey": "A"}
    for part in ("Train", "Test"):
        (tmp_path / f"ARC-Easy-{part}.jsonl").write_text(json.dumps(row) + "\n")
    expected = Question("Question: What rusts?\nAnswer:", (" iron", " wood"), 0)
    assert ([expected], [expected]) == questions.arc(tmp_path)
    (tmp_path / "ARC-Easy-Test.jsonl").unlink()
    with pytest.raises(DataError, match=r"one file \*-Test\.jsonl"):
        questions.arc(tmp_path)


def test_trec_and_encyclopedia_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_OPT_DATA", str(tmp_path))
    for name in ("trec", "wikitext2"):
        (tmp_path / name).mkdir()
    for part in ("train", "test"):
        (tmp_path / "trec" / f"TREC.{part}.all").write_text("3 Who ?\n")
    (tmp_path / "wikitext2" / "test.txt").write_text(f" = Title = \n{'long ' * 50}\n")
    asked = questions.trec()[0][0]
    assert ("Question: Who ?\nThe answer is a", " person") == (asked.prompt, asked.choices[3])
    assert 3 == asked.right
    assert ["long " * 50] == questions.encyclopedia(test=True)
    with pytest.raises(DataError, match="wikitext2"):
        questions.encyclopedia(test=False)


def outcome(method: str, lr: float, seed: int, accuracy: float, kept: float) -> Outcome:
    return Outcome(method, lr, seed, 4, accuracy, kept, accuracy, kept, 100, None)


RUNS = [
    outcome(name, lr, seed, 60 + up + 10 * (lr == 1e-2), -0.01 * (1 + 4 * (lr == 1e-2)) * (1 + up))
    for seed in (0, 1)
    for name, up in ((LORA, 0.0), ("weak", -9.0))
    for lr in (1e-3, 1e-2)
]


def test_table_of_rates_says_what_is_not_reached_and_not_run():
    header, rows = front_table([*RUNS, outcome("late", 1e-2, 0, 80.0, -0.5)])
    assert ["update", "at 0.001", "at 0.01", "forgetting at equal accuracy"] == header
    # Between the rates: 67 is seven tenths of the way from 60 to 70, and from 0.01 to 0.05.
    assert [LORA, "60.0 / 0.0100", "70.0 / 0.0500", "0.0380 (0.0380 to 0.0380)"] == rows[0]
    assert "not reached" == rows[1][-1]
    assert ["late", "not run", "80.0 / 0.5000", "0.5000"] == rows[2]


def test_table_of_the_test_has_paired_differences():
    final = [outcome(LORA, 1e-2, s, 70 + s, -0.05) for s in (3, 4, 5)]
    final += [outcome("ball", 1e-3, s, 71 + s, -0.02) for s in (3, 4, 5)]
    header, rows = results_table(final)
    assert {len(header)} == {len(row) for row in rows}
    row = dict(zip(header[:6], rows[1][:6], strict=True))
    assert ("3", "1.0 (1.0 to 1.0)") == (row["seeds"], row["minus LoRA"])
    assert ["0.0200 (0.0200 to 0.0200)", "-0.0300 (-0.0300 to -0.0300)"] == rows[1][6:]


def test_plans_name_the_folders_of_the_user(tmp_path):
    options = peft_comparison.argparse.Namespace(profile="cpu", model=tmp_path, questions=None)
    work = peft_comparison._plan(options).work
    assert (str(tmp_path), None, "cpu") == (work.model, work.questions, work.device)


def test_record_says_what_its_runs_say():
    path = Path(__file__).parents[3] / "docs" / "_static" / "peft-comparison.json"
    record = json.loads(path.read_text("utf-8"))
    runs, final = ([Outcome(**run) for run in record[part]] for part in ("runs", "final"))
    assert record["measured"] == measured(runs)
    found = peft_comparison.Found({}, runs, final).tables()
    assert record["tables"] == {key: markdown_table(*table) for key, table in found.items()}
    first = [o for o in runs if o.seed in record["seeds"]["rates"]]
    assert all(o.lr == peft_comparison._chosen(first, o.method) for o in final)
    assert all(o.holds is not False for o in (*runs, *final))


def test_one_seed_decides_nothing_and_several_do():
    first = [outcome(name, 1e-2, 0, 70.0, kept) for name, kept in ((LORA, -0.2), ("ball", -0.1))]
    runs = [replace(o, seed=s, kept=o.kept + s / 100) for s in (0, 1, 2) for o in first]
    verdicts = []
    for some in (runs[:2], runs):
        rows = [vars(o) | {"holds": True if o.method == "ball" else None} for o in some]
        finding = at_equal_accuracy(bounded)({"runs": rows, "measured": measured(some)})
        assert [("ball", 0.1)] == [(e.label, pytest.approx(e.value)) for e in finding.effects]
        verdicts.append(finding.verdict)
    assert [Verdict.NOT_TESTABLE, Verdict.REPRODUCED] == verdicts
