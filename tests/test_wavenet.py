"""wavenet against exact answers: the receptive field, queues against the plain way, counting by hand."""
import json
import math
import types
import wave

import numpy as np
import pytest
import torch
from harness import finished, run

import data
import wavenet


def model_of(layers=4, speakers=2, seed=0, conditional=True):
    """Random weights everywhere, in float64; `.logits` are those of the last call, in float64 too."""
    torch.manual_seed(seed)
    model = wavenet.WaveNet(8, layers, speakers, conditional).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    torch.nn.init.normal_(model.head[-1].weight, std=0.03)  # else one level would have nearly all of p

    def keep(module, args, output):
        model.logits = output.detach()
    model.head.register_forward_hook(keep)
    return model


def data_of(*lengths):
    """What `tensors` gives of random clips: levels, digits, speakers, lengths."""
    noise = [2 * np.random.default_rng(n).random(n, np.float32) - 1 for n in lengths]
    return wavenet.tensors([(x, i % 10, "ab"[i % 2]) for i, x in enumerate(noise)], ["a", "b"], "cpu")


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_a_logit_depends_on_the_receptive_field_and_on_nothing_else(layers):
    """2^layers samples back; of all, changed one by one, these matter."""
    model, T = model_of(layers), 45
    x, t = torch.randint(256, (1, T)), torch.arange(T)
    model(x)
    base = model.logits
    for changed in range(T):
        other = x.clone()
        other[0, changed] = (other[0, changed] + 100) % 256
        model(other)
        assert torch.equal((model.logits != base).any(2)[0], (changed < t) & (t <= changed + 2**layers))


def test_the_published_model_reaches_2048_samples_back():
    assert 1 + sum(layer.dilation for layer in wavenet.WaveNet().layers) == 2048


