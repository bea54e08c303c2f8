"""Score matching: what ddpm.py and ebm.py have in common (Song et al. 2021, arXiv:2011.13456).

ebm.py lets points roll down the slope of an energy; ddpm.py takes away the noise that it finds.
Why do both end at digits? Both have learnt the same thing, the score of the data's density p:

    s(x) = ∂ log p(x)/∂x    at each place x an arrow: which way log p grows, and how steeply
         = −∂E(x)/∂x        if p = exp(−E) / Z: Z has no x in it. A score needs no integral

Langevin dynamics (ebm.py) draws from p by s alone. But how is s learnt from points alone? Add
noise: x = c + σ ε, with c a point of the data and ε ~ N(0, I). Call N the density of x given c, a
constant times exp(−‖x − c‖² / 2σ²). Its derivative by x is N (c − x) / σ² = −N ε / σ. Then

    p_σ(x)     = ∫ p(c) N dc                      the density of x: that of the data, blurred
    ∂p_σ/∂x    = −∫ p(c) N ε / σ dc               only N has an x in it; ε = (x − c) / σ
    s(x, σ)    = −∫ p(c) N / p_σ(x) · ε / σ dc    the score of p_σ: ∂ log p_σ = ∂p_σ / p_σ
               = −E[ε | x] / σ                    Bayes' rule: p(c) N / p_σ(x) = p(c | x)

Train a network ε̂(x, σ) to find ε by least squares. The guess that errs least is the mean,
E[ε | x]. So ε̂ becomes −σ s(x, σ): denoising score matching (Vincent 2011). ddpm.py learns a score,
too: its ε̂ finds the ε in x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, where c = √ᾱ_t x_0 and σ = √(1 − ᾱ_t).

A second way never asks for ε. Let s be a network and s* = ∂ log p/∂x what it should be, unknown:

    E ½‖s − s*‖² = E ½‖s‖² − E[s · s*] + E ½‖s*‖²     E: mean over the data; no s in the last
    E[s · s*]    = ∫ p s · (∂p/∂x) / p dx             s* = ∂ log p/∂x = (∂p/∂x) / p
                 = ∫ s · ∂p/∂x dx                     p cancels: s* is gone
                 = −∫ p Σ_i ∂s_i/∂x_i dx              by parts; far away p is 0

The sum is tr J, J = ∂s/∂x: E[½‖s‖² + tr J] must be small (Hyvärinen 2005). For data N(0, 1) and
s = −k x it is ½ k² E[x²] − k = ½ k² − k, least at k = 1, and −x is right. For D numbers tr J takes
D passes, but J v only one. Let v be D random signs: v_i² = 1, and v_i v_j is 0 on average. Then

    E[vᵀ J v] = Σ_ij E[v_i v_j] J_ij = Σ_i J_ii = tr J     sliced score matching (Song et al. 2019)

Here points lie in the plane, on two half circles ("moons") of 200 Gaussians. So density and score
are known with any noise, and can be compared with a network for each way. Measured, 42 seconds of
training on one core of an AMD EPYC (float32), mean −log p in nats (log is natural): true density
1.002; `log_density` by the true score 0.997 (its steps are finite), by denoising 1.035, by sliced
1.067. Of samples 0.3 to 0.5 % lie where p < 0.001, if σ falls slowly from 10; 97 % at 0.01 alone.
Use denoising, a fifth of the work, unless the score must be that of the data without noise.
"""

import argparse
import math
import sys
from types import SimpleNamespace

import torch
from matplotlib.figure import Figure
from torch import nn

from ddpm import Run, add_common_flags, load_checkpoint, parse, positive_int, warmup_cosine
from ebm import langevin

SIGMAS = torch.logspace(1, -2, 101)  # levels of noise: from 10, where no moon is seen, to 0.01
ANGLES = (torch.arange(100) + 0.5) * math.pi / 100
UPPER = torch.stack([ANGLES.cos() - 0.5, ANGLES.sin() - 0.25], dim=1)  # a half circle
MIDDLES = torch.cat([UPPER, -UPPER])  # and its mirror image: of the Gaussians, (200, 2)


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=256, help="points a step")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate of Adam")
    add_common_flags(parser, out="out/score_matching", save_every=500)
    parser.set_defaults(bfloat16=False)  # it has 3 digits, too few for a coordinate
    return parse(parser, argv)


