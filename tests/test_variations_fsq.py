"""Finite scalar quantisation against closed forms, all codes of small grids, and the sum over all codes."""
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from harness import ROOT, finished, refused, small

import data
import vqvae
from variations import fsq

GRIDS = [(8, 4, 4), (5, 5, 5), (3, 4), (7,), (3, 3, 3, 3), (6, 3, 5)]
LEVELS = [3, 4, 5, 6, 7, 8, 16, 17]


def start(out, *more):
    command = [sys.executable, "-m", "variations.fsq", "--device", "cpu", "--out", str(out)]
    tiny = ["--batch-size", "8", "--hidden", "16", "--codes", "4"]
    return subprocess.Popen([*command, *tiny, *more], cwd=ROOT, env=small(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def integers(levels):
    """The L levels of one channel, before they are divided by ⌊L/2⌋."""
    return list(range(-(levels // 2), (levels + 1) // 2))


def model_of(levels=(3, 4), codes=2, std=0.3):
    """Random weights everywhere, in float64: an untrained prior would hide mistakes behind its zeros."""
    torch.manual_seed(0)
    model = fsq.FSQVAE(12, codes, levels).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


# The bounding function

@pytest.mark.parametrize("L", LEVELS)
def test_the_bounding_function_is_the_equation_of_the_docstring(L):
    lattice, h, s = fsq.FSQ([L]).double(), (L - 1) / 2, 0.5 * (L % 2 == 0)
    for z in (-30.0, -2.0, -0.4, 0.0, 0.1, 1.7, 25.0):
        f = h * math.tanh(z + math.atanh(s / h)) - s
        assert lattice.bound(torch.tensor([z], dtype=torch.float64)).item() == pytest.approx(f / (L // 2), abs=1e-12)


@pytest.mark.parametrize("L", LEVELS)
def test_the_bounds_are_the_outer_levels_and_zero_stays_zero(L):
    lattice = fsq.FSQ([L]).double()
    low, zero, high = lattice.bound(torch.tensor([[-1e4], [0], [1e4]], dtype=torch.float64)).flatten().tolist()
    assert zero == pytest.approx(0, abs=1e-15)
    assert [low, high] == [pytest.approx(k / (L // 2), abs=1e-15) for k in (-(L // 2), L - L // 2 - 1)]


@pytest.mark.parametrize("L", LEVELS)
def test_the_gradient_of_the_bounding_function_is_its_closed_form(L):
    """f′(z) = h (1 − tanh²) = h − (f + s)² / h, here from f itself; and against finite differences."""
    lattice, h, s = fsq.FSQ([L]).double(), (L - 1) / 2, 0.5 * (L % 2 == 0)
    z = torch.linspace(-4, 4, 41, dtype=torch.float64)[:, None].requires_grad_()
    gradient, = torch.autograd.grad(lattice.bound(z).sum(), z)
    f = lattice.bound(z).detach() * (L // 2)
    assert torch.allclose(gradient, (h - (f + s).square() / h) / (L // 2), atol=1e-12)
    with torch.no_grad():
        difference = (lattice.bound(z + 1e-5) - lattice.bound(z - 1e-5)) / 2e-5
    assert torch.allclose(gradient, difference, atol=1e-8) and gradient.max() > 0.7


def test_the_straight_through_gradient_is_that_of_the_bounding_function_times_the_decoder_s():
    """∂ log p(x | z, y) / ∂z = (∂ log p / ∂e) f′(z) / ⌊L/2⌋: rounding has gradient 1."""
    model, x, y = model_of((5, 4, 3)), torch.rand(6, 1, 28, 28, dtype=torch.float64).round(), torch.arange(6)
    z = (2 * torch.randn(6, 2, 3, dtype=torch.float64)).requires_grad_()
    log_likelihood, log_prior, code = model.terms(x, model.codebook.bound(z), y)
    e = model.codebook.entry[code].clone().requires_grad_()
    at_e = vqvae.bernoulli_log_prob(x, model.decode(e, y))
    assert torch.allclose(log_likelihood, at_e, rtol=1e-5)
    at_code, = torch.autograd.grad(at_e.sum(), e)
    L = torch.tensor([5.0, 4.0, 3.0], dtype=torch.float64)
    h, s = (L - 1) / 2, torch.tensor([0, 0.5, 0], dtype=torch.float64)
    slope = h * (z + (s / h).atanh()).cosh().pow(-2) / (L // 2)
    gradient, = torch.autograd.grad(log_likelihood.sum(), z, retain_graph=True)
    assert at_code.abs().min() > 1e-3 and torch.allclose(gradient, at_code * slope.detach(), rtol=1e-4, atol=1e-6)
    assert torch.autograd.grad(log_prior.sum(), z, allow_unused=True)[0] is None  # rounding has none there


def test_the_bound_reaches_every_weight_of_the_encoder():
    model, x = model_of(), torch.rand(6, 1, 28, 28, dtype=torch.float64).round()
    model.elbo(x, torch.arange(6)).sum().backward()
    assert all((p.grad != 0).any() for p in model.encoder.parameters())
    assert not list(model.codebook.parameters())  # nothing of the grid is learned


# The grid

@pytest.mark.parametrize("L", LEVELS)
def test_a_channel_takes_exactly_l_values_and_rounds_to_the_nearest(L):
    lattice = fsq.FSQ([L]).double()
    f = lattice.bound(torch.linspace(-20, 20, 100001, dtype=torch.float64)[:, None])
    index = lattice.nearest(f)
    assert index[0] == 0 and (index.diff() >= 0).all() and index.unique().tolist() == list(range(L))
    taken = (lattice.entry[index, 0] * (L // 2)).unique()
    assert torch.allclose(taken, torch.tensor(integers(L)).double(), atol=1e-6)
    far = (f[:, 0] - lattice.entry[index, 0]).abs() * (L // 2)
    assert far.max() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("levels", GRIDS)
def test_index_and_code_are_a_bijection_and_quantising_a_code_returns_it(levels):
    lattice = fsq.FSQ(levels)
    K = math.prod(levels)
    by_hand = [[k / (L // 2) for k, L in zip(code, levels)] for code in itertools.product(*map(integers, levels))]
    assert lattice.K == K and torch.allclose(lattice.entry, torch.tensor(by_hand))
    assert len(lattice.entry.unique(dim=0)) == K  # no code twice
    assert lattice.nearest(lattice.entry).tolist() == list(range(K))  # code to index, for all K
    assert torch.equal(lattice.entry[lattice.nearest(lattice.entry)], lattice.entry)  # and back


@pytest.mark.parametrize("levels", GRIDS)
def test_the_code_is_the_nearest_of_all(levels):
    """As in the chapter, by the distances to all entries."""
    torch.manual_seed(0)
    lattice = fsq.FSQ(levels).double()
    z_e = lattice.bound(3 * torch.randn(50, 40, len(levels), dtype=torch.float64))
    scaled = (z_e * lattice.half_width, lattice.entry * lattice.half_width)  # channels of one step width
    assert torch.equal(lattice.nearest(z_e), torch.cdist(*scaled).argmin(2))


@pytest.mark.parametrize("levels", GRIDS)
def test_every_code_is_reached_and_no_other_whatever_the_encoder_gives(levels):
    torch.manual_seed(0)
    lattice, scale = fsq.FSQ(levels), torch.logspace(-3, 30, 34)
    z = torch.cat([2 * torch.randn(20000, len(levels)), scale[:, None] * torch.randn(34, len(levels)).sign()])
    index = lattice.nearest(lattice.bound(z))  # in float32, as in training
    assert index.unique().tolist() == list(range(lattice.K))


@pytest.mark.parametrize("text, levels", [("8,4,4", [8, 4, 4]), ("3", [3]), ("5,5,5", [5, 5, 5])])
def test_levels_are_read(text, levels):
    assert fsq.read_levels(text) == levels


@pytest.mark.parametrize("text", ["", "8,", "8,2", "8,-4", "8;4", "8,4.0", "eight", "0", "400,400"])
def test_bad_levels_are_refused(text):
    with pytest.raises(OSError, match="--levels"):
        fsq.read_levels(text)


# The model

@pytest.mark.parametrize("y", [None, 7])
def test_the_elbo_is_one_term_of_the_sum_over_all_codes(y):
    model, x = model_of(), torch.rand(5, 1, 28, 28, dtype=torch.float64).round()
    label = vqvae.NULL if y is None else y
    codes = [[a / 1, b / 2] for a in (-1, 0, 1) for b in (-2, -1, 0, 1)]
    with torch.no_grad():
        bound, joint = model.elbo(x, y), []
        for z in itertools.product(range(12), repeat=2):
            e = torch.tensor([codes[k] for k in z], dtype=torch.float64)
            pixels = model.decode(e.expand(5, 2, 2), label).double().sigmoid()
            log_likelihood = (x * pixels.log() + (1 - x) * (1 - pixels).log()).flatten(1).sum(1)
            joint.append(log_likelihood + model.prior.log_prob(torch.tensor([z]), torch.tensor([label])))
        joint = torch.stack(joint, 1)  # (5, 144)
        z = super(fsq.FSQVAE, model).encode(x, label).double()
        a = z[:, :, 0].tanh().round() + 1
        b = (1.5 * (z[:, :, 1] + math.atanh(1 / 3)).tanh() - 0.5).round() + 2
        index = (4 * a + b).long()
    assert torch.allclose(bound.double(), joint[range(5), 12 * index[:, 0] + index[:, 1]], atol=1e-2)
    assert (bound < joint.logsumexp(1)).all() and joint.std(1).min() > 1 and len(index.unique()) > 2


def test_samples_are_decoded_codes_of_the_prior_of_their_class():
    model, y = model_of(), torch.arange(10)
    torch.manual_seed(0)
    x = model.sample(10, y)
    torch.manual_seed(0)
    z = model.prior.sample(y)
    e = torch.stack([z // 4 - 1, (z % 4 - 2) / 2], 2).double()
    with torch.no_grad():
        assert torch.allclose(x, model.decode(e, y).sigmoid()) and len(z.unique()) > 5


# Whole runs

@pytest.mark.slow
def test_a_tiny_run_writes_its_results_and_pictures(tmp_path):
    out, err = finished(start(tmp_path / "a", "--steps", "3", "--levels", "4,3"))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == "fsq" and metrics["step"] == 3 and metrics["settings"]["levels"] == "4,3"
    assert all(math.isfinite(value) for value in (metrics["results"] | metrics["baselines"]).values())
    for file in ["samples.png", "curve.png", "codes.png", "morph.gif", "levels.png"]:
        assert (tmp_path / "a" / file).stat().st_size > 1000
    assert "3/3" in out and "perplexity" in out and "Warning" not in err


@pytest.mark.slow
def test_the_perplexity_is_that_of_the_saved_model_s_codes_and_decoding_starts_at_the_mean(tmp_path, monkeypatch):
    finished(start(tmp_path / "a", "--steps", "1", "--lr", "0", "--levels", "17,16"))  # narrow: many are used
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    monkeypatch.setenv("DATA_DIR", small()["DATA_DIR"])
    x, _, x_test, y_test, _ = data.mnist()
    model = fsq.FSQVAE(16, 4, (17, 16))
    model.load_state_dict(torch.load(tmp_path / "a" / "model.pt", weights_only=True)["state"]["model"])
    with torch.no_grad():
        z = model.codebook.nearest(model.encode(vqvae.binarise(x_test, seed=1), y_test)).flatten().tolist()
    shares = [z.count(k) / len(z) for k in set(z)]
    results = metrics["results"]
    assert len(shares) > 1
    perplexity = math.exp(-sum(share * math.log(share) for share in shares))
    assert results["perplexity of the codes"] == pytest.approx(perplexity, rel=1e-4)
    mean = (x[:550].double().mean(0).flatten() / 255).clamp(0.01, 0.99)
    assert torch.allclose(model.decoder[-1].bias.sigmoid().double(), mean, atol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_left(tmp_path):
    finished(start(tmp_path / "a", "--steps", "2"))
    finished(start(tmp_path / "a", "--steps", "4", "--resume"))
    saved = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    assert saved["name"] == "fsq" and [point["step"] for point in saved["curve"]] == [2, 4]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.slow
def test_faults_end_with_status_2_and_the_default_folder_has_the_variation_s_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused(start(tmp_path / "file"))
    assert "--levels '8,2'" in refused(start(tmp_path / "a", "--levels", "8,2"))
    text, _ = finished(start(tmp_path / "a", "--help"))
    assert "-m variations.fsq [--steps" in text and "out/fsq" in " ".join(text.split()) and "--commitment" not in text
