"""Digits in few calls on flow_matching.py: reflow (Liu et al. 2023), mean flow (Geng et al. 2025).

flow_matching.py calls its network eleven times for a digit. Why not once? Its paths turn. Say that
digits are numbers, x_0 ~ N(0, 1): then x_t = (1 − t) x_0 + t ε is Gaussian with the deviation σ_t.
Paths in one dimension do not cross, so they keep their order: the path from ε runs through σ_t ε.

    t                          1       0.75    0.5     0.25    0
    σ_t = √((1 − t)² + t²)     1.000   0.791   0.707   0.791   1.000      inwards, and back to ε

At t = 1 the velocity is E[ε − x_0 | ε] = ε: one Euler step ends at ε − ε = 0, the mean, a blur.

**Reflow** (arXiv:2209.03003) straightens the paths. They turn where lines cross that lead to
different digits. So join each ε to the digit z_0 that the flow itself makes of it, and train again
on these pairs, x_t = (1 − t) z_0 + t ε, with the old loss E ‖v(x_t, t, y) − (ε − z_0)‖². The digits
stay: a flow ends where its lines do, whatever the pairs. And the lines get shorter. For the old
flow's velocity m (without guidance) and its path z_t from z_1 = ε:

    E ‖ε − z_0‖² = E ‖∫ m(z_t, t) dt‖²     a path is the sum of its steps
                 ≤ E ∫ ‖m(z_t, t)‖² dt     square of mean ≤ mean of squares; equal: m constant
                 = E ∫ ‖m(x_t, t)‖² dt     paths are distributed as lines, at every t
                 ≤ E ‖ε − x_0‖²            m is the mean of ε − x_0; equal: no lines cross

In the example 0 < 0.43 = 0.43 < 2: z_0 is ε, the new lines stand still, one call is exact. Else
repeat: no length falls below 0, so each round has less to gain, and less turns or crosses.

**Mean flow** (arXiv:2505.13447) keeps the paths and learns their chords, u(x_t, t, r), the mean of
v between r and t on the path through x_t. One call goes any way, x_r = x_t − (t − r) u(x_t, t, r);
in the example u(ε, 1, 0) = 0, as it should. How to learn u without walking the paths?

    (t − r) u = ∫_r^t v dτ                 the mean, times t − r
    u + (t − r) du/dt = v                  differentiated by t along the path, r fixed
    u = v − (t − r) du/dt                  a condition without an integral
    du/dt = ∂u/∂x v + ∂u/∂t                as dx/dt = v: the derivative along (v, 1), by jvp

Compute the right side with the network as it is, let no gradient through it, fit u to it. At r = t
it is v; long spans learn from short ones. Where the condition holds, (t − r) u has the derivative v
on each path, and is 0 at t = r: it is the integral. (The paper has no teacher and takes ε − x_0 for
v, its mean: right on average. Consistency models, 2303.01469, learn x − t u(x, t, 0).)

Guidance costs flow_matching.py two evaluations a call. Here z_0 and v are of its guided flow: both
students, first copies of it, learn guidance, too; their calls are one evaluation. One core of an
AMD EPYC (bfloat16): pairs 63 s; 700 steps of 0.04 s for reflow, 0.15 s for mean flow. Class found,
%, and Fréchet distance of 5,000 samples of 1, 2, 4, 8 calls. Use it where calls are dear.

    flow_matching    100.0, 31.6     99.8, 7.1      99.4, 3.5      99.0, 2.6    (blurs have a class)
    reflow            98.5, 6.7      98.1, 4.0      97.9, 3.5      97.9, 3.4
    mean flow         94.8, 10.2     97.1, 4.2      98.0, 2.8      98.1, 2.6
"""

import argparse
import copy
import sys

import torch
from matplotlib.figure import Figure
from torch import nn

