"""char_rnn against exact answers: enumeration, PyTorch's LSTM, brute force, the plain way of sampling."""
import itertools
import json
import math
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from harness import ROOT, finished, flags, run

import char_rnn


def model_of(K=5, layers=2, seed=0):
    """Random weights everywhere, in float64, from symbols "a", "b", ...; dropout is set, and off."""
    torch.manual_seed(seed)
    model = char_rnn.CharRNN(torch.arange(97, 97 + K), 12, layers, 0.5).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)

    def keep(module, args, output):
        model.logits = output.detach()
    model.out.register_forward_hook(keep)
    return model


def plain(model, x):
    """Logits after each of x (B, T), in float64, and the state, by PyTorch's LSTM over all of x."""
    assert all(isinstance(layer, torch.nn.LSTM) for layer in model.layers)
    _, state = model(x)
    return model.logits, state


@pytest.mark.parametrize("layers", [1, 2])
def test_probabilities_of_all_texts_sum_to_one(layers):
    every = torch.tensor(list(itertools.product(range(3), repeat=6)))
    p = model_of(3, layers).log_prob(every).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5) and p.max() > 10 * p.min()


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_written_out_step_is_what_pytorch_computes(layers):
    model, x = model_of(layers=layers), torch.randint(6, (4, 20))  # 5 marks the beginning
    state = torch.zeros(2, layers, 4, 12, dtype=torch.float64)
    for t in range(20):
        step, state = model.step(x[:, t], state)
        logits, after = plain(model, x[:, :t + 1])
        assert torch.allclose(step, logits[:, -1], atol=1e-12)
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(state, after))
    assert torch.allclose(model(x)[0], plain(model, x)[0].float(), atol=1e-6)


def test_a_carried_state_is_as_good_as_reading_it_all_at_once():
    model, x = model_of(), torch.randint(5, (3, 30))
    first, state = model(x[:, :11])
    second, _ = model(x[:, 11:], state)
    assert torch.allclose(torch.cat([first, second], 1), model(x)[0], atol=1e-6)
    assert not torch.allclose(second, model(x[:, 11:])[0], atol=1e-2)


def test_logits_depend_on_what_came_before_and_on_all_of_it():
    model, x = model_of(), torch.randint(5, (1, 12))
    base = plain(model, x)[0]
    for t in range(12):
        other = x.clone()
        other[0, t] = (other[0, t] + 1) % 5
        changed = (plain(model, other)[0] != base).any(2)[0]
        assert not changed[:t].any() and changed[t:].all()  # logits t are those of symbol t + 1


