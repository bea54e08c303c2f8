"""Flow matching on ddpm.py: from noise to digits along lines (Lipman et al. 2023, 2210.02747).

ddpm.py undoes noise by a thousand random steps. Could one walk straight from noise to a digit? Join
each digit x_0 to a noise ε ~ N(0, I) by a line, from the time t = 0 at the digit to 1 at the noise:

    x_t = (1 − t) x_0 + t ε                 a point of the line; its velocity dx_t/dt is ε − x_0

But whoever stands at a point x knows neither end, and lines of many digits pass through it. Let a
network v(x, t, y) guess the velocity, for images of the class y, by least squares:

    loss = E ‖v(x_t, t, y) − (ε − x_0)‖²    t random, x_0 a training digit, ε a noise

What is the best v? Of all guesses the mean has the least mean square error. So at x and t it is
m(x, t) = E[ε − x_0 | x_t = x], the mean velocity of the lines that pass through x at the time t.

Does it lead to digits? The mean of two ways may be neither. But count, on a line. Each unit of it
has four points; three have the velocity −2, one has 2. In a time h 3 · 2h − 2h = 4h points pass a
mark to the left; with the mean velocity, −1, as many. Who passes changes, how many does not:

    the lines,       ╲ ╱      the paths      ╲ ╱     m(x, t) has one value, so paths never
    x across,         ╳       that follow    ) (     cross. Both points turn back; left and
    t upwards        ╱ ╲      m              ╱ ╲     right there is one each, as before.

In all dimensions: let f be any smooth function, say a soft count of the points in some region.
The points x_t walk on lines; points z_t start at the same noise, z_1 = ε, and follow m:

    d/dt E[f(x_t)] = E[∇f(x_t) · (ε − x_0)]       the chain rule, along each line
                   = E[∇f(x_t) · m(x_t, t)]       average first over the lines through one x_t
    d/dt E[f(z_t)] = E[∇f(z_t) · m(z_t, t)]       the chain rule, along each path

For both, the change at t depends only on m and where the points are at t (the continuity equation).
They agree at t = 1, so for every f at every t: z_t is distributed as x_t, and z_0 as the digits. To
sample, draw noise and solve dx/dt = v(x, t, y) from t = 1 to 0, with no noise on the way.

Measured: 4,000 steps, 276 s of processor time, AMD EPYC (bfloat16). A separate classifier finds the
class asked for in 98.3 % of 5,000 samples of 11 calls of v (guidance 1.6), Fréchet distance 2.3.
The chapter: 99.3 % and 2.2 in 12 calls, but after 10,000 steps, 342 s of two cores. By `solve`,
eight calls of Euler, 7 or 15 of Heun do about as well. −log p of every 200th test image, a bound:
1.77 ± 0.04 bits/dim (bits a pixel; the chapter's, on all, is 1.343). Use it where few calls count.
"""

import argparse
import math
import sys

import torch
from matplotlib.figure import Figure
from torch import nn

import ddpm
from data import mnist
from ddpm import Run, UNet, add_common_flags, parse, positive_int


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="feature maps at 14 x 14")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/flow_matching", save_every=250)
    return parse(parser, argv)


# %% Model
def dequantise(images):
    """Grey levels as numbers with a density: k becomes any of [k, k + 1) / 128, (B, 1, 28, 28)."""
    return (images + torch.rand(images.shape, device=images.device)) / 128  # paper is about 0


def to_grey(x):
    """And back, from the middle of the interval of each level, to greys in [0, 1]."""
    return ((128 * x - 0.5) / 255).clamp(0, 1)


class FlowMatching(nn.Module):
    """The velocity of images x (B, 1, 28, 28) of classes y (B,), by the network of the chapter."""

    def __init__(self, channels=32, classes=10):
        super().__init__()
        self.classes = classes  # also the label that stands for "no class given"
        self.network = UNet(channels, classes)  # its time runs to 1000

    def loss(self, x0, y):
        """Mean square error of the velocity, at a random time for each image."""
        t = torch.rand(len(x0), 1, 1, 1, device=x0.device) ** 2  # more often near 0, the data
        eps = torch.randn_like(x0)
        x = (1 - t) * x0 + t * eps
        v = self.network(x, 1000 * t.flatten(), y)
        return ((v - (eps - x0)) ** 2).mean()

    def velocity(self, x, t, y, w=1.0):
        """v at the time t, a number in [0, 1], (B, 1, 28, 28); w: guidance, as in the chapter."""
        times = torch.full((len(x),), 1000.0 * t, device=x.device)
        with_class = self.network(x, times, y)
        if w == 1 or self.classes == 1:
            return with_class
        without = self.network(x, times, torch.full_like(y, self.classes))
        return without + w * (with_class - without)

    def flow(self, noise, y, steps, w=1.6, heun=True):
        """From noise (B, 1, 28, 28) at t = 1 to images at t = 0: yields t and x_t."""
        times = torch.linspace(1, 0, steps + 1).tolist()
        return solve(lambda x, t: self.velocity(x, t, y, w), noise, times, heun)

    @torch.no_grad()
    def sample(self, y):
        """An image for each class in y (B,), (B, 1, 28, 28) in [0, 1], in 2 · 6 − 1 = 11 calls."""
        *_, (_, x0) = self.flow(torch.randn(len(y), 1, 28, 28, device=y.device), y, steps=6)
        return to_grey(x0)

    @torch.no_grad()
    def log_prob(self, images, y, steps=100):
        """A draw of a lower bound on log p(images | y), grey levels k / 255, nats (B,)."""
        x0 = dequantise(images * 255)  # p of a level: mean density in it times width, 1/128
        signs = torch.randint(2, x0.shape, device=x0.device) * 2.0 - 1
        log_p = log_density(lambda x, t: self.velocity(x, t, y), x0, signs, steps)
        return log_p - 28 * 28 * math.log(128)  # a bound, as mean log ≤ log mean (Jensen)