import ddpm
from data import mnist
from ddpm import Run, add_common_flags, grid, parse, positive_int
from variations import flow_matching
from variations.flow_matching import dequantise, to_grey, two_points


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=700, help="optimiser steps")
    parser.add_argument("--pairs", type=positive_int, default=5000, help="noises with digits")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate of Adam")
    parser.add_argument("--teacher", default="", help="flags to train it with, if it is missing")
    add_common_flags(parser, out="out/few_steps", save_every=100)
    return parse(parser, argv)


# %% Model
def both_sides(u, x, t, r, v):
    """u(x, t, r), and v − (t − r) du/dt, to which it should be equal."""
    value, change = torch.func.jvp(lambda x, t: u(x, t, r), (x, t), (v, torch.ones_like(t)))
    return value, v - (t - r) * change


class FewSteps(nn.Module):
    """A flow and two students; x (B, 1, 28, 28), times t and r ≤ t (B, 1, 1, 1), y (B,)."""

    def __init__(self, teacher):
        super().__init__()
        self.classes = teacher.classes
        self.w = 1.6 if teacher.classes > 1 else 1.0  # guidance
        self.straight = copy.deepcopy(teacher.network)
        self.chords = copy.deepcopy(teacher.network)
        self.teacher = teacher.requires_grad_(False)

        # The network knows x, t and y, but u depends on r, too. What its `label` makes of y it adds
        # to what it makes of t. So let y's place be taken by a vector, of y and of t − r.
        self.label = self.chords.label
        self.chords.label = nn.Identity()
        self.span = nn.Sequential(nn.Linear(1, 128), nn.SiLU(), nn.Linear(128, 128))
        nn.init.zeros_(self.span[2].weight)  # at first all spans are alike

        # It sees 1000 t in waves, the first of 159 turns. Those say little, but in du/dt each error
        # of their weights counts 1000-fold. So u sees 1000 e^−3.9 t = 20.24 t: wave 13 comes first.
        waves = self.chords.time[0].weight.data.view(-1, 2, 32)  # sines and cosines
        waves.copy_(nn.functional.pad(waves[..., 13:], (0, 13)))

    def guided(self, x, t, r, y):
        """The velocity of the teacher, two evaluations; r, not used, is for `walk`."""
        with_class = self.teacher.network(x, 1000 * t.flatten(), y)
        without = self.teacher.network(x, 1000 * t.flatten(), torch.full_like(y, self.classes))
        return without + self.w * (with_class - without)

    def reflow(self, x, t, r, y):
        return self.straight(x, 1000 * t.flatten(), y)  # straight paths: the same for all r

    def mean_flow(self, x, t, r, y):
        embedded = self.label(y) + self.span((t - r).view(-1, 1))
        return self.chords(x, 20.24 * t.flatten(), embedded)

    @torch.no_grad()
    def couple(self, y):
        """A noise for each y (N,), and the digit that the flow makes of it in eleven calls."""
        noise = torch.randn(len(y), 1, 28, 28, device=y.device)
        *_, (_, digits) = self.teacher.flow(noise, y, steps=6)
        return noise, digits

    def reflow_loss(self, eps, z0, y):
        t = torch.rand(len(z0), 1, 1, 1, device=z0.device)  # uniform: all t alike
        v = self.reflow((1 - t) * z0 + t * eps, t, t, y)
        return ((v - (eps - z0)) ** 2).mean()

    def mean_flow_loss(self, x0, y):
        """Root mean square (not squared: few large errors should not rule) of what is missing."""
        t = torch.rand(len(x0), 1, 1, 1, device=x0.device)
        r = t * (1.25 * torch.rand_like(t)).clamp(max=1)  # a fifth of spans is 0
        x = (1 - t) * x0 + t * torch.randn_like(x0)
        v = self.guided(x, t, t, y)
        with torch.autocast(x.device.type, enabled=False):  # jvp of norms wants float32
            u, target = both_sides(lambda x, t, r: self.mean_flow(x, t, r, y), x, t, r, v)
        return (u - target.detach()).flatten(1).norm(dim=1).mean() / 28  # 28² pixels

    @torch.no_grad()
    def sample(self, y, calls=4):
        """An image for each y (B,) by the mean flow, (B, 1, 28, 28) in [0, 1]."""
        x = torch.randn(len(y), 1, 28, 28, device=y.device)
        return to_grey(walk(self.mean_flow, x, y, calls)[-1])


