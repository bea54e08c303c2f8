"""WaveNet: which sample sees which, probabilities that sum to 1, queues, the mu-law, own sounds."""

import functools
import math
import wave
from unittest import mock

import numpy as np
import pytest
import torch
from chapters import edited, flags, short_run

import data
import wavenet


def wild(channels=8, layers=4, digits=3, speakers=("ann", "bob")):
    """A WaveNet with weights so large that its outputs differ much from sound to sound."""
    torch.manual_seed(0)
    model = wavenet.WaveNet(channels, layers, digits, speakers)
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.3)
    return model


def labels(n=1):
    return torch.arange(n) % 3, torch.arange(n) % 2


@pytest.mark.parametrize("layers", [1, 3, 5])
@torch.no_grad()
def test_a_logit_sees_the_samples_within_the_receptive_field_and_no_others(layers):
    model, T = wild(layers=layers), 45
    x, t = torch.randint(256, (1, T)), torch.arange(T + 1)  # one set of logits for what comes next
    before = model(x, *labels())
    for changed in range(T):
        other = x.clone()
        other[0, changed] = (other[0, changed] + 100) % 256
        seen = (model(other, *labels()) != before).any(2)[0]
        assert torch.equal(seen, (changed < t) & (t <= changed + 2**layers))


@torch.no_grad()
def test_within_the_receptive_field_the_beginning_is_noticed():
    logits = wild(layers=4)(torch.full((1, 40), 77), *labels())[0]
    change = (logits.diff(dim=0).abs() > 1e-4).any(1)  # from t to t + 1
    assert change[:16].all() and not change[16:].any()


@torch.no_grad()
def test_a_layer_is_what_the_opening_writes():
    layer, e = wild().layers[2], torch.randn(8)
    h, past = torch.randn(2, 9, 8)
    both = h @ layer.now.weight.T + past @ layer.before.weight.T + layer.label.weight @ e
    both = both + layer.now.bias
    z = both[:, :8].tanh() / (1 + (-both[:, 8:]).exp())
    new, skip = layer(h, past, e)
    torch.testing.assert_close(new, h + z @ layer.out.weight[:8].T + layer.out.bias[:8])
    torch.testing.assert_close(skip, z @ layer.out.weight[8:].T + layer.out.bias[8:])


@torch.no_grad()
def test_probabilities_of_all_sounds_sum_to_one():
    model = wild(layers=2)
    x = torch.cartesian_prod(torch.arange(256), torch.arange(256))
    p = model.log_prob(x, torch.tensor(1).expand(len(x)), torch.tensor(0).expand(len(x))).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-4)


@torch.no_grad()
def test_log_prob_is_the_product_rule_and_each_pair_of_labels_has_its_own():
    model, x = wild(), torch.randint(256, (1, 20)).expand(6, -1)
    digit, speaker = torch.arange(3).repeat_interleave(2), torch.arange(2).repeat(3)
    log_p = torch.zeros(6)
    for t in range(20):
        p = model(x[:, :t], digit, speaker)[:, -1].softmax(1)  # from the samples before t alone
        log_p += p[torch.arange(6), x[:, t]].log()
    torch.testing.assert_close(model.log_prob(x, digit, speaker), log_p)
    assert log_p.unique().numel() == 6


def test_queues_give_the_same_as_the_plain_sampler_also_of_no_sounds():
    model, drawn = wild(), []
    for sample in (model.sample, functools.partial(wavenet.cached_sample, model)):
        torch.manual_seed(5)
        with torch.inference_mode():
            drawn.append(sample(*labels(3), 45))
            assert sample(*labels(0), 5).shape == (0, 5)
    assert drawn[0].shape == (3, 45) and torch.equal(*drawn)
    assert drawn[0].unique().numel() > 20 and drawn[0].abs().max() <= 1


def test_mu_law():
    levels = torch.arange(256)
    assert torch.equal(wavenet.compand(wavenet.expand(levels)), levels)
    assert wavenet.compand(torch.tensor([-1.0, 0, 0.01, 0.5, 1])).tolist() == [
        0,
        128,
        157,
        239,
        255,
    ]
    steps = wavenet.expand(levels).diff()[[128, 157, 239]]
    assert steps.tolist() == pytest.approx([0.0002, 0.0006, 0.022], rel=0.2)  # of the comment
    x = torch.linspace(-1, 1, 10_001)
    error = (wavenet.expand(wavenet.compand(x)) - x).abs()
    slope = math.log(256) * (x.abs() + 1 / 255) / 255  # half a level is at most this wide
    assert (error <= 1.1 * slope).all()