# %% Data
def draw(n, device):
    """Points c of the data, (n, 2), and for each a σ from 0.01 to 10, evenly in log σ, (n, 1)."""
    which = torch.randint(200, (n,), device=device)
    c = MIDDLES.to(device)[which] + 0.1 * torch.randn(n, 2, device=device)
    return c, 10 ** (3 * torch.rand(n, 1, device=device) - 2)


def true_log_p(x, sigma):
    """log p_σ at x (B, 2), nats (B,), σ () or (B, 1). Variances of Gaussian and noise add up."""
    variance = 0.1**2 + sigma**2
    squares = (x[:, None] - MIDDLES.to(x.device)).square().sum(2)  # (B, 200)
    log_normal = -squares / (2 * variance) - (2 * math.pi * variance).log()
    return log_normal.logsumexp(1) - math.log(200)


def true_score(x, sigma):
    return torch.func.grad(lambda x: true_log_p(x, sigma).sum())(x)


# %% Model
# For data N(0, I), p_σ is N(0, (1 + σ²) I): s = −x / (1 + σ²). A network adds what is different.
class Score(nn.Module):
    """ε̂(x, σ) and the score −ε̂ / σ, at points x (B, 2), for σ a tensor () or (B, 1)."""

    def __init__(self):
        super().__init__()
        layers = [nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()]
        layers += [nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)]
        self.network = nn.Sequential(*layers)

    def forward(self, x, sigma):
        size = (1 + sigma**2).sqrt()
        log_sigma = sigma.log().expand(len(x), 1).to(x.device)
        inputs = 3 * torch.cat([x / size, log_sigma], dim=1)  # 3: sharper bends at first
        return sigma * x / size**2 + self.network(inputs) / size

    def score(self, x, sigma):
        return -self(x, sigma) / sigma

    @torch.no_grad()
    def sample(self, n):
        """Draw n points (n, 2)."""
        z = torch.randn(n, 2, device=self.network[0].weight.device)
        return undo_noise(self.score, SIGMAS[0] * z, random=False)


def denoising_loss(model, c, sigma):
    """E ‖ε − ε̂‖²: σ² times the square error of the score, so that all levels count alike."""
    eps = torch.randn_like(c)
    return (eps - model(c + sigma * eps, sigma)).square().sum(1).mean()


def sliced_loss(model, c, sigma):
    """σ² E[½‖s‖² + vᵀ J v] with s = −ε̂ / σ; the data is x, noise included, so p is p_σ."""
    x = c + sigma * torch.randn_like(c)
    v = torch.randint_like(c, 2) * 2 - 1
    eps, change = torch.func.jvp(lambda x: model(x, sigma), (x,), (v,))  # ε̂, and ∂ε̂/∂x times v
    return (0.5 * eps**2 - sigma * v * change).sum(1).mean()


# %% Sampling
def at_level(score, sigma):
    """p_σ as ebm.langevin wants it. From large σ to small: annealed (Song & Ermon 2019)."""
    return SimpleNamespace(noise=sigma, slope=lambda x, y: -score(x, sigma))


# Or undo the noise. If σ rises to σ + h, noise of variance (σ + h)² − σ² ≈ 2σh is added. Above
# ebm.langevin, noise of variance w carries −w/2 ∂p/∂x points past x. As ∂p/∂x = p s, it is as if
# each moved by −w/2 s, here −σh s. So the way back, from σ + h to σ, is, with z ~ N(0, I),
#     x + σh s                  an ordinary differential equation: the probability-flow ODE. But
#     x + σh s + √(2σh) z       is a step of langevin, λ = σh, and leaves p_σ as it is. So
#     x + 2σh s + √(2σh) z      both in one lead back as well: the reverse SDE ("stochastic").
# ddpm.py's Algorithm 2 is a form of the last line, its DDIM of the first.
def undo_noise(score, x, random):
    """From x (B, 2) at σ = 10 to σ = 0.01, by the reverse SDE (random) or the ODE."""
    for sigma, lower in zip(SIGMAS, SIGMAS[1:]):
        if random:
            w = sigma**2 - lower**2  # 2σh; (lower / sigma)² ≈ 1 is what β̃ / β is in ddpm.py
            x = x + w * score(x, sigma) + w.sqrt() * lower / sigma * torch.randn_like(x)
        else:
            x = x + sigma * (sigma - lower) * score(x, sigma)
    return x