def test_log_prob_reads_the_start_symbol_first_and_never_the_last_character():
    model, x = model_of(), torch.tensor([[2, 0, 0, 2, 4]])
    model.log_prob(x).sum().backward()
    assert (model.embed.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [0, 2, 5]
    logits = plain(model, torch.tensor([[5, 2, 0, 0, 2]]))[0].log_softmax(2)
    by_hand = sum(logits[0, t, k] for t, k in enumerate(x[0].tolist()))
    assert model.log_prob(x).item() == pytest.approx(by_hand.item(), rel=1e-5)


@pytest.mark.parametrize("N, streams", [(64, 16), (131, 16), (40, 1), (50, 3)])
def test_nll_is_that_of_each_stream_whatever_the_chunk(N, streams):
    model, x = model_of(), torch.randint(5, (N,))
    parts = x[:N // streams * streams].view(streams, -1)
    want = -model.log_prob(parts).double().mean().item() / parts.shape[1]
    for chunk in (1, 3, parts.shape[1], 500):
        assert char_rnn.nll(model, x, streams, chunk) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("prompt", [(), (1, 4, 4)])
def test_sampling_gives_the_same_as_the_plain_way(prompt, temperature):
    model = model_of()
    torch.manual_seed(5)
    fast = model.sample(3, 40, prompt, temperature)
    torch.manual_seed(5)
    x = torch.full((3, 1), 5)
    with torch.no_grad():
        for t in range(40):
            logits = plain(model, x)[0][:, -1]  # reads all of it again
            drawn = torch.multinomial((logits / temperature).softmax(1), 1)
            x = torch.cat([x, torch.full((3, 1), prompt[t]) if t < len(prompt) else drawn], 1)
    assert fast.shape == (3, 40) and torch.equal(fast, x[:, 1:])
    assert len({tuple(row) for row in fast.tolist()}) == 3


def test_sampling_follows_p_of_x():
    """All nine texts of two characters come as often as log_prob says."""
    model = model_of(3)
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    p = model.log_prob(every).exp()
    seen = (model.sample(4000, 2) @ torch.tensor([3, 1])).bincount(minlength=9) / 4000
    assert ((seen - p).abs() <= 4 * (p * (1 - p) / 4000).sqrt()).all()


def test_temperature_0_and_top_k_1_take_the_likeliest_character():
    model, prompt = model_of(), [1, 2, 3]
    cold = model.sample(2, 30, prompt, temperature=0)
    assert cold[:, :3].tolist() == [prompt] * 2 and torch.equal(cold[0], cold[1])
    assert torch.equal(cold, model.sample(2, 30, prompt, top_k=1))
    logits = plain(model, F.pad(cold[:, :-1], (1, 0), value=5))[0]
    assert torch.equal(cold[:, 3:], logits[:, 3:].argmax(2))


@pytest.mark.parametrize("top_k", [2, 4, 5, 100])
def test_top_k_draws_among_the_k_likeliest(top_k):
    model = model_of()
    x = model.sample(100, 20, top_k=top_k)
    logits = plain(model, F.pad(x[:, :-1], (1, 0), value=5))[0]
    rank = (logits > logits.gather(2, x[:, :, None])).sum(2)  # 0: it was the likeliest
    assert rank.unique().tolist() == list(range(min(top_k, 5)))


def test_an_untrained_model_gives_each_character_one_in_K():
    x = torch.randint(7, (2, 9))
    model = char_rnn.CharRNN(torch.arange(7), 8)
    assert torch.allclose(model.log_prob(x), torch.tensor(-9 * math.log(7)))
    assert char_rnn.nll(model, torch.randint(7, (100,))) == pytest.approx(math.log(7), rel=1e-6)


def test_symbols_are_spelt_by_their_unicode_numbers():
    model = char_rnn.CharRNN(torch.tensor([10, 97, 0x4E16, 0x1F388]), 4)
    assert model.spell(torch.tensor([1, 0, 3, 2, 2])) == "a\n\U0001F388世世"


CASES = [("", "abc"), ("abcxbcd", "abcd"), ("zzz", "abc"), ("aaaa", "aab"), ("the cat sat", "a cat that sat")]
CASES += [("".join(random.Random(i).choices("ab", k=30)), "".join(random.Random(99).choices("ab", k=40)))
          for i in range(3)]


@pytest.mark.parametrize("string, corpus", CASES)
def test_longest_matches_against_brute_force(string, corpus):
    best = [0] * len(string)
    for a, b in itertools.combinations(range(len(string) + 1), 2):
        if string[a:b] in corpus:
            best[a:b] = [max(v, b - a) for v in best[a:b]]
    assert char_rnn.longest_matches(string, corpus) == best


def test_a_page_shows_every_character_in_its_place_on_a_shade_of_its_own():
    string = "ab\n" + "x" * 85 + "\t$z\n" + "y" * 80 + "\nend"
    rows = ["ab\n", "x" * 80, "xxxxx\t$z\n", "y" * 80, "\n", "end"]
    assert "".join(rows) == string
    places = [(r, c) for r, row in enumerate(rows) for c in range(len(row))]
    ax = char_rnn.page(string, "a title", list(range(len(string)))).axes[0]
    shown = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in ax.texts}
    want = {place: c if c.isprintable() else " " for place, c in zip(places, string)}
    assert {place: c for place, c in shown.items() if c != " "} == {p: c for p, c in want.items() if c != " "}
    shades = torch.tensor(ax.images[0].get_array().filled(math.nan))
    assert [shades[place].item() for place in places] == list(range(len(string)))
    assert shades.isnan().sum() == shades.numel() - len(string)
    assert not char_rnn.page(string, "a title").axes[0].images


@pytest.mark.slow
def test_a_text_with_no_newline_and_letters_of_other_scripts_trains_without_a_warning(tmp_path):
    (tmp_path / "text.txt").write_text("Съешь же ещё этих мягких 寿司 " * 200, encoding="utf-8")
    printed, errors = finished(run("char_rnn", tmp_path / "out", f"--text {tmp_path / 'text.txt'}"))
    assert "Glyph" not in printed + errors and (tmp_path / "out" / "samples.png").exists()


@pytest.mark.slow
def test_a_long_text_is_evaluated_in_little_memory(tmp_path):
    """Ten million characters; evaluated at once, they took 8.6 GB."""
    fox = "The quick brown fox jumps over the lazy dog.\n"
    (tmp_path / "text.txt").write_text(fox * 220_000, encoding="utf-8")
    meter = [sys.executable, str(ROOT / "benchmarks" / "meter.py"), str(tmp_path / "meter"), "char_rnn.py"]
    run_flags = flags("char_rnn", tmp_path / "out", f"--text {tmp_path / 'text.txt'}")
    assert subprocess.run([*meter, *run_flags], cwd=ROOT).returncode == 0
    assert json.loads((tmp_path / "meter" / "run.json").read_text())["peak memory, MB"] < 2500