def walk(u, x, y, calls):
    """From noise x at t = 1 to t = 0 in so many calls of u: all points, (calls + 1, B, …)."""
    path = [x]
    for k in range(calls, 0, -1):
        t = torch.full((len(x), 1, 1, 1), k / calls, device=x.device)
        x = x - u(x, t, t - 1 / calls, y) / calls
        path.append(x)
    return torch.stack(path)


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    path = args.out.parent / "flow_matching" / "model.pt"
    if not path.exists():
        flow_matching.main(["--out", str(path.parent), *args.teacher.split()])
    teacher = flow_matching.load(path, args.device)
    x, y, _, y_test, source = mnist(args.stand_in, args.device, teacher.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation

    torch.manual_seed(args.seed)
    model = FewSteps(teacher).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    run = Run(args, source, n, "sum of both errors", model=model, optimizer=optimizer)
    print("joining noises to digits ...", flush=True)
    labels = y[torch.randint(n, (args.pairs + 500,), device=args.device)]
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
        eps, z0 = model.couple(labels)  # the last 500 are for validation
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * ddpm.warmup_cosine(step / args.steps)
        pair = torch.randint(args.pairs, (args.batch_size,), device=args.device)
        digit = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = model.reflow_loss(eps[pair], z0[pair], labels[pair])
            loss = loss + model.mean_flow_loss(dequantise(x[digit]), y[digit])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = model.reflow_loss(eps[-500:], z0[-500:], labels[-500:])
                validation += model.mean_flow_loss(dequantise(x[n::5]), y[n::5])
            run.save(validation.item())
    evaluate(run, model, y_test)


# %% Evaluation
def load(path="out/few_steps/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    weights = ddpm.load_checkpoint(path)["model"]
    channels, *_ = weights["straight.stem.weight"].shape
    model = FewSteps(flow_matching.FlowMatching(channels, len(weights["label.weight"]) - 1))
    model.load_state_dict(weights)
    return model.to(device).eval()


def picture_of_paths():
    """In one dimension, digits −1 and 1: the flow's paths, lines between their ends, chords."""
    panels = Figure(figsize=(9, 3.2), layout="constrained").subplots(1, 3)
    eps = torch.linspace(-2, 2, 16).view(-1, 1, 1, 1)
    path = walk(lambda x, t, r, y: two_points(x, t), eps, None, 100).flatten(1)
    times = torch.linspace(1, 0, 101)
    titles = ["the flow's paths turn", "reflow: new, straight paths", "mean flow: two chords each"]
    for axes, title, every in zip(panels, titles, (1, 100, 50)):
        axes.plot(times, path, color="lightgray", linewidth=1)
        axes.plot(times[::every], path[::every], color="tab:orange", alpha=0.5, linewidth=1)
        axes.set(title=title, xlabel="t: noise at 1, data at 0", ylabel="x", xlim=(1, 0))
    return panels[0].figure


@torch.no_grad()
def evaluate(run, model, y):
    """How far, in grey levels, from 20 calls of the flow from the same noise; and pictures."""
    torch.manual_seed(1)
    run.picture("paths.png", picture_of_paths())
    y = ddpm.ten_classes(y).repeat(20)
    noise = torch.randn(len(y), 1, 28, 28, device=y.device)
    exact = to_grey(walk(model.guided, noise, y, 20)[-1])
    digits = {}
    for u in (model.guided, model.reflow, model.mean_flow):
        for calls in (1, 2, 4, 8):
            digits[f"{u.__name__}, {calls} calls"] = to_grey(walk(u, noise, y, calls)[-1])
    run.report({f"{k}, off by": 255 * (x - exact).abs().mean().item() for k, x in digits.items()})
    rows = torch.cat([images[:10] for images in digits.values()])
    run.picture("samples.png", grid(rows, "1, 2, 4, 8 calls of flow, reflow, mean flow"))


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