# The ODE is a flow (realnvp.py) and has a density. With u = log σ, dσ = σ du, its velocity is
# f = dx/du = −σ² s. A short step x + h f changes volumes by |det(I + h ∂f/∂x)|; multiplied out,
# that is 1 + h tr ∂f/∂x and terms in h². So on the way to noise log p falls by ∫ tr ∂f/∂x du.
def log_density(score, x):
    """log p of x (B, 2) by the ODE, exact but for the size of the steps: nats (B,)."""
    fall = 0.0
    for sigma, higher in zip(SIGMAS.flip(0), SIGMAS.flip(0)[1:]):
        h = (higher / sigma).log()
        middle = (sigma * higher).sqrt()
        halfway = x - h / 2 * sigma**2 * score(x, sigma)  # f there is nearer to its mean
        x = x - h * middle**2 * score(halfway, middle)
        J = torch.func.jacrev(lambda x: score(x, middle).sum(0))(halfway)  # (2, B, 2)
        fall = fall - h * middle**2 * (J[0, :, 0] + J[1, :, 1])
    return torch.distributions.Normal(0.0, SIGMAS[0]).log_prob(x).sum(1) + fall  # at σ = 10


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    torch.manual_seed(args.seed)
    networks = nn.ModuleDict({"denoising": Score(), "sliced": Score()}).to(args.device)
    optimizer = torch.optim.Adam(networks.parameters(), fused=True)
    size = args.steps * args.batch_size  # no point is seen twice
    run = Run(args, "two moons", size, "error of the noise", model=networks, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        c, sigma = draw(args.batch_size, args.device)
        loss = denoising_loss(networks.denoising, c, sigma)
        other = sliced_loss(networks.sliced, c, sigma)
        optimizer.zero_grad()
        (loss + other).backward()  # to each network comes the gradient of its own loss
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            validation = denoising_loss(networks.denoising, *draw(10_000, args.device))
            run.save(validation.item())
    evaluate(run, networks)


# %% Evaluation
def load(path="out/score_matching/model.pt", device="cpu", way="denoising"):
    """One of the networks of a finished or unfinished run, ready to sample."""
    networks = nn.ModuleDict({"denoising": Score(), "sliced": Score()})
    networks.load_state_dict(load_checkpoint(path)["model"])
    return networks[way].to(device).eval()


@torch.no_grad()
def evaluate(run, networks):
    torch.manual_seed(1)
    c, _ = draw(16 * run.args.batch_size, run.args.device)
    data = c + SIGMAS[-1] * torch.randn_like(c)
    results = {"−log p of data, nats": -true_log_p(data, SIGMAS[-1]).mean().item()}
    line = torch.linspace(-1.9, 1.9, 20, device=c.device)
    places = torch.cartesian_prod(line, line)
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    scores = {"truth": true_score} | {name: model.score for name, model in networks.items()}
    for axes, (name, score) in zip(figure.subplots(1, 3), scores.items()):
        results[f"{name}: −log p by the ODE, nats"] = -log_density(score, data).mean().item()
        arrows = SIGMAS[55] ** 2 * score(places, SIGMAS[55]) / 3
        axes.scatter(*data.T.cpu(), s=1, color="tab:orange")
        axes.quiver(*places.T.cpu(), *arrows.T.cpu(), angles="xy", scale_units="xy", scale=1)
        axes.set(title=f"{name}: the score at σ = {SIGMAS[55]:.2f}", xlabel="x_1", ylabel="x_2")
    run.picture("field.png", figure)

    score = networks.denoising.score
    start = SIGMAS[0] * torch.randn_like(c)
    annealed = start
    for sigma in SIGMAS[::5]:
        annealed = langevin(at_level(score, sigma), annealed, None, 20)
    samples = {"annealed Langevin": annealed}
    samples["Langevin at σ = 0.01"] = langevin(at_level(score, SIGMAS[-1]), start, None, 420)
    samples["reverse SDE"] = undo_noise(score, start, random=True)
    samples["ODE"] = undo_noise(score, start, random=False)
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, 4), samples.items()):
        outside = (true_log_p(points, SIGMAS[-1]).exp() < 0.001).float().mean().item()
        results[f"{name}: share of samples where p < 0.001"] = outside
        axes.scatter(*points.T.cpu(), s=1)
        axes.set(title=f"{name}: {outside:.1%} astray", xlim=(-2, 2), ylim=(-2, 2))
    run.report(results)
    run.picture("samples.png", figure)


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