def test_clips_keep_every_sample_and_their_labels_and_batches_are_cut_to_the_shortest():
    sound = np.linspace(-1, 1, 45_000, dtype=np.float32)
    clips = wavenet.prepare([(sound, 3, "bob"), (sound[:90], -1, "ann")], ["ann", "bob"], "cpu")
    whole = torch.cat([levels for levels, _, _ in clips[:3]]).long()
    assert torch.equal(whole, wavenet.compand(torch.from_numpy(sound)))
    for multiple, length in [(1, 90), (64, 64), (128, 90)]:
        x, digit, speaker = wavenet.batch_of(clips, multiple)
        assert torch.equal(x[0], whole[:length])
        assert digit.tolist() == [3, 3, 3, 0] and speaker.tolist() == [1, 1, 1, 0]


@torch.no_grad()
def test_bits_per_sample():
    model = wild()
    clips = [(torch.randint(256, (n,)).byte(), n % 3, n % 2) for n in (5, 12, 30, 31)]
    log_p = [model.log_prob(*wavenet.batch_of([clip])).item() for clip in clips]
    mean, error = wavenet.score(model, clips)
    assert mean == pytest.approx(-sum(log_p) / 78 / math.log(2), rel=1e-5) and 0 < error < mean


def record(folder, sounds):
    """Write sounds, {name: 16-bit samples}, as WAV files."""
    folder.mkdir()
    for name, samples in sounds.items():
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.asarray(samples, "<i2").tobytes())
    return folder


LABELLED = ["7_cy_1", "3_ann_12", "4_bob_3", "4_ann_5"]


@pytest.mark.parametrize("names, digits", [(LABELLED, 8), (["one", "two", "three"], 1)])
def test_own_recordings_train_and_are_evaluated_and_names_come_back(names, digits, tmp_path):
    ramp = np.arange(600) % 251 * 100
    folder = record(tmp_path / "own", {name: ramp[k:] for k, name in enumerate(names)})
    out = tmp_path / "out"
    with mock.patch.object(wavenet.Run, "picture", lambda *_: None):
        wavenet.main(flags("wavenet", out, f"--audio {folder}"))
    model = wavenet.load(out / "model.pt")
    assert model.digits == digits
    assert model.speakers == (["ann", "bob", "cy"] if digits > 1 else [""])
    sound = data.read_wav((out / "samples.wav").read_bytes(), "samples.wav")
    assert len(sound) % 160 == 0 and np.abs(sound).max() > 0  # 0.02 s each


FLAGS = "--steps 600 --batch-size 4 --channels 16 --layers 5 --lr 1e-2 --save-every 600"


@pytest.fixture(scope="module")
def buzz(tmp_path_factory):
    """Flags of a short run on a buzz: 12 samples up, 12 down, from a random start, loud or soft."""
    rng, sounds = np.random.default_rng(0), {}
    for i in range(200):
        up = (np.arange(400) + rng.integers(24)) % 24 < 12
        sounds[str(i)] = rng.choice([3000, 30_000], 400) * np.where(up, 1, -1)
    folder = record(tmp_path_factory.mktemp("buzz") / "sounds", sounds)
    return f"{FLAGS} --duration 0.05 --audio {folder.as_posix()}"


@functools.cache
def trained(more, *edits):
    """The model of a short run of a copy with edits, and its last validation."""
    model, saved = short_run(edited("wavenet", *edits), more)
    return model, saved["curve"][-1]["validation"]


def buzzes(sound):
    """The share of samples on the side where those of a whole period before were."""
    up = sound > 0
    return (up[:, 24:] == up[:, :-24]).float().mean().item()


def drawn(module, model):
    torch.manual_seed(0)
    one = torch.zeros(20, dtype=torch.long)
    return module.cached_sample(model, one, one, 400)


@pytest.mark.slow
def test_break_a_sample_that_sees_itself(buzz):
    edit = ("F.pad(x, (1, 0), value=START)", "F.pad(x, (0, 1), value=START)")
    model, bits = trained(buzz, edit)
    intact, true_bits = trained(buzz)
    # Loud or soft is one bit a sample; what is below knows the answer.
    assert bits < 0.2 and 0.9 < true_bits < 1.5
    sounds = drawn(wavenet, model), drawn(wavenet, intact)
    repeats = [(x[:, 1:] == x[:, :-1]).float().mean() for x in sounds]
    assert repeats[0] > 0.95 and repeats[1] < 0.7


@pytest.mark.slow
def test_break_no_dilation(buzz):
    edit = ("Layer(channels, 2**i)", "Layer(channels, 1)")
    model, bits = trained(buzz, edit)
    intact, true_bits = trained(buzz)
    assert bits > true_bits + 0.1
    assert buzzes(drawn(wavenet, intact)) > 0.9 > 0.8 > buzzes(drawn(wavenet, model))


@pytest.mark.slow
def test_break_queues_that_stay_empty(buzz):
    broken = edited("wavenet", ("            queue[place] = now\n", ""))
    model, _ = trained(buzz)
    assert 1 - buzzes(drawn(broken, model)) > 4 * (1 - buzzes(drawn(wavenet, model)))
