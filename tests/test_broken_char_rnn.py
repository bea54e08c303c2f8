"""The things to break of char_rnn.py, broken: each edit is made on a copy, each promised symptom is measured."""
import functools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from broken import chapter, thing, trained

import data

LATE = "sum(values) / len(values), validate()", "sum(values[-50:]) / len(values[-50:]), validate()"  # of the last 50


@functools.cache
def flags():
    """Those of a short run on 40,000 characters of the stand-in text."""
    book = Path(tempfile.mkdtemp(), "book.txt")
    book.write_text(data.text(stand_in="always")[0][:40000], encoding="utf-8")
    return f"--text {book.as_posix()} --steps 350 --batch-size 32 --length 32 --hidden 64 --lr 0.01 --dropout 0.5"


def test_1_foretelling_the_symbol_just_read_leaves_no_loss_and_repeats_it_for_ever():
    edit = "x[i[:, :-1]], x[i[:, 1:]]", "x[i[:, :-1]], x[i[:, :-1]]"
    assert "put x[i[:, :-1]] for x[i[:, 1:]]" in thing("char_rnn", 1)
    curve, share = [], []
    for edits in ([], [edit]):
        _, model, _, run = trained("char_rnn", LATE, *edits, flags=flags())
        curve.append(run["curve"][-1])
        prompt = torch.tensor([[model.codes.tolist().index(ord("A"))]])
        share.append((model.sample(1, given=prompt, temperature=0) == prompt).float().mean())
    (_, usual, usual_valid), (_, loss, valid) = curve
    assert loss < 0.3 and usual > 1.5
    assert usual_valid < math.log(model.K) - 1 and valid > math.log(model.K) + 2
    assert share[0] < 0.2 and share[1] == 1


def test_2_a_step_without_its_memory_babbles_and_compresses_badly_at_the_same_loss(tmp_path):
    edit = "f.sigmoid() * c + ", ""
    assert f"In `step`, drop `{edit[0].strip()}`" in thing("char_rnn", 2)
    whole, model, _, run = trained("char_rnn", LATE, flags=flags())
    torch.save(run, tmp_path / "model.pt")
    module = chapter("char_rnn", edit)
    broken = module.load(tmp_path / "model.pt")
    held_out = data.text(stand_in="always")[0][36000:40000]
    x = torch.tensor([model.codes.tolist().index(ord(c)) for c in held_out])
    nats = [-m.log_prob(x.view(16, -1)).sum().item() for m in (model, broken)]
    assert nats[1] == pytest.approx(nats[0])
    promised = nats[0] / math.log(2) / 8
    size = [len(code.compress(m, x)) for code, m in ((whole, model), (module, broken))]
    assert size[0] < 1.01 * promised and size[1] > 1.05 * promised
    surprise = []
    for m in (model, broken):
        torch.manual_seed(0)
        surprise.append(-model.log_prob(m.sample(8)).mean().item() / model.T)
    assert surprise[1] > surprise[0] + 0.5  # nats per character, as the whole chapter reads them


def test_3_dropout_that_stays_on_scores_the_same_model_worse():
    edit = "model.eval()\n        parts = symbols", "parts = symbols"
    assert "drop model.eval()" in thing("char_rnn", 3)
    _, _, usual, control = trained("char_rnn", LATE, flags=flags())
    _, _, same, run = trained("char_rnn", LATE, edit, flags=flags())
    assert same["test nats/char"] == pytest.approx(usual["test nats/char"], rel=1e-3)
    assert run["curve"][-1][2] > control["curve"][-1][2] + 0.05
