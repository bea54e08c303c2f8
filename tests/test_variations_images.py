"""Three variations against sums over all outcomes, autograd, quadrature, the plain way of sampling."""
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from harness import ROOT, finished, refused, small

import transformer_ar
from variations import moons, pixelcnn_pp, transformer_text

LEVELS = ["logistics", "softmax"]
TINY = {
    "pixelcnn_pp": "--batch-size 8 --channels 4 --layers 1",
    "moons": "--batch-size 8 --channels 4 --couplings 2",
    "transformer_text": "--batch-size 4 --width 8 --layers 1 --heads 2 --length 16 --stand-in always",
}


def start(name, out, *more):
    command = [sys.executable, "-m", f"variations.{name}", *TINY[name].split(), "--device", "cpu"]
    return subprocess.Popen([*command, "--out", str(out), *more], cwd=ROOT, env=small(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def scatter(model, std=0.4, seed=0):
    """Random weights everywhere, in float64: an untrained model would hide mistakes behind its zeros."""
    torch.manual_seed(seed)
    for p in model.double().parameters():
        torch.nn.init.normal_(p, std=std)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name, more, pictures", [
    ("pixelcnn_pp", [], ["levels.png"]), ("pixelcnn_pp", ["--levels", "softmax"], ["levels.png"]),
    ("moons", [], ["layers.gif"]), ("transformer_text", [], ["context.png"])])
