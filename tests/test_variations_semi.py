"""Semi-supervised learning against sums over all classes: the bound U, its gradient, and who sees which labels."""
import json
import math
import subprocess
import sys
import time

import pytest
import torch
from harness import ROOT, equal_checkpoints, finished, refused, small

import vae
from variations import semi_supervised as semi

slow = pytest.mark.slow
TINY = "--steps 3 --batch-size 8 --hidden 16 --latent-dim 4 --labels 2 --device cpu"
HASTY = """
import vae
from variations import semi_supervised as m
save = vae.Run.save
def saved(self, *args, **more):
    save(self, *args, **more)
    self.pause = {pause}
vae.Run.pause, vae.Run.save = {pause}, saved
m.main({argv!r})
"""


def start(out, more="", pause=None):
    """The variation as a user would start it; with a pause, saving so often."""
    argv = [*TINY.split(), "--out", str(out), *more.split()]
    code = ["-m", "variations.semi_supervised", *argv]
    if pause is not None:
        code = ["-c", HASTY.format(pause=pause, argv=argv)]
    return subprocess.Popen([sys.executable, *code], cwd=ROOT, env=small(), text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def pair(B=50, seed=0):
    """Bounds L (B, 10) and logits of q, as far apart as in a trained model."""
    g = torch.Generator().manual_seed(seed)
    return (-90 + 10 * torch.randn(B, 10, dtype=torch.float64, generator=g),
            3 * torch.randn(B, 10, dtype=torch.float64, generator=g))


# The bound U of digits without labels
def test_u_is_the_sum_over_classes_and_the_entropy_by_hand():
    L, logits = pair()
    U = semi.marginal(L, logits)
    for b in range(len(L)):
        total = sum(math.exp(v) for v in logits[b])
        q = [math.exp(v) / total for v in logits[b]]
        entropy = -sum(p * math.log(p) for p in q)
        assert U[b].item() == pytest.approx(sum(p * v.item() for p, v in zip(q, L[b])) + entropy, abs=1e-9)


def test_u_falls_short_of_the_log_of_the_sum_by_the_kl_to_bayes_rule():
    """Jensen: log Σ_y exp L(x, y) − U(x) = KL(q ‖ softmax L) ≥ 0."""
    L, logits = pair()
    q, bayes = logits.softmax(1), L.softmax(1)
    gap = L.logsumexp(1) - semi.marginal(L, logits)
    torch.testing.assert_close(gap, (q * (logits.log_softmax(1) - L.log_softmax(1))).sum(1))
    assert (gap > 1e-3).all() and not torch.allclose(q, bayes)


def test_u_is_the_log_of_the_sum_where_q_is_bayes_rule():
    L, _ = pair()
    torch.testing.assert_close(semi.marginal(L, L + 7), L.logsumexp(1))


def test_u_of_a_certain_classifier_is_the_bound_of_its_class():
    L, logits = pair()
    sure = torch.full_like(logits, -1e4).scatter_(1, logits.argmax(1, keepdim=True), 0)
    torch.testing.assert_close(semi.marginal(L, sure), L.gather(1, logits.argmax(1, keepdim=True))[:, 0])


def test_the_gradients_of_u():
    """∂U/∂L = q, and ∂U/∂logit_y = q_y (L_y − log q_y − U), which is 0 at Bayes' rule; autograd of the plain sum."""
    L, logits = (v.requires_grad_() for v in pair())
    U = semi.marginal(L, logits)
    found = torch.autograd.grad(U.sum(), (L, logits))
    q = logits.softmax(1)
    torch.testing.assert_close(found[0], q)
    torch.testing.assert_close(found[1], q * (L - q.log() - U[:, None]))
    plain = sum(q[:, y] * L[:, y] - q[:, y] * q[:, y].log() for y in range(10)).sum()
    for a, b in zip(found, torch.autograd.grad(plain, (L, logits))):
        torch.testing.assert_close(a, b)
    few = [v[:3].detach().requires_grad_() for v in (L, logits)]
    assert torch.autograd.gradcheck(semi.marginal, few)
    at_bayes = L.detach().clone().requires_grad_()
    slope, = torch.autograd.grad(semi.marginal(L.detach(), at_bayes).sum(), at_bayes)
    assert slope.abs().max() < 1e-9 < found[1].abs().max()


# The model
class WithoutZ(semi.M2):
    """z says nothing, q(z | x, y) is the prior: L(x, y) = log p(x | y) + log p(y), with no noise; 784 Bernoullis."""
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(4, 2)
        self.logits = torch.randn(11, 784, dtype=torch.float64)

    def encode(self, x, y=None):
        return torch.zeros(len(x), 2, dtype=torch.float64), torch.zeros(len(x), 2, dtype=torch.float64)

    def decode(self, z, y=None):
        return self.logits[y].view(-1, 1, 28, 28)


def test_the_bounds_of_a_model_without_z_are_exact_and_in_the_order_of_the_classes():
    model, x = WithoutZ(), torch.rand(6, 1, 28, 28, dtype=torch.float64).round()
    p = model.logits[:10].sigmoid()  # (10, 784)
    flat = x.flatten(1)
    exact = flat @ p.log().T + (1 - flat) @ (1 - p).log().T + math.log(1 / 10)  # log p(x, y), (6, 10)
    L = model.bounds(x)
    torch.testing.assert_close(L, exact)
    log_p = exact.logsumexp(1)  # of the mixture
    logits = torch.randn(6, 10, dtype=torch.float64)
    assert (semi.marginal(L, logits) < log_p).all()
    torch.testing.assert_close(semi.marginal(L, exact.log_softmax(1)), log_p)


def test_u_is_below_log_p_on_average_also_with_z():
    """Three pixels: log p(x) by quadrature over z and the sum over all classes."""
    weight, bias = torch.randn(2, 11, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Tiny(semi.M2):
        def encode(self, x, y=None):
            s = x.flatten(1).sum(1, keepdim=True) + y[:, None] / 10
            return 0.3 * s - 0.5, -0.4 * torch.ones_like(s)

        def decode(self, z, y=None):
            return (z * weight[y] + bias[y]).view(-1, 1, 1, 3)

    model = Tiny(4, 2)
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3).view(8, 1, 1, 3)
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    prior = (-z.square() / 2 - math.log(2 * math.pi) / 2).exp() * (z[1] - z[0])
    p = torch.zeros(8, dtype=torch.float64)
    for y in range(10):
        logits = z[:, None, None] * weight[y] + bias[y]  # (2001, 1, 3)
        log_p = -torch.nn.functional.binary_cross_entropy_with_logits(
            logits.expand(-1, 8, 3), x.view(1, 8, 3).expand(2001, -1, -1), reduction="none").sum(2)
        p += prior @ log_p.exp() / 10
    assert p.sum().item() == pytest.approx(1, abs=1e-6)  # over all eight images
    torch.manual_seed(0)
    logits = torch.randn(8, 10, dtype=torch.float64)
    many = x.repeat(2000, 1, 1, 1)
    U = semi.marginal(model.bounds(many), logits.repeat(2000, 1)).view(2000, 8)
    error = U.std(0) / 2000**0.5
    assert (U.mean(0) + 4 * error < p.log()).all()
    bayes = torch.stack([model.bounds(x) for _ in range(2000)]).mean(0)
    better = semi.marginal(bayes, bayes)  # q by Bayes' rule of the mean bounds: the best that q can do
    assert (better > U.mean(0)).all() and (better < p.log() + 0.02).all()


def test_samples_are_of_the_class_asked_for_and_uniform_without():
    model = WithoutZ()
    samples = model.sample(4, torch.tensor([3, 3, 8, 0]))
    torch.testing.assert_close(samples, model.logits[[3, 3, 8, 0]].sigmoid().view(-1, 1, 28, 28))
    torch.manual_seed(0)
    rows = model.sample(2000).flatten(1)
    found = torch.cdist(rows, model.logits.sigmoid()).argmin(1).bincount(minlength=11)
    assert found[10] == 0 and (found[:10] > 140).all()


# Who sees which labels
def test_labelled_digits_are_as_many_of_each_class_and_none_of_the_rest():
    y = torch.randint(10, (3000,), generator=torch.Generator().manual_seed(1))
    known, rest = semi.split_labels(y, 10, 0)
    assert known.shape == (10, 10) and torch.equal(y[known], torch.arange(10)[:, None].expand(10, 10))
    assert torch.equal(torch.cat([known.flatten(), rest]).sort().values, torch.arange(3000))  # all, each once
    again, _ = semi.split_labels(y, 10, 0)
    other, _ = semi.split_labels(y, 10, 1)
    assert torch.equal(known, again) and not torch.equal(known, other)
    assert (known > 1500).any() and (known < 1500).any()  # from everywhere


@pytest.fixture
def world(monkeypatch, tmp_path):
    """main() in this process, on 600 + 50 black and white images whose first three rows are empty, and what the
    networks see in training."""
    for name in ("NAME", "LOSS", "SETTINGS"):
        monkeypatch.setattr(vae, name, getattr(vae, name))
    g = torch.Generator().manual_seed(0)
    x, y = torch.randint(2, (650, 1, 28, 28), generator=g) * 255, torch.randint(10, (650,), generator=g)
    x[:, 0, :3] = 0
    monkeypatch.setattr(semi, "mnist", lambda *_: (x[:600].byte(), y[:600], x[600:].byte(), y[600:], "nothing"))
    seen = {"classifier": [], "supervised": [], "encoder": []}

    class Watched(semi.M2):
        def __init__(self, *how):
            super().__init__(*how)
            for name in seen:
                getattr(self, name).register_forward_pre_hook(
                    lambda net, given, name=name: seen[name].append(given[0].clone()) if self.training else None)
    monkeypatch.setattr(semi, "M2", Watched)

    def main(more=""):
        semi.main([*TINY.split(), "--out", str(tmp_path / "out"), *more.split()])
        return torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    return x, y, seen, main


def places(images, x):
    """Which of the images x these are."""
    distance, place = torch.cdist(images.flatten(1), x.flatten(1) / 255).min(1)
    assert (distance < 0.5).all()
    return set(place.tolist())


def test_both_classifiers_see_the_same_labelled_digits_and_the_rest_goes_to_one_of_them(world):
    x, y, seen, main = world
    main("--steps 6 --shift 0")
    known, rest = semi.split_labels(y[:550], 2, 0)
    known, rest = set(known.flatten().tolist()), set(rest.tolist())
    assert len(seen["supervised"]) == 6 and len(seen["classifier"]) == 12
    labelled = [v for v in seen["classifier"] if len(v) == 20]
    others = [v for v in seen["classifier"] if len(v) == 8]
    assert len(labelled) == len(others) == 6
    for a, b in zip(labelled, seen["supervised"]):
        assert torch.equal(a, b) and places(a, x) == known
    assert places(torch.cat(others), x) <= rest
    images = torch.cat(seen["encoder"])[:, :784]  # after them, the class
    assert places(images, x) <= known | rest == set(range(550))  # no validation digit, no test digit


def test_classifiers_see_shifted_digits_and_the_encoder_does_not(world):
    _, _, seen, main = world
    main("--steps 6")
    labelled = [v for v in seen["classifier"] if len(v) == 20]
    assert all(torch.equal(a, b) for a, b in zip(labelled, seen["supervised"]))
    for name in ("supervised", "classifier"):
        assert any(v[:, 0, :3].any() for v in seen[name])
    assert not torch.cat(seen["encoder"])[:, :3 * 28].any()


def test_the_gradient_of_u_in_q_grows_over_the_first_fifth_of_the_steps(world, monkeypatch):
    _, _, _, main = world
    shares, outputs, plain, model = [], [], semi.marginal, semi.M2

    class Kept(model):
        def __init__(self, *how):
            super().__init__(*how)
            self.classifier.register_forward_hook(lambda net, given, output: outputs.append(output))

    def marginal(L, logits):
        if logits.requires_grad:
            torch.testing.assert_close(logits, outputs[-1].float())  # the value is that of the classifier
            slope, = torch.autograd.grad(logits.sum(), outputs[-1], retain_graph=True)
            shares.append(slope.float().mean().item())
        return plain(L, logits)
    monkeypatch.setattr(semi, "M2", Kept)
    monkeypatch.setattr(semi, "marginal", marginal)
    main("--steps 20")
    assert shares == pytest.approx([0.25, 0.5, 0.75, *[1] * 17])


@slow
def test_labels_of_the_other_digits_change_nothing(world, monkeypatch):
    x, y, _, main = world
    chosen = semi.split_labels(y[:550], 2, 0)
    monkeypatch.setattr(semi, "split_labels", lambda *_: chosen)
    first = main("--steps 5")["state"]["model"]
    y[chosen[1]] = (y[chosen[1]] + 3) % 10
    second = main("--steps 5")["state"]["model"]
    assert all(torch.equal(v, second[name]) for name, v in first.items())
    x[chosen[1]] = 255 - x[chosen[1]]  # but the digits themselves do, except to the other classifier
    third = main("--steps 5")["state"]["model"]
    for name, v in first.items():
        assert torch.equal(v, third[name]) == name.startswith("supervised."), name


def test_both_classifiers_start_from_the_same_weights():
    model = semi.M2(8, 3)
    other = dict(model.supervised.named_parameters())
    assert all(torch.equal(p, other[name]) and p is not other[name]
               for name, p in model.classifier.named_parameters())


# Whole runs
@slow
def test_a_tiny_run_writes_its_results_and_pictures(tmp_path):
    out, _ = finished(start(tmp_path / "a"))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == "semi_supervised" and metrics["step"] == 3
    assert all(math.isfinite(value) for value in (metrics["results"] | metrics["baselines"]).values())
    assert {"test accuracy", "test accuracy, labels alone", "test -U, nats"} < set(metrics["results"])
    for file in ("samples.png", "curve.png", "accuracy.png"):
        assert (tmp_path / "a" / file).stat().st_size > 1000
    assert "-U, nats" in out
    model = semi.M2(16, 4)
    model.load_state_dict(torch.load(tmp_path / "a" / "model.pt", weights_only=True)["state"]["model"])
    assert model.eval().sample(2, 7).shape == (2, 1, 28, 28)


@slow
def test_killed_and_resumed_equals_never_interrupted(tmp_path):
    finished(start(tmp_path / "whole", "--steps 40 --seed 3", pause=20))
    path = tmp_path / "killed" / "model.pt"
    process = start(tmp_path / "killed", "--steps 40 --seed 3", pause=0)
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert 0 < torch.load(path, weights_only=True)["step"] < 40
    finished(start(tmp_path / "killed", "--steps 40 --resume", pause=20))
    assert equal_checkpoints(tmp_path / "whole" / "model.pt", path)
    assert torch.load(path, weights_only=True)["settings"]["seed"] == 3


@slow
def test_faults_end_with_status_2_and_the_default_folder_has_the_variation_s_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused(start(tmp_path / "file"))
    assert "out of range" in refused(start(tmp_path / "a", "--labels 0"))
    text, _ = finished(start(tmp_path, "--help"))
    assert "out/semi_supervised" in " ".join(text.split())
