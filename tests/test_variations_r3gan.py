"""The pairing loss and the two gradient penalties against closed forms, and what the training loop hands them."""
import json
import math
import subprocess
import sys

import pytest
import torch
from harness import ROOT, finished, refused, small

import gan
from variations import r3gan


def start(out, *more):
    command = [sys.executable, "-m", "variations.r3gan", "--device", "cpu", "--out", str(out)]
    tiny = ["--batch-size", "8", "--channels", "4", "--latent-dim", "8"]
    return subprocess.Popen([*command, *tiny, *more], cwd=ROOT, env=small(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def logits(n=7, seed=0):
    torch.manual_seed(seed)
    return (3 * torch.randn(2, n, dtype=torch.float64)).unbind()


def images(n=5, seed=0):
    torch.manual_seed(seed)
    return [torch.rand(n, 1, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]


# The loss

@pytest.mark.parametrize("constant", [0.0, -3.5, 100.0])
def test_both_losses_are_log_two_where_the_discriminator_is_constant(constant):
    real, fake = torch.full((2, 6), constant, dtype=torch.float64)
    for loss in (r3gan.pairing_loss(real, fake), r3gan.pairing_loss(fake, real)):
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


def test_the_loss_is_the_mean_over_pairs_by_hand():
    real, fake = logits()
    by_hand = [math.log(1 + math.exp(-(r - f))) for r, f in zip(real.tolist(), fake.tolist())]
    assert r3gan.pairing_loss(real, fake).item() == pytest.approx(sum(by_hand) / 7, abs=1e-12)
    assert abs(r3gan.pairing_loss(real, fake.roll(1)) - r3gan.pairing_loss(real, fake)) > 0.01  # other pairs


@pytest.mark.parametrize("constant", [-40.0, 0.3, 1000.0])
def test_a_number_added_to_the_discriminator_changes_neither_loss_nor_gradient(constant):
    found = []
    for c in (0, constant):
        real, fake = (v.requires_grad_() for v in logits())
        losses = r3gan.pairing_loss(real + c, fake + c), r3gan.pairing_loss(fake + c, real + c)
        found.append([*losses, *torch.autograd.grad(losses[0], (real, fake)), torch.autograd.grad(losses[1], fake)[0]])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*found))
    real, fake = logits()
    assert abs(r3gan.pairing_loss(real + 1, fake) - r3gan.pairing_loss(real, fake)) > 0.1  # one side alone does


def test_it_is_the_paper_s_loss_with_the_sign_of_the_discriminator_turned():
    """The paper: D' maximises and G minimises E f(D'(G(z)) − D'(x)), f(t) = −log(1 + exp(−t)); D' = −D."""
    real, fake = logits()
    paper = (-(1 + (-(-fake - -real)).exp()).log()).mean()
    assert r3gan.pairing_loss(real, fake).item() == pytest.approx(-paper.item(), abs=1e-12)
    mirror = (1 + (-(fake - real)).exp()).log().mean()  # G's: the same of the pair turned round, not minus D's
    assert r3gan.pairing_loss(fake, real).item() == pytest.approx(mirror.item(), abs=1e-12)


def test_gradients_of_the_loss_against_the_closed_form_and_finite_differences():
    real, fake = (v.requires_grad_() for v in logits())
    at_real, at_fake = torch.autograd.grad(r3gan.pairing_loss(real, fake), (real, fake))
    wanted = -1 / (1 + (real - fake).exp()) / 7  # −σ(fake − real) / B
    assert torch.allclose(at_real, wanted) and torch.allclose(at_fake, -wanted)
    assert torch.autograd.gradcheck(r3gan.pairing_loss, (real, fake))


def test_sure_discriminators_have_finite_losses_and_the_losing_side_has_slope_one():
    real, fake = torch.tensor([1000.0], requires_grad=True), torch.tensor([-1000.0], requires_grad=True)
    assert r3gan.pairing_loss(real, fake).item() == 0 and r3gan.pairing_loss(fake, real).item() == 2000
    assert torch.autograd.grad(r3gan.pairing_loss(fake, real), fake)[0].item() == -1


def test_the_generator_is_led_to_where_the_discriminator_grows():
    """For D(x) = w·x, minus the gradient by each sample is σ(D(x) − D(G(z))) w / B; a small step lifts D."""
    real, fake = images()
    w = torch.randn(1, 4, 4, dtype=torch.float64)

    def D(v):
        return (w * v).flatten(1).sum(1)
    gradient, = torch.autograd.grad(r3gan.pairing_loss(D(fake), D(real)), fake)
    weight = (D(real) - D(fake)).sigmoid().view(-1, 1, 1, 1) / 5
    assert torch.allclose(-gradient, weight * w)
    assert (D(fake - 0.1 * gradient) > D(fake)).all()
    gradient, = torch.autograd.grad(r3gan.pairing_loss(D(real), D(fake)), fake)
    assert (D(fake - 0.1 * gradient) < D(fake)).all()  # the discriminator would have it the other way


# The penalties

@pytest.mark.parametrize("gamma", [0.5, 3.0])
def test_the_penalty_of_a_linear_discriminator_is_gamma_times_its_square(gamma):
    pair, w = images(), torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r3gan.gradient_penalty(gamma, [(w * v).flatten(1).sum(1) + 2 for v in pair], pair)
    assert penalty.item() == pytest.approx(gamma * w.square().sum().item(), rel=1e-12)
    assert torch.allclose(torch.autograd.grad(penalty, w)[0], 2 * gamma * w)  # the double backward


def test_the_penalty_has_both_parts_one_at_real_images_and_one_at_generated_ones():
    """D(x) = w·x² has the gradient 2 w x, another one at either side."""
    pair, w = images(), torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    penalty = r3gan.gradient_penalty(0.7, [(w * v.square()).flatten(1).sum(1) for v in pair], pair)
    r1, r2 = ((2 * w * v).square().flatten(1).sum(1).mean() for v in pair)
    assert penalty.item() == pytest.approx(0.35 * (r1 + r2).item(), rel=1e-12) and abs(r1 - r2) > 0.1
    by_w = sum(8 * w * v.square().mean(0) for v in pair) * 0.35
    assert torch.allclose(torch.autograd.grad(penalty, w)[0], by_w)


def test_the_gradient_of_the_discriminator_s_whole_loss_against_finite_differences():
    """By every weight of a small smooth network: the loss, and the penalties through two derivatives."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    net, pair = net.double(), images()

    def whole():
        out = [net(v)[:, 0] for v in pair]
        return r3gan.pairing_loss(*out) + r3gan.gradient_penalty(2.0, out, pair)
    gradients = torch.autograd.grad(whole(), list(net.parameters()), allow_unused=True)
    for p, gradient in zip(net.parameters(), gradients):
        for i in range(p.numel()):
            sides = []
            for side in (1e-5, -1e-5):
                p.data.view(-1)[i] += side
                sides.append(whole().item())
                p.data.view(-1)[i] -= side
            assert gradient.view(-1)[i].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-7)
    assert gradients[-1].abs().max() < 1e-12  # the last bias is the number that changes nothing


# The loop

class Brightness(torch.nn.Module):
    """D(x, y) = w · mean of x: drawn digits are darker than what an untrained generator gives."""
    def __init__(self, channels):
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.ones(())), []

    def forward(self, x, y):
        self.seen.append((x.detach().flatten(1).mean(1), y))
        return self.w * x.flatten(1).mean(1)


def test_the_loop_sets_both_losses_and_penalties_on_pairs_of_one_class(tmp_path, monkeypatch):
    losses, penalties, made, slopes = [], [], [], []
    x, y = torch.full((120, 1, 28, 28), 25, dtype=torch.uint8), torch.arange(120) % 10  # real: 25 / 255
    pairing_loss, gradient_penalty = r3gan.pairing_loss, r3gan.gradient_penalty

    def noted_loss(winner, loser):
        losses.append((winner, loser, made[0].w.item(), made[0].seen[-2:]))
        slopes.append(0 if made[0].w.grad is None else made[0].w.grad.item())
        return pairing_loss(winner, loser)

    def noted_penalty(gamma, logits, pair):
        penalties.append((len(losses), gamma, pair, gradient_penalty(gamma, logits, pair)))
        return penalties[-1][-1]
    monkeypatch.setattr(gan, "NAME", gan.NAME)  # what main changes is changed back
    monkeypatch.setattr(gan, "SETTINGS", gan.SETTINGS)
    monkeypatch.setattr(gan.Run, "last_save", gan.Run.last_save)
    monkeypatch.setattr(gan, "Discriminator", lambda channels: made.append(Brightness(channels)) or made[0])
    monkeypatch.setattr(gan, "evaluate", lambda *_: None)
    monkeypatch.setattr(r3gan, "mnist", lambda *_: (x, y, x, y, "a test"))
    monkeypatch.setattr(r3gan, "pairing_loss", noted_loss)
    monkeypatch.setattr(r3gan, "gradient_penalty", noted_penalty)
    r3gan.main(["--steps", "8", "--batch-size", "6", "--channels", "4", "--latent-dim", "8", "--gamma", "3",
                "--device", "cpu", "--out", str(tmp_path / "a")])
    assert len(losses) == 16  # one of the discriminator and one of the generator at each of 8 steps
    real = torch.full((6,), 25 / 255)
    for k, (winner, loser, w, ((bright, labels), (bright_fake, labels_fake))) in enumerate(losses):
        assert torch.equal(labels, labels_fake) and torch.allclose(bright, real) and bright_fake.min() > 0.3
        expected = [w * bright, w * bright_fake][::-1 if k % 2 else 1]  # the generator's: the fake wins
        assert torch.allclose(winner, expected[0]) and torch.allclose(loser, expected[1])
    for (winner, loser, *_), (fake, real, *_) in zip(losses[::2], losses[1::2]):
        assert winner.requires_grad and loser.requires_grad and fake.requires_grad and not real.requires_grad
    weights = [w for _, _, w, _ in losses]
    assert weights[0] == 1 and weights[1] < 1  # D learns at once that dark is real
    assert all(weights[2 * k + 1] == w for k, w in enumerate(weights[2::2]))  # G's step leaves D as it is
    assert [(at, gamma) for at, gamma, *_ in penalties] == [(7, 3), (15, 3)]  # steps 4 and 8
    for (at, gamma, pair, penalty), w in zip(penalties, (weights[6], weights[14])):
        assert penalty.item() == pytest.approx(gamma * w**2 / 784, rel=1e-3)  # the gradient of w · mean is w / 784
        assert all(v.is_leaf and v.requires_grad for v in pair)
    for k in range(8):  # what D learned from: its loss, and at every fourth step four times the penalty
        _, _, w, ((bright, _), (bright_fake, _)) = losses[2 * k]
        gap = bright - bright_fake
        slope = (-gap * (-w * gap).sigmoid()).mean().item() + 4 * 3 * 2 * w / 784 * (k % 4 == 3)
        assert slopes[2 * k + 1] == pytest.approx(slope, rel=1e-4)


def test_margins_are_of_pairs_of_one_class():
    torch.manual_seed(0)
    G, D, x, y = gan.Generator(4, 8), gan.Discriminator(4), (torch.rand(6, 1, 28, 28) * 255).byte(), torch.arange(6)
    torch.nn.init.normal_(D.label.weight)
    torch.manual_seed(1)
    found = r3gan.margins(D, G, x, y)
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.allclose(found, D(x / 255, y) - D(G(torch.randn(6, 8), y), y)) and not found.requires_grad


# Whole runs

@pytest.mark.slow
def test_a_tiny_run_writes_its_results_and_pictures(tmp_path):
    out, _ = finished(start(tmp_path / "a", "--steps", "5"))
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["script"] == "r3gan" and metrics["step"] == 5 and metrics["settings"]["gamma"] == 0.5
    assert all(math.isfinite(value) for value in (metrics["results"] | metrics["baselines"]).values())
    assert metrics["baselines"] == {"discriminator loss if D is constant, nats": math.log(2)}
    seen, unseen, fake = metrics["curve"][-1]["D"]
    assert unseen + fake == pytest.approx(1, abs=1e-5) and 0 < seen < 1
    for file in ["samples.png", "curve.png", "game.png", "style.png", "interpolation.gif", "neighbours.png"]:
        assert (tmp_path / "a" / file).stat().st_size > 1000
    assert "5/5" in out and list(metrics["results"])[0] in out


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_left(tmp_path):
    finished(start(tmp_path / "a", "--steps", "2"))
    finished(start(tmp_path / "a", "--steps", "4", "--resume"))
    saved = torch.load(tmp_path / "a" / "model.pt", weights_only=True)
    assert saved["name"] == "r3gan" and [point["step"] for point in saved["curve"]] == [2, 4]
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.slow
def test_faults_end_with_status_2_and_the_default_folder_has_the_variation_s_name(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert "file" in refused(start(tmp_path / "file"))
    assert "out of range" in refused(start(tmp_path / "a", "--gamma", "-1"))
    text, _ = finished(start(tmp_path / "a", "--help"))
    assert "out/r3gan" in " ".join(text.split()) and "(0.5)" in text