def test_a_tiny_run_writes_its_results_and_pictures(name, more, pictures, tmp_path):
    out, _ = finished(start(name, tmp_path / "a", "--steps", "3", *more))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == name and metrics["step"] == 3
    assert all(math.isfinite(value) for value in (metrics["results"] | metrics["baselines"]).values())
    for file in ["samples.png", "curve.png", *pictures]:
        assert (tmp_path / "a" / file).stat().st_size > 1000
    assert "3/3" in out and list(metrics["results"])[0] in out


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_left(tmp_path):
    finished(start("moons", tmp_path / "a", "--steps", "2"))
    finished(start("moons", tmp_path / "a", "--steps", "4", "--resume"))
    saved = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    assert saved["name"] == "moons" and [point["step"] for point in saved["curve"]] == [2, 4]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_faults_end_with_status_2_and_the_default_folder_has_the_variation_s_name(name, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused(start(name, tmp_path / "file"))
    text, _ = finished(start(name, tmp_path, "--help"))
    assert f"out/{name}" in " ".join(text.split())


@pytest.mark.slow
@pytest.mark.parametrize("more, words", [
    (["--heads", "3"], "multiple"), (["--text", "README.md", "--length", "9999"], "characters")])
def test_texts_and_heads_that_do_not_fit_are_refused(more, words, tmp_path):
    assert words in refused(start("transformer_text", tmp_path, *more))


# pixelcnn_pp

def grey(levels, layers=1):
    return scatter(pixelcnn_pp.GreyPixelCNN(4, layers, levels=levels))


def outputs(levels, seed=0):
    """The outputs (1, 30 or 256) of a pixel; logistics are narrow, and have mass in the outer bins."""
    torch.manual_seed(seed)
    output = torch.randn(1, 256 if levels == "softmax" else 30, dtype=torch.float64)
    if levels == "logistics":
        output[0, 10:20] = torch.linspace(-1.01, 1.01, 10)
        output[0, 20:] -= 2
    return output


def level_probabilities(model, output):
    x = torch.arange(256, dtype=torch.float64).view(-1, 1, 1, 1) / 255
    return model.log_factors(output[:, :, None, None].expand(256, -1, 1, 1), x).exp().flatten()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", LEVELS)
def test_probabilities_of_the_256_levels_sum_to_one(levels, seed):
    p = level_probabilities(grey(levels), outputs(levels, seed))
    assert p.sum().item() == pytest.approx(1, abs=1e-9) and (p > 0).all()


def test_a_level_is_what_a_mixture_of_logistics_puts_into_its_bin():
    """By differences of the distribution function at the edges of the bins, (2k − 255 ± 1) / 255."""
    output = outputs("logistics")
    w, mean, s = output[0, :10].softmax(0), output[0, 10:20], (output[0, 20:] - 2).exp()
    edge = (2 * torch.arange(257, dtype=torch.float64) - 256) / 255
    cdf = (w * ((edge[:, None] - mean) / s).sigmoid()).sum(1)
    cdf[0], cdf[-1] = 0, 1
    assert torch.allclose(level_probabilities(grey("logistics"), output), cdf.diff(), atol=1e-12)


def test_far_away_and_narrow_logistics_have_finite_log_probabilities_and_gradients():
    output = torch.zeros(256, 30, 1, 1)
    output[:, 10:15], output[:, 15:20], output[:, 20:] = 20, -20, -50
    output.requires_grad_()
    log_p = grey("logistics").log_factors(output, torch.arange(256).view(-1, 1, 1, 1) / 255)
    log_p.sum().backward()
    assert log_p.isfinite().all() and output.grad.isfinite().all()


@pytest.mark.parametrize("levels", LEVELS)
def test_drawn_pixels_come_as_often_as_they_are_likely(levels):
    model, output = grey(levels), outputs(levels)
    p, x = level_probabilities(model, output), model.draw(output.expand(200000, -1))
    level = (255 * x).round().long()
    assert torch.allclose(level / 255, x.float())
    assert (level.bincount(minlength=256) / len(x) - p).abs().sum() < 0.05  # expected: 0.03


@pytest.mark.parametrize("levels", LEVELS)
def test_probabilities_of_all_images_of_two_grey_pixels_sum_to_one(levels):
    x = torch.cartesian_prod(torch.arange(256), torch.arange(256)).double().view(-1, 1, 1, 2) / 255
    with torch.no_grad():
        log_p = grey(levels).log_prob(x, 3)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
    assert log_p.view(256, 256).exp().sum(1).log().std() > 1e-3  # that of the first pixel is not uniform


@pytest.mark.parametrize("levels", LEVELS)
def test_sampling_pixels_gives_the_same_as_the_plain_way(levels):
    model, y = grey(levels), torch.tensor([1, 8])
    torch.manual_seed(5)
    fast = model.sample(2, y)
    torch.manual_seed(5)
    x = torch.zeros(2, 1, 28, 28, dtype=torch.float64)
    with torch.no_grad():
        for i in range(784):
            r, c = divmod(i, 28)
            x[:, 0, r, c] = model.draw(model(x[:, :, :r + 1], y)[:, :, r, c])  # a pass over all rows so far
    assert fast.shape == (2, 1, 28, 28) and torch.equal(fast, x)
    assert len(fast.unique()) > 50


# moons

def flow(std=0.3):
    return scatter(moons.Flow(4, 5), std)


@pytest.mark.parametrize("first", range(6))
def test_log_det_of_every_stage_against_the_full_jacobian(first):
    model, x = flow(), torch.randn(5, 2, dtype=torch.float64)
    for point, log_det in zip(x, model(x, first)[1]):
        J = torch.autograd.functional.jacobian(lambda v: model(v[None], first)[0][0], point)
        assert torch.linalg.slogdet(J)[1].item() == pytest.approx(log_det.item(), abs=1e-5)
    assert first == 5 or model(x, first)[1].abs().max() > 0.1


def integral(log_density, edge=12, side=241):
    line = torch.linspace(-edge, edge, side, dtype=torch.float64)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(-1, 2)
    with torch.no_grad():
        total = sum(log_density(part).exp().sum().item() for part in places.split(5000))
    return total * (2 * edge / (side - 1)) ** 2


@pytest.mark.parametrize("first", [0, 3, 5])
def test_the_density_of_every_stage_integrates_to_one(first):
    model = flow(0.2)
    assert integral(lambda x: model.log_prob(x, first)) == pytest.approx(1, abs=1e-3)


def test_the_data_s_own_density_integrates_to_one_and_is_that_of_the_points():
    assert integral(moons.true_log_prob, 2.5, 126) == pytest.approx(1, abs=1e-6)
    x = moons.moons(100000, 7)
    line = (torch.arange(125, dtype=torch.float64) + 0.5) / 25 - 2.5  # the middles of cells 0.04 wide
    places = torch.stack(torch.meshgrid(line, line, indexing="ij"), 2).view(-1, 2)
    p = torch.cat([moons.true_log_prob(part).exp() for part in places.split(5000)])
    p = p.view(25, 5, 25, 5).sum((1, 3)) / 25**2  # of 25 x 25 squares
    square = ((x + 2.5) * 5).long()
    seen = (square[:, 0] * 25 + square[:, 1]).bincount(minlength=625).view(25, 25) / len(x)
    assert (seen - p).abs().sum() < 0.05


@pytest.mark.parametrize("first", [0, 3])
def test_there_and_back(first):
    model, x = flow(), torch.randn(50, 2, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(model.inverse(model(x, first)[0], first), x, atol=1e-5)
        assert not torch.allclose(model(x, first)[0], x, atol=0.1)


def test_an_untrained_flow_is_the_identity():
    x = torch.randn(9, 2)
    z, log_det = moons.Flow(4, 3)(x)
    assert torch.equal(z, x) and (log_det == 0).all()


# transformer_text

@pytest.fixture(autouse=True)
def symbols_stay_symbols(monkeypatch):
    for name in ("to_tokens", "to_images"):
        monkeypatch.setattr(transformer_ar, name, lambda x, patch: x)


def language(K=3, T=4, layers=2):
    return scatter(transformer_text.TextTransformer(torch.arange(97, 97 + K), T, 8, layers, 2, dropout=0.5))


def test_probabilities_of_all_texts_sum_to_one():
    model = language()
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    assert model.log_prob(every).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_position_depends_on_all_characters_before_it_and_on_no_other():
    model, x = language(K=5, T=12), torch.randint(5, (1, 12))
    base = model(x)
    for t in range(12):
        other = x.clone()
        other[0, t] = (other[0, t] + 1) % 5
        changed = (model(other) != base).any(2)[0]
        assert not changed[:t + 1].any() and changed[t + 1:].all()


def test_sampling_characters_gives_the_same_as_the_plain_way():
    model = language(K=5, T=40)
    torch.manual_seed(5)
    fast = model.sample(3, transformer_ar.NULL)  # None would draw classes first
    torch.manual_seed(5)
    x = torch.zeros(3, 40, dtype=torch.long)
    with torch.no_grad():
        for t in range(40):
            x[:, t] = torch.multinomial(model(x)[:, t].double().softmax(1), 1)[:, 0]  # a whole pass each
    assert torch.equal(fast, x) and len(fast.unique()) == 5


def test_a_longer_text_goes_on_by_what_stands_before():
    model = language(K=5, T=8)
    torch.manual_seed(5)
    text = model.continued(19)
    torch.manual_seed(5)
    x = model.sample(1)
    with torch.no_grad():
        while x.shape[1] < 19:  # the last seven characters, and any symbol where the next is asked for
            p = model(torch.cat([x[:, -7:], torch.ones(1, 1).long()], 1))[:, 7].softmax(1)
            x = torch.cat([x, torch.multinomial(p, 1)], 1)
    assert torch.equal(text, x[0]) and text.shape == (19,)
    assert model.spell(torch.tensor([0, 2, 4])) == "ace"


@pytest.mark.parametrize("stride", [3, 6])
def test_the_surprisal_of_a_text_character_by_character(stride):
    model, x = language(K=5, T=6), torch.randint(5, (20,))
    found = model.surprisal(x, stride)
    starts = range(0, 15, stride)
    assert found.shape == (len(starts), 6)
    for row, first in zip(found, starts):
        for t in range(6):
            known = torch.zeros(1, 6, dtype=torch.long)  # what comes later is all 0: it must not matter
            known[0, :t] = x[first:first + t]
            expected = -model(known)[0, t].log_softmax(0)[x[first + t]].item()
            assert row[t].item() == pytest.approx(expected, abs=1e-5)


def test_dropout_acts_in_training_alone_and_an_untrained_model_gives_each_character_1_in_k():
    model, x = language(), torch.tensor([[0, 1, 2, 1]])
    assert torch.equal(model.log_prob(x), model.log_prob(x))
    model.train()
    assert not torch.equal(model.log_prob(x), model.log_prob(x))
    plain = transformer_text.TextTransformer(torch.arange(7), 4, 8, 1, 2)
    bias = plain.head.bias.detach()
    assert torch.allclose(plain(x), bias.expand(1, 4, 7), atol=1e-6)
