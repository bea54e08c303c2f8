"""char_rnn against exact answers: enumeration, the written-out LSTM, the coder's round trips, brute force."""
import itertools
import math
import random

import pytest
import torch

import char_rnn


def model_of(K=5, shape=(12,), layers=2, seed=0):
    torch.manual_seed(seed)
    model = char_rnn.CharRNN(torch.arange(97, 97 + K), shape, 16, layers).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return model


@pytest.mark.parametrize("y", [None, 3])
def test_probabilities_of_all_sequences_sum_to_one(y):
    every = torch.tensor(list(itertools.product(range(3), repeat=6)))
    assert model_of(3).log_prob(every, y).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("layers", [1, 3])
def test_the_written_out_step_is_what_pytorch_computes(layers):
    model, x, y = model_of(layers=layers), torch.randint(5, (4, 20)), torch.tensor([1, 10, 2, 3])
    logits, after = model(x, y)
    state = model.blank(4)
    for t in range(20):
        step, state = model.step(x[:, t], y, state)
        assert torch.allclose(step, logits[:, t])
    assert torch.allclose(state, after)


def test_a_carried_state_is_as_good_as_reading_it_all_at_once():
    model, x = model_of(), torch.randint(5, (3, 30))
    first, state = model(x[:, :11])
    second, _ = model(x[:, 11:], None, state)
    assert torch.allclose(torch.cat([first, second], 1), model(x)[0])


def test_logits_know_only_what_came_before():
    model, x = model_of(), torch.randint(5, (1, 15))
    base, _ = model(x)
    for t in range(15):
        other = x.clone()
        other[0, t] = (other[0, t] + 1) % 5
        changed = (model(other)[0] != base).any(2)[0]
        assert not changed[:t].any() and changed[t:].all()  # logits t are those of symbol t + 1


@pytest.mark.parametrize("y", [None, torch.tensor([1, 8, 1])])
@pytest.mark.parametrize("shape, K", [((40,), 5), ((1, 28, 28), 2)])
def test_sampling_gives_the_same_as_the_plain_way(shape, K, y):
    model = model_of(K, shape)
    torch.manual_seed(5)
    fast = model.sample(3, y)
    torch.manual_seed(5)
    x = torch.full((3, 1), K)
    with torch.no_grad():
        for _ in range(math.prod(shape)):
            drawn = torch.multinomial(model(x, y)[0][:, -1].softmax(1), 1)  # reads all of it again
            x = torch.cat([x, drawn], 1)
    assert fast.shape == (3, *shape) and torch.equal(fast.flatten(1).long(), x[:, 1:])


def test_temperature_top_k_and_prompt():
    model = model_of(shape=(30,))
    given = torch.tensor([[1, 2, 3]])
    cold = model.sample(2, given=given.expand(2, 3), temperature=0.0)
    assert torch.equal(cold[0], cold[1]) and torch.equal(cold[:, :3], given.expand(2, 3))
    assert torch.equal(cold, model.sample(2, given=given.expand(2, 3), top_k=1))
    logits, _ = model(torch.cat([torch.full((1, 1), 5), cold[:1, :-1]], 1))
    assert torch.equal(cold[0, 3:], logits[0, 3:].argmax(1))


def test_class_and_no_class_both_get_gradients():
    model = model_of(2, (1, 28, 28))
    x = (torch.rand(4, 1, 28, 28) < 0.5).double()
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x))
    model.log_prob(x, torch.tensor([2, 2, 10, 5])).sum().backward()
    assert (model.label.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [2, 5, 10]


def test_an_untrained_model_gives_each_symbol_one_in_K():
    x = torch.randint(7, (2, 9))
    assert torch.allclose(char_rnn.CharRNN(torch.arange(7), (9,), 8).log_prob(x), torch.tensor(-9 * math.log(7)))


@pytest.mark.parametrize("symbols, K", [([], 4), ([2], 4), ([0] * 3000, 4), (list(range(200)), 200), ([1, 0] * 500, 2)])
def test_the_coder_gives_back_what_it_was_given(symbols, K):
    """With tables that change at every symbol, some of them as lopsided as can be."""
    rng, tables = random.Random(0), []
    for _ in range(len(symbols)):
        share = [1] * K
        share[rng.randrange(K)] += 2**char_rnn.BITS - K if rng.random() < 0.5 else rng.randrange(2**char_rnn.BITS - K)
        tables.append([0, *itertools.accumulate(share)])
    blob = char_rnn.encode((t[k], t[k + 1]) for t, k in zip(tables, symbols))
    decoder = char_rnn.Decoder(blob)
    assert [decoder.next(t) for t in tables] == symbols
    bits = sum(char_rnn.BITS - math.log2(t[k + 1] - t[k]) for t, k in zip(tables, symbols))
    assert bits <= 8 * len(blob) <= bits + 16 + 1e-3 * len(symbols)


@pytest.mark.parametrize("x", [[], [3], [1] * 100, [0, 1, 2, 3, 4] * 40, "random"])
def test_compressing_with_the_model_is_lossless_and_as_short_as_the_loss_says(x):
    model = model_of()
    x = torch.randint(5, (500,)) if x == "random" else torch.tensor(x, dtype=torch.long)
    blob = char_rnn.compress(model, x)
    assert torch.equal(char_rnn.decompress(model, blob, len(x)), x)
    if len(x) >= 16 and len(x) % 4 == 0:
        parts = x.split(-(-len(x) // 16))  # sixteen readers, each with a part of his own
        bits = -sum(model.log_prob(p[None]).item() for p in parts) / math.log(2)
        assert bits / 8 <= len(blob) <= bits / 8 * 1.001 + 3


@pytest.mark.parametrize("string, corpus", [("", "abc"), ("abcxbcd", "abcd"), ("zzz", "abc"), ("aaaa", "aab"),
                                            ("the cat sat", "a cat that sat at the")])
def test_longest_matches_against_brute_force(string, corpus):
    best = [0] * len(string)
    for a in range(len(string)):
        for b in range(a + 1, len(string) + 1):
            if string[a:b] in corpus:
                best[a:b] = [max(v, b - a) for v in best[a:b]]
    assert char_rnn.longest_matches(string, corpus) == best
