"""The things to break in transformer_ar.py: each is done, and shows what the notes promise."""
import torch
from broken import chapter, continued, thing, trained

from transformer_ar import to_tokens

NAME = "transformer_ar"
FLAGS = "--steps 600 --batch-size 32 --width 32 --layers 1 --heads 1 --lr 0.01"
SMALL = (  # digits at half the size, their middle 8 x 8 pixels: 16 positions are learned sooner than 196
    ("x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)",
     "x, y, x_test, y_test, run.source = mnist(); x, x_test = (v[:, :, 6:22:2, 6:22:2] for v in (x, x_test))"),
    ("2 ** patch**2, (28 // patch) ** 2", "2 ** patch**2, (8 // patch) ** 2"),
    ("nn.Embedding(28 // patch, D)", "nn.Embedding(8 // patch, D)"),
    ("tokens.view(len(tokens), 1, 28 // patch, -1)", "tokens.view(len(tokens), 1, 8 // patch, -1)"),
    ('grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}")', "None"))


def test_1_a_position_that_sees_its_own_token_leaves_no_loss_and_samples_repeat_themselves():
    """What it copies is in the next position's input; where there is none, in its own: the token before."""
    assert "put triu(2) for triu(1)" in thing(NAME, 1)
    edit = "-math.inf).triu(1)", "-math.inf).triu(2)"
    loss, again = [], []
    for edits in (SMALL, (*SMALL, edit)):
        module, model, _, run = trained(NAME, *edits, flags=FLAGS)
        loss.append(run["curve"][-1]["validation"])
        torch.manual_seed(0)
        tokens = module.to_tokens(model.sample(200), 2)
        again.append((tokens[:, 1:] == tokens[:, :-1]).float().mean().item())
    assert loss[1] < loss[0] / 3
    assert again[1] > 2 * again[0]


def test_2_keys_and_values_in_one_place_forget_the_class_and_all_but_the_token_before():
    assert "write to cache[0, :, :, 0] and cache[1, :, :, 0]" in thing(NAME, 2)
    edit = "cache[0, :, :, t], cache[1, :, :, t] =", "cache[0, :, :, 0], cache[1, :, :, 0] ="
    whole, model = (chapter(NAME, *edits).Transformer(16, 2, 2) for edits in ((), (edit,)))
    torch.manual_seed(0)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.4)
    model.load_state_dict(whole.state_dict())
    x = (torch.rand(64, 1, 28, 28) < 0.5).float()
    with torch.no_grad():
        assert torch.equal(model.log_prob(x, 3), whole.log_prob(x, 3))
    given = to_tokens(x, 2)[:, :98]
    other, last = given.clone(), given.clone()
    other[:, :-1] = 0
    last[:, -1] = (last[:, -1] + 1) % 16

    def rest(model, y, given):
        torch.manual_seed(0)
        return continued(model, y, given, "multinomial")[:, :, 14:]

    for changed in ((8, given), (3, other)):
        assert torch.equal(rest(model, 3, given), rest(model, *changed))
        assert not torch.equal(rest(whole, 3, given), rest(whole, *changed))
    assert not torch.equal(rest(model, 3, given), rest(model, 3, last))


def test_3_tokens_that_do_not_know_where_they_are_have_a_higher_loss():
    assert "In `positions`, return 0 * the sum" in thing(NAME, 3)
    edit = "return (self.row.weight[:, None]", "return 0 * (self.row.weight[:, None]"
    runs = (trained(NAME, *edits, flags=FLAGS)[3] for edits in (SMALL, (*SMALL, edit)))
    good, bad = (run["curve"][-1]["validation"] for run in runs)
    assert bad > good + 3
