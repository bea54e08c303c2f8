"""The things to break of char_rnn.py, broken: an edit on a copy each, each promised symptom is measured."""
import functools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from broken import chapter, thing, trained

import data

LATE = '"training": sum(self.losses) / len(self.losses)', \
    '"training": sum(self.losses[-50:]) / 50'  # the training loss of the last 50 steps


@functools.cache
def flags():
    """Those of a short run on 40,000 characters of the stand-in text."""
    book = Path(tempfile.mkdtemp(), "book.txt")
    book.write_text(data.text(stand_in="always")[0][:40000], encoding="utf-8")
    return (f"--text {book.as_posix()} --steps 350 --batch-size 32 --length 32 --hidden 64 --lr 0.01 "
            "--dropout 0.5")


def held_out(model):
    """4,000 characters that no training has seen, as symbols."""
    index = {c: i for i, c in enumerate(model.characters.tolist())}
    return torch.tensor([index[ord(c)] for c in data.text(stand_in="always")[0][36000:40000]])


def test_1_predicting_the_character_just_read_leaves_no_loss_and_a_validation_far_above_ln_K():
    assert "put target = sequence[:, :-1]" in thing("char_rnn", 1)
    edit = "sequence[:, :-1].clone(), sequence[:, 1:]", "sequence[:, :-1].clone(), sequence[:, :-1]"
    (_, model, _, whole), (_, broken, _, run) = (trained("char_rnn", LATE, *edits, flags=flags())
                                                 for edits in ([], [edit]))
    usual, curve = whole["curve"][-1], run["curve"][-1]
    assert curve["training"] < 0.3 and usual["training"] > 1.2
    assert usual["validation"] < math.log(model.K) - 1 and curve["validation"] > math.log(model.K) + 2


def test_2_a_step_without_its_memory_babbles_at_the_same_loss(tmp_path):
    edit = "f.sigmoid() * c + ", ""
    assert f'In `step`, drop "{edit[0].strip()}"' in thing("char_rnn", 2)
    whole, model, _, run = trained("char_rnn", LATE, flags=flags())
    torch.save(run, tmp_path / "model.pt")
    module = chapter("char_rnn", edit)
    broken = module.load(tmp_path / "model.pt")
    assert module.nll(broken, held_out(model)) == pytest.approx(whole.nll(model, held_out(model)))
    surprise = []
    for m in (model, broken):
        torch.manual_seed(0)
        surprise.append(-model.log_prob(m.sample(8, 400)).mean().item() / 400)
    assert surprise[1] > surprise[0] + 0.5  # nats per character, under the whole chapter's p(x)


def test_3_dropout_that_stays_on_scores_the_same_model_worse():
    assert "In `main`, drop model.eval()" in thing("char_rnn", 3)
    edit = "            model.eval()\n", ""
    module, model, _, control = trained("char_rnn", LATE, flags=flags())
    _, same, _, run = trained("char_rnn", LATE, edit, flags=flags())
    assert module.nll(same, held_out(model)) == pytest.approx(module.nll(model, held_out(model)), rel=1e-3)
    assert run["curve"][-1]["validation"] > control["curve"][-1]["validation"] + 0.05
