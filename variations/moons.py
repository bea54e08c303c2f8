"""Two moons on realnvp.py: a flow of points in the plane, where the whole density can be seen.

What changes: the data. A point x = (x₁, x₂) is an image of one pixel with two channels; a coupling passes one
coordinate and scales and shifts the other by what its network computes from the first. A 3 x 3 convolution of
one pixel is a linear layer, so `Coupling`, with its log-determinant and its inverse, is the chapter's own.
Points are real numbers without a class: no dequantisation, no logit, p_Z = N(0, I), and log p(x) is exact.

Why: in 784 dimensions a density cannot be drawn. Here layers.gif draws it from p_Z to the moons, coupling by
coupling, each of which moves points along one axis only. And the data's own density is known, a Gaussian at
each place of two half circles: the mean difference of the two NLLs is the KL divergence from data to model.
As f is continuous and invertible, the moons cannot come apart: a thin bridge goes on joining them.

Paper: Dinh, Sohl-Dickstein & Bengio 2017 (arXiv:1605.08803); the moons: scikit-learn's make_moons.

Measured, 69 s of training on one busy core: NLL 0.801 nats where the data's own density has 0.772, a KL
divergence of 0.029 nats from data to model, with a standard error of 0.003.
"""
import math

import torch
from matplotlib.figure import Figure
from torch import nn

import realnvp
from variations import checked, start

SETTINGS = {"steps": (4000, "optimiser steps", 1, 10**9), "batch_size": (256, "points per step", 1, 10**6),
            "lr": realnvp.SETTINGS["lr"], "couplings": (12, "couplings", 1, 1000),
            "channels": (32, "features of a coupling's network", 1, 10**4)}
SIGMA = 0.08  # how far points lie from their half circle

class Flow(nn.Module):
    """p(x) of points x (B, 2). With `skip`: the density of what the first `skip` couplings hand on, a stage
    between p(x) and p_Z."""
    def __init__(self, channels=32, couplings=12):
        super().__init__()
        masks = [1, 0], [0, 1]  # x₁ and x₂ pass in turn
        self.layers = nn.ModuleList(realnvp.Coupling(masks[k % 2], 1, channels) for k in range(couplings))
        self.register_buffer("null", torch.tensor(realnvp.NULL), persistent=False)  # points have no class

    def forward(self, x, skip=0):
        """z (B, 2) and log |det ∂z/∂x| (B,)."""
        x, log_det = x[:, :, None, None], x.new_zeros(len(x))
        for layer in self.layers[skip:]:
            x, change = layer(x, self.null.expand(len(x)))
            log_det = log_det + change
        return x.flatten(1), log_det

    def inverse(self, z, skip=0):
        x = z[:, :, None, None]
        for layer in reversed(self.layers[skip:]):
            x = layer.inverse(x, self.null.expand(len(x)))
        return x.flatten(1)

    def log_prob(self, x, skip=0):
        z, log_det = self(x, skip)
        return -z.square().sum(1) / 2 - math.log(2 * math.pi) + log_det

def half_circle(t):
    return torch.stack([t.cos() - 0.5, t.sin() - 0.25], 1)

def moons(n, seed):
    """n points (n, 2), each near the upper half circle or near the lower, which is minus the upper."""
    g = torch.Generator().manual_seed(seed)
    sign, t = 2 * torch.randint(2, (n, 1), generator=g) - 1, math.pi * torch.rand(n, generator=g)
    return sign * half_circle(t) + SIGMA * torch.randn(n, 2, generator=g)

def true_log_prob(x):
    """log p(x) of the data, nats (B,): the mean of Gaussians at 500 places of each half circle."""
    places = half_circle((torch.arange(500).to(x) + 0.5) * math.pi / 500)
    squares = (x[:, None] - torch.cat([places, -places])).square().sum(2)  # (B, 1000)
    return (-squares / (2 * SIGMA**2)).logsumexp(1) - math.log(1000 * 2 * math.pi * SIGMA**2)

def main(argv=None):
    vars(realnvp).update(NAME="moons", LOSS="NLL, nats", ITEMS="points", SETTINGS=SETTINGS, load=checked)
    run = realnvp.Run(argv)
    x, x_valid, x_test = (moons(n, seed).to(run.device) for seed, n in enumerate((60000, 2000, 10000)))
    run.source, best = "two moons", -true_log_prob(x_test)
    run.baselines = {"NLL of the data's own density, nats": best.mean().item()}

    torch.manual_seed(run.seed)
    model = Flow(run.channels, run.couplings).to(run.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        loss = -model.log_prob(x[torch.randint(len(x), (run.batch_size,), device=run.device)]).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            with torch.no_grad():
                run.save(-model.log_prob(x_valid).mean().item(), plane(model, f"p(x) after {step:,} steps"))
    with torch.no_grad():
        nll, back = -model.log_prob(x_test), model.inverse(model(x_test)[0])
    run.report({"test NLL, nats": nll.mean().item(), "KL(data | model), nats": (nll - best).mean().item(),
                "its standard error": ((nll - best).std() / len(nll) ** 0.5).item(),
                "largest error of the inverse": (back - x_test).abs().max().item()})
    frames = [plane(model, f"{run.couplings - k} couplings undone", k) for k in range(run.couplings, -1, -1)]
    run.picture("samples.png", plane(model, "p(x), and 1,000 samples, coloured by z₁"))
    run.picture("layers.gif", *frames, *[frames[-1]] * 4)

@torch.no_grad()
def plane(model, title, skip=0, side=120, edge=2.2):
    """A figure of a stage's density, and of 1,000 samples, the colour of each its z₁."""
    line = torch.linspace(-edge, edge, side, device=model.null.device)
    places = torch.stack(torch.meshgrid(line, line, indexing="xy"), 2).view(-1, 2)
    z = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).to(line)
    ax = Figure(figsize=(4.5, 4.7), layout="constrained").subplots()
    p = model.log_prob(places, skip).exp().view(side, side).cpu()
    ax.imshow(p, cmap="Greys", vmin=0, origin="lower", extent=(-edge, edge, -edge, edge))
    ax.scatter(*model.inverse(z, skip).T.cpu(), s=2, c=z[:, 0].cpu(), cmap="coolwarm")
    ax.set(title=title, xlabel="x₁", ylabel="x₂", xlim=(-edge, edge), ylim=(-edge, edge))
    return ax.figure

if __name__ == "__main__":
    start(main)