# To solve dx/dt = slope(x, t), Euler goes on along the slope where he stands. Heun looks at the
# slope there, too, and goes back to take the mean of both. On dx/dt = x from x = 1, after a step of
# 0.1 (right: e^0.1 = 1.10517): Euler 1 + 0.1 · 1 = 1.1, Heun 1 + 0.1 · (1 + 1.1) / 2 = 1.105.
def solve(slope, x, times, heun=True):
    """Yields t and x at each of the times. Calls slope once a step, Heun twice."""
    yield times[0], x
    for t, s in zip(times, times[1:]):
        v = slope(x, t)
        if heun and s > 0:  # at 0 no noise is left to be seen, so the last step is Euler's
            v = (v + slope(x + (s - t) * v, s)) / 2
        x = x + (s - t) * v
        yield s, x


# How likely is an image? A short step x' = x + h v(x, t) is a map, and maps change densities by
# their determinant (realnvp.py): log p(x') = log p(x) − log |det(I + h J)|, J = ∂v/∂x. For two
# pixels det is (1 + h J_11)(1 + h J_22) − h² J_12 J_21 = 1 + h (J_11 + J_22) + h² …; as h → 0 only
# tr J = Σ J_ii counts (Chen et al. 2018, arXiv:1806.07366), and d/dt log p(x_t) = −tr J. So
#     log p(x_0) = log N(x_1; 0, I) + ∫ tr J dt, from t = 0 to 1
# J e, the change of v in a direction e, costs about one more pass (jvp); all of J would cost 784.
# But let e have random signs. Then eᵀ J e = Σ e_i e_j J_ij is tr J on average, since e_i e_i = 1,
# and e_i e_j is 1 as often as −1. This is Hutchinson's estimate.
def log_density(velocity, x0, e, steps):
    """log p of x0 (B, …), nats (B,), for the flow of velocity(x, t); e like x0: directions."""

    def slope(state, t):
        x = state[:, 1:].view_as(x0)
        v, Je = torch.func.jvp(lambda x: velocity(x, t), (x,), (e,))
        trace = (e * Je).flatten(1).sum(1, keepdim=True)
        return torch.cat([trace, v.flatten(1)], dim=1)

    state = nn.functional.pad(x0.flatten(1), (1, 0))  # the integral is one more coordinate
    times = torch.linspace(0, 1, steps + 1) ** 3  # short steps near the data, where J is large
    *_, (_, state) = solve(slope, state, times.tolist())
    log_normal = -0.5 * state[:, 1:] ** 2 - 0.5 * math.log(2 * math.pi)
    return log_normal.sum(1) + state[:, 0]


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation

    torch.manual_seed(args.seed)
    model = FlowMatching(args.channels, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    run = Run(args, source, n, "error of the velocity", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * ddpm.warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        withheld = torch.rand(args.batch_size, device=args.device) < 0.1  # for guidance
        labels = torch.where(withheld, args.classes, y[batch])
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = model.loss(dequantise(x[batch]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = model.loss(dequantise(x[n:]), y[n:])
            run.save(validation.item())
    evaluate(run, model, x_test, y_test)


# %% Evaluation
def load(path="out/flow_matching/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = ddpm.load_checkpoint(path)
    model = FlowMatching(saved["flags"]["channels"], saved["flags"]["classes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def two_points(x, t):
    """m(x, t) if x_0 is −1 or 1, both alike. ε − x_0 = (x − x_0) / t; tanh is E[x_0 | x_t = x]."""
    return (x - torch.tanh((1 - t) * x / t**2)) / t


def picture_of_lines():
    """Lines and the flow's paths in one dimension, and where they are at t = 0.35."""
    panels = Figure(figsize=(9, 3.2), layout="constrained").subplots(1, 3)
    times = torch.linspace(1, 0, 101)
    eps = torch.randn(20_000)
    x0 = torch.randint(2, eps.shape) * 2.0 - 1
    lines = x0 + times[:, None] * (eps - x0)
    paths = torch.stack([x for _, x in solve(two_points, eps, times.tolist(), heun=False)])
    colors = {"lines cross": "tab:blue", "paths of the flow do not": "tab:orange"}
    for axes, x, (title, color) in zip(panels, [lines, paths], colors.items()):
        axes.plot(times, x[:, :40], color=color, alpha=0.5, linewidth=1)
        axes.set(title=title, xlabel="t: noise at 1, data at 0", ylabel="x", xlim=(1, 0))
        panels[2].hist(x[65].numpy(), 60, histtype="step", density=True, color=color)
    panels[2].set(title="yet both are spread alike", xlabel="x at t = 0.35", ylabel="density")
    return panels[0].figure


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    run.picture("lines.png", picture_of_lines())
    shown = ddpm.ten_classes(y)
    samples = model.sample(shown.repeat(10))
    run.picture("samples.png", ddpm.grid(samples, "samples, one class a column"))
    pages = []
    noise = torch.randn(50, 1, 28, 28, device=x.device)
    for t, x_t in model.flow(noise, shown.repeat(5), 20):
        figure = ddpm.grid(to_grey(x_t), f"noise flows into digits: t = {t:.2f}")
        pages.append(figure)
    run.picture("flow.gif", *pages)

    print("the density of every 200th test image ...", flush=True)
    bits = -model.log_prob(x[::200] / 255, y[::200]) / (28 * 28 * math.log(2))
    results = {"bound, every 200th image, bits/dim": bits.mean().item()}
    results["bound, standard error"] = bits.std().item() / len(bits) ** 0.5
    run.report(results)


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