@pytest.mark.parametrize("y, speaker", [(None, None), (3, 1)])
def test_log_prob_is_the_product_of_conditionals_taken_one_by_one(y, speaker):
    model, x, T = model_of(), torch.randint(256, (3, 20)), 20
    seen, slow = torch.full_like(x, 77), torch.zeros(3).double()  # 77: what must not be looked at
    for t in range(T):
        model(seen, y, speaker)
        slow += model.logits[:, t].log_softmax(1).gather(1, x[:, t:t + 1])[:, 0]
        seen[:, t] = x[:, t]
    assert torch.allclose(model.log_prob(x, y, speaker).double(), slow, rtol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("y, speaker", [
    (wavenet.NULL, None), (torch.tensor([1, 8, 1]), torch.tensor([0, 1, 2])), (4, 1)])
def test_queues_give_the_same_as_the_plain_way(y, speaker, guidance):
    model, T = model_of(), 41
    torch.manual_seed(5)
    fast = model.sample(3, y, speaker, T, 0.7, guidance)
    torch.manual_seed(5)
    x, length = torch.zeros(3, T, dtype=torch.long), torch.full((3,), T)
    with torch.no_grad():
        for t in range(T):  # all columns so far again for every sample
            model(x[:, :t + 1], wavenet.NULL, speaker, length)
            null = model.logits[:, t]
            model(x[:, :t + 1], y, speaker, length)
            logits = model.logits[:, t] * guidance + null * (1 - guidance)
            x[:, t] = torch.multinomial((logits / 0.7).softmax(1), 1)[:, 0]
    assert fast.shape == (3, T) and torch.equal(fast, wavenet.expand(x))
    assert x.unique().numel() > 10


def test_temperature_0_takes_the_likeliest_level():
    model = model_of()
    sound = model.sample(2, 3, 1, 30, temperature=0)
    x = wavenet.compand(sound)
    model(x, 3, 1)
    assert torch.equal(sound[0], sound[1]) and torch.equal(model.logits.argmax(2), x)


def test_a_sound_without_a_digit_is_of_one_that_is_drawn():
    model = model_of()
    torch.manual_seed(3)
    drawn = model.sample(4, None, 0, 20)
    torch.manual_seed(3)
    y = torch.randint(10, (4,))
    assert torch.equal(drawn, model.sample(4, y, 0, 20))
    share = model.labels(None, 5000).bincount(minlength=11) / 5000
    assert share.tolist() == pytest.approx([0.1] * 10 + [0], abs=0.02)


def test_no_digit_and_no_speaker_are_the_null_labels():
    model, x = model_of(), torch.randint(256, (4, 12))
    assert torch.equal(model.log_prob(x), model.log_prob(x, wavenet.NULL, 2))
    assert torch.equal(model.log_prob(x), model.log_prob(x, torch.full((4,), 10), torch.full((4,), 2)))
    y = torch.arange(20000) % 10
    dropped = wavenet.drop_labels(y, 0.1, 7)
    assert ((dropped == y) | (dropped == 7)).all()
    assert (dropped != y).float().mean().item() == pytest.approx(0.09, abs=0.01)
    assert (wavenet.drop_labels(y, 1.0) == wavenet.NULL).all() and torch.equal(wavenet.drop_labels(y, 0.0), y)


def test_labels_are_different_paths_and_those_in_the_batch_get_gradients():
    model, x = model_of(), torch.randint(256, (4, 12))
    for a, b in [((2,), ()), ((2,), (3,)), ((2, 0), (2, 1)), ((2, 0), (2,))]:
        assert not torch.allclose(model.log_prob(x, *a), model.log_prob(x, *b), rtol=1e-3)
    model.log_prob(x, torch.tensor([2, 2, 10, 5]), torch.tensor([0, 0, 2, 0])).sum().backward()
    assert (model.digit.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [2, 5, 10]
    assert (model.speaker.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [0, 2]


def test_an_unconditional_model_ignores_the_digit_and_hears_the_speaker():
    model, x = model_of(conditional=False), torch.randint(256, (4, 12))
    assert torch.equal(model.log_prob(x, 3), model.log_prob(x, torch.tensor([1, 2, 3, 4])))
    assert not torch.allclose(model.log_prob(x, 3, 0), model.log_prob(x, 3, 1), rtol=1e-3)
    sounds = []
    for y in (3, 7):
        torch.manual_seed(0)
        sounds.append(model.sample(3, y, None, 15))
    assert torch.equal(*sounds)
    model.log_prob(x, 3).sum().backward()
    assert (model.digit.weight.grad != 0).any(1).nonzero()[:, 0].tolist() == [10]


def test_a_padded_clip_scores_what_it_scores_alone():
    model, length = model_of(), torch.tensor([50, 31, 2])
    x, y, speaker = torch.randint(256, (3, 50)), torch.tensor([3, 10, 4]), torch.tensor([0, 1, 2])
    both = model.log_prob(x, y, speaker, length)
    for i, n in enumerate(length):
        assert torch.allclose(both[i], model.log_prob(x[i:i + 1, :n], y[i], speaker[i])[0], rtol=1e-5)
    assert torch.equal(model.log_prob(x), model.log_prob(x, length=torch.full((3,), 50)))


@pytest.mark.parametrize("T, n, total", [
    (64, 64, 64), (64, 20, 20), (20, 20, 40), (100, 100, 100), (1000, 900, 900)])
def test_time_is_relative_to_the_length_of_the_clip(T, n, total):
    """Ticks that get a gradient are t * 32 // length of the n samples that count, whatever the padding."""
    model = model_of(1)
    x, length = torch.randint(256, (1, T)), torch.tensor([total])
    model.log_prob(x, 3, 0, length).sum().backward()
    ticks = (model.tick.weight.grad != 0).any(1).nonzero()[:, 0].tolist()
    assert ticks == sorted({t * 32 // total for t in range(n)})
    assert model.tick.weight.shape[0] == 32


def test_each_sample_has_the_tick_of_its_own_time():
    """Only the tick matters here: logits change where t * 32 // length does, and at no other place."""
    model = model_of(2)
    with torch.no_grad():
        model.embed.weight.zero_()
        for layer in model.layers:  # nothing of h, so nothing of the past
            layer.taps.weight.zero_()
        model(torch.zeros(2, 100, dtype=torch.long), length=torch.tensor([100, 60]))
    for logits, length in zip(model.logits, (100, 60)):
        ticks = [min(t * 32 // length, 31) for t in range(100)]
        same = (logits[:, None] - logits[None]).abs().amax(2) < 1e-9
        assert torch.equal(same, torch.tensor(ticks)[:, None] == torch.tensor(ticks))


def test_an_untrained_model_scores_8_bits_a_sample():
    x = torch.randint(256, (2, 30))
    assert torch.allclose(wavenet.WaveNet(8, 2).log_prob(x), torch.tensor(-30 * 8 * math.log(2)))


def test_the_mu_law_goes_there_and_back_and_is_fine_where_it_is_soft():
    q = torch.arange(256)
    assert torch.equal(wavenet.compand(wavenet.expand(q)), q)
    assert wavenet.compand(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 128, 255]
    assert (wavenet.expand(q).diff() > 0).all()
    assert torch.allclose(wavenet.expand(q), -wavenet.expand(255 - q))
    x = torch.linspace(-1, 1, 10001)
    error = (wavenet.expand(wavenet.compand(x)) - x).abs()
    assert (error <= math.log(256) / 255 * (x.abs() + 1 / 255) * 1.1).all()  # half a level, of this slope
    assert 30 * error[x.abs() < 0.01].max() < error[x.abs() > 0.9].max()


def test_clips_are_cut_into_pieces_the_longest_first():
    torch.manual_seed(0)
    sounds = [(torch.rand(n).mul(2).sub(1).numpy(), digit, speaker) for n, digit, speaker in
              [(45000, 3, "ann"), (100, -1, ""), (2, 4, "ann"), (40001, 9, "cy"), (7, 0, "bob")]]
    x, y, speaker, length = wavenet.tensors(sounds, ["ann", "bob"], "cpu")  # "cy" is in no training clip
    assert x.shape == (7, 20000) and x.dtype == torch.uint8
    assert list(zip(length.tolist(), y.tolist(), speaker.tolist())) == [
        (20000, 9, 2), (20000, 9, 2), (20000, 3, 0), (20000, 3, 0), (5000, 3, 0), (100, 10, 2), (7, 0, 1)]
    whole = wavenet.compand(torch.from_numpy(sounds[0][0]))
    assert torch.equal(torch.cat([x[3], x[2], x[4, :5000]]).long(), whole)
    assert torch.equal(x[6, :7].long(), wavenet.compand(torch.from_numpy(sounds[4][0])))
    assert all((row[n:] == 128).all() for row, n in zip(x, length))  # then silence


def test_nll_is_the_mean_over_all_samples_of_all_clips():
    model, clips = model_of(), data_of(5, 12, 12, 30, 31, 80)
    log_p = [model.log_prob(x[None, :n].long(), y, speaker).item() for x, y, speaker, n in zip(*clips)]
    assert len(log_p) == 6 and wavenet.nll(model, *clips) == pytest.approx(-sum(log_p) / math.log(2) / 170, rel=1e-5)


def test_what_the_evaluation_reports_and_the_sounds_that_it_writes(tmp_path):
    model, test, results, pictures = model_of(), data_of(30, 50, 90), {}, []
    run = types.SimpleNamespace(device="cpu", duration=0.05, guidance=2.0, report=results.update, out=tmp_path,
                                picture=lambda name, *_: pictures.append(name))
    wavenet.evaluate(run, model, test, ["a", "b"])
    x, y, speaker, length = test
    assert results["test NLL, conditional, bits/sample"] == pytest.approx(wavenet.nll(model, *test))
    null = -sum(model.log_prob(x[i:i + 1, :n].long()).item() for i, n in enumerate(length)) / math.log(2) / 170
    assert results["test NLL, unconditional, bits/sample"] == pytest.approx(null, rel=1e-5)
    torch.manual_seed(1)
    sounds = model.sample(10, torch.arange(10), None, 400, 1.0, 2.0)
    written = data.read_wav((tmp_path / "samples.wav").read_bytes(), "samples.wav")
    assert np.abs(written - sounds.flatten().numpy()).max() < 1e-4
    assert {"samples.png", "predictions.png", "predictions.gif"} == set(pictures)


@pytest.mark.slow
@pytest.mark.parametrize("names", [
    ["a", "b"], ["7_anna_1", "3_anna_2", "4_ben_3"], ["7_anna_11", "3_anna_12", "4_ben_13"]])
def test_few_recordings_of_your_own_train_and_are_evaluated(names, tmp_path):
    (tmp_path / "sounds").mkdir()
    for k, name in enumerate(names):
        with wave.open(str(tmp_path / "sounds" / f"{name}.WAV"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes((k + i * i) % 251 for i in range(2400)))
    _, _ = finished(run("wavenet", tmp_path / "out", f"--audio {tmp_path / 'sounds'}"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["source"].startswith("sounds in sounds (md5 ")
    assert math.isfinite(metrics["results"]["test NLL, conditional, bits/sample"])
