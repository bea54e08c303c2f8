"""wavenet against exact answers: enumeration, receptive field, queues against the plain way, the mu-law."""
import io
import itertools
import math
import types
import wave

import pytest
import torch

import wavenet


def model_of(K=3, shape=(12,), layers=3, stacks=2, speakers=2, seed=0):
    torch.manual_seed(seed)
    model = wavenet.WaveNet(K, shape, 8, layers, stacks, speakers).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("y, speaker", [(None, None), (3, 1)])
def test_probabilities_of_all_sequences_sum_to_one(y, speaker):
    every = torch.tensor(list(itertools.product(range(3), repeat=6)))
    assert model_of().log_prob(every, y, speaker).exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("layers, stacks", [(1, 1), (3, 1), (3, 2), (4, 2)])
def test_a_logit_knows_the_receptive_field_and_nothing_else(layers, stacks):
    """1 + stacks (2^layers - 1) symbols back, by formula; changed one by one, each of them and no other matters."""
    model, T = model_of(2, layers=layers, stacks=stacks), 45
    field = 1 + stacks * (2**layers - 1)
    assert model.receptive_field == field
    x = torch.randint(2, (1, T))
    base = model(x)[0, -1]
    for t in range(T):
        other = x.clone()
        other[0, t] = 1 - other[0, t]
        assert bool((model(other)[0, -1] != base).any()) == (T - 1 - field <= t < T - 1)


@pytest.mark.parametrize("y, speaker", [(None, None), (torch.tensor([1, 8, 1]), torch.tensor([0, 1, 2]))])
@pytest.mark.parametrize("shape, K", [((70,), 256), ((1, 28, 28), 2)])
def test_queues_give_the_same_as_the_plain_way(shape, K, y, speaker):
    model = model_of(K, shape)
    torch.manual_seed(5)
    fast = model.sample(3, y, speaker)
    torch.manual_seed(5)
    x = torch.zeros(3, math.prod(shape), dtype=torch.long)
    with torch.no_grad():
        for t in range(x.shape[1]):  # all columns again for every symbol
            x[:, t] = torch.multinomial(model(x[:, :t + 1], y, speaker)[:, t].softmax(1), 1)[:, 0]
    want = wavenet.expand(x) if len(shape) == 1 else x.view(3, *shape).float()
    assert fast.shape == (3, *shape) and torch.equal(fast, want)


def test_a_padded_clip_scores_what_it_scores_alone():
    model = model_of(256, (50,))
    x = torch.randint(256, (2, 50))
    length = torch.tensor([50, 31])
    both = model.log_prob(x, 3, 0, length)
    assert torch.allclose(both[1], model.log_prob(x[1:, :31], 3, 0)[0])
    assert torch.allclose(both[0], model.log_prob(x[:1], 3, 0)[0])


def test_told_and_not_told_are_different_paths_and_get_gradients():
    model, x = model_of(), torch.randint(3, (4, 12))
    assert not torch.allclose(model.log_prob(x, 2), model.log_prob(x))
    assert not torch.allclose(model.log_prob(x, 2, 0), model.log_prob(x, 2, 1))
    model.log_prob(x, torch.tensor([2, 2, 10, 5]), torch.tensor([0, 0, 2, 0])).sum().backward()
    assert (model.digit.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [2, 5, 10]
    assert (model.speaker.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [0, 2]


def test_an_untrained_model_scores_8_bits_a_sample():
    x = torch.randint(256, (2, 30))
    assert torch.allclose(wavenet.WaveNet(256, (30,), 8, 2, 1).log_prob(x), torch.tensor(-30 * 8 * math.log(2)))


def test_the_mu_law_goes_there_and_back_and_is_fine_where_it_is_soft():
    q = torch.arange(256)
    assert torch.equal(wavenet.compand(wavenet.expand(q)), q)
    assert wavenet.compand(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    x = torch.linspace(-1, 1, 10001)
    error = (wavenet.expand(wavenet.compand(x)) - x).abs()
    assert (error <= math.log(256) / 255 * (x.abs() + 1 / 255) * 1.1).all()  # half a level, of this slope


def test_the_markov_chain_against_counting_by_hand():
    torch.manual_seed(0)
    train, test = torch.randint(4, (300,)), torch.randint(5, (40,))

    def p(history, x):  # order 0 backs off to 1/256, each other to the one below
        if history is None:
            return 1 / 256
        n, weight = len(history), (1, 16, 100)[len(history)]
        seen = [tuple(train[i:i + 3].tolist()) for i in range(len(train) - 2)]
        same = [s for s in seen if s[2 - n:2] == history]
        return (sum(s[2] == x for s in same) + weight * p(history[1:] if n else None, x)) / (len(same) + weight)

    test_list = test.tolist()
    want = [-math.log2(p(tuple(test_list[i - 2:i]), test_list[i])) for i in range(2, 40)]
    assert wavenet.markov(train, test) == pytest.approx(sum(want) / len(want), rel=1e-4)


def test_a_written_wav_file_is_what_was_sampled(tmp_path):
    x = torch.tensor([0.0, 0.5, -1.0, 1.0])
    wavenet.wav(types.SimpleNamespace(out=tmp_path), "7_me", x)
    with wave.open(io.BytesIO((tmp_path / "wav" / "7_me.wav").read_bytes())) as f:
        assert f.getparams()[:4] == (1, 2, 8000, 4)
        assert torch.frombuffer(bytearray(f.readframes(4)), dtype=torch.int16).tolist() == [0, 16383, -32767, 32767]
