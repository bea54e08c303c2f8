"""The things to break in transformer_ar.py: each is done, and shows what the opening promises."""
import torch
from broken import chapter, thing, trained

NAME = "transformer_ar"
TEXT = "--data text --steps 600 --batch-size 32 --length 16 --width 32 --layers 1 --heads 1 --lr 0.01"
DIGITS = "--steps 150 --batch-size 8 --width 32 --layers 1 --heads 1 --lr 0.01 --near 1"


def test_1_a_token_that_finds_itself_has_no_loss_and_the_sampler_repeats_itself():
    edit = "device=q.device).triu(1)", "device=q.device).triu(2)"
    assert "put triu(2) for triu(1), and set --device cpu" in thing(NAME, 1)
    _, whole, good, _ = trained(NAME, flags=TEXT)  # of text, since 16 places are learned sooner than 196
    _, model, bad, _ = trained(NAME, edit, flags=TEXT)
    x = [m.sample(200) for m in (model, whole)]
    again = [(v[:, 1:] == v[:, :-1]).float().mean().item() for v in x]  # the share of symbols that repeat the last one
    assert bad["test nats/char"] < good["test nats/char"] / 3
    assert again[0] > 3 * again[1]


def test_2_keys_kept_in_one_place_forget_the_class_and_all_but_the_neighbours():
    edit = "kept[0, :, :, t], kept[1, :, :, t] =", "kept[0, :, :, 0], kept[1, :, :, 0] ="
    assert "kept[0, :, :, 0] and kept[1, :, :, 0]" in thing(NAME, 2)
    whole, model = (chapter(NAME, *edits).Transformer(D=16, layers=2, heads=2) for edits in ((), (edit,)))
    torch.manual_seed(0)
    for p in whole.parameters():
        torch.nn.init.normal_(p, std=0.4)
    model.load_state_dict(whole.state_dict())
    given = torch.randint(16, (8, 98))
    assert torch.equal(model.log_prob(given), whole.log_prob(given))
    other = given.clone()
    other[:, :-max(whole.near)] = 0  # what is left are the neighbours of tokens to come

    def rest(model, y, given):
        torch.manual_seed(0)
        return model.sample(8, y, given=given)[:, :, 14:]

    for changed in ((8, given), (3, other)):
        assert torch.equal(rest(model, 3, given), rest(model, *changed))
        assert not torch.equal(rest(whole, 3, given), rest(whole, *changed))


def test_3_tokens_that_are_not_told_their_places_foretell_worse():
    edit = "self.symbol(before + table).sum(2) + self.place(t) + first", "self.symbol(before + table).sum(2) + first"
    assert "drop `+ self.place(t)`, and set --near 1" in thing(NAME, 3) and "--near 1" in DIGITS
    good, bad = (trained(NAME, *edits, flags=DIGITS)[2] for edits in ((), (edit,)))
    nats = "test -log p(x), nats, network not told the class"
    assert bad[nats] > good[nats] + 5
