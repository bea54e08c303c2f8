"""Densities of one number (EM: Dempster et al. 1977; flow: Chilinski & Silva 2020, 1811.00974).

How much ink does a handwritten 0 or 1 take? Add up its grey levels, 1 for a black pixel: a number
x between 0 and 784. An image is 784 numbers; let a program first learn how this one is spread.

**Density.** Of 11,646 zeros and ones 1,537 take between 50 and 60: a share of 0.132, on a width of
10. So around 55 the density p is 0.132 / 10 = 0.0132 for a unit of ink. Density times width is
probability, p(x) dx, and over all widths it adds up to 1: the area under p.

**Likelihood.** A model is a p that somebody proposes. How probable does it make what was seen, the
numbers x_1 to x_N, each drawn by itself? Independent probabilities are multiplied: the product
p(x_1) · … · p(x_N) is the likelihood of the model. Of 11,646 factors like 0.0132 a computer keeps
0. The logarithm makes a sum of them, log p(x_1) + … + log p(x_N). It is the natural one, its unit
the nat: one nat more, and p is e = 2.718 times as large. Printed is the mean of −log p, the
negative log-likelihood, NLL; lower is better. Who knows nothing says p = 1/800 from 0 to 800, and
−log p is 6.68 nats; where p is 0.0132, it is 4.33.

**Maximum likelihood:** of all models take the one that makes what was seen most probable. Why? The
mean over many digits is close to E, the mean under the true density t. There no p beats t:

    E[log p − log t] = E[log(p / t)]
                     ≤ E[p / t − 1]                log u ≤ u − 1, a line that touches log at u = 1
                     = ∫ t (p / t − 1) dx          what E means
                     = ∫ p dx − ∫ t dx = 0         both areas are 1

But the mean over a few digits is not E: a model can learn them by heart. So there are three sets:
training digits, to fit; validation, to choose by; test, for the figures at the end. In 6 seconds on
one core of an AMD EPYC `python -m variations.densities` draws out/densities/densities.png. NLL of
test digits, nats: 8 bins 5.377, 128 (best in validation) 5.089, 4,096 5.203; one bell 5.247, two
5.086; a flow 5.084. Nobody told the two bells which digit is which, yet 91.7 % of test digits are
likelier in the bell of their kind. Read next: made.py, for more than one number.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import Normal

from data import mnist
from vae import positive_int


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=positive_int, default=2000, help="of the flow's training")
    parser.add_argument("--out", type=Path, default=Path("out/densities"), help="folder")
    return parser.parse_args(argv)


# %% Data
def ink(images, y):
    """The ink of the zeros and ones among images of digits y, (N,)."""
    return images[y < 2].flatten(1).sum(1) / 255


# %% Model
def nll(model, x):
    return -model.log_prob(x).mean().item()


# A histogram: p is constant within a bin. How high, if n_k of N numbers lie in the bin k, w wide?
# Raise h_1 and lower h_2 by a small d: the area stays 1, the log-likelihood Σ n_k log h_k changes
# by (n_1 / h_1 − n_2 / h_2) d, at the maximum 0: n_k / h_k is the same in all bins. As the area is
# 1, h_k = n_k / (N w), the 0.0132 of above. In an empty bin −log p is infinite. So one number more
# is counted, spread evenly from 0 to 800.
class Histogram:
    def __init__(self, x, bins):
        self.width = 800 / bins
        counts = torch.bincount((x / self.width).long(), minlength=bins)
        self.p = (counts / self.width + 1 / 800) / (len(x) + 1)

    def log_prob(self, x):
        """log p(x), nats (B,), for x (B,)."""
        return self.p[(x / self.width).long()].log()


# A bell, or Gaussian, N(x; μ, σ²) = exp(−(x − μ)² / 2σ²) / √(2πσ²), has its middle at μ and about
# two thirds of its area within σ of it. A mixture: choose a bell k with probability π_k, then draw
# from it. With N_k for its density at x, p(x) = Σ_k π_k N_k. Its log, of a sum, gives no formula
# for the maximum. So take any shares r_k > 0 that add up to 1:
#     log p(x) = log Σ_k r_k · (π_k N_k / r_k)  multiply and divide
#              ≥ Σ_k r_k log(π_k N_k / r_k)     Jensen: log mean ≥ mean log (of 1, 9: 1.61 ≥ 1.10)
# Both sides are equal if π_k N_k / r_k is the same for all k: p(x), as the r_k add up to 1. Then
# r_k = π_k N_k / p(x): Bayes' rule for the probability that x came from k. EM takes turns.
# E: find these r for each x, and the bound touches log p.
# M: raise the bound, summed over all x_n. Its slope in μ_k, Σ_n r_nk (x_n − μ_k) / σ_k², is 0 where
#    μ_k is the mean of the x_n weighted by r_nk; likewise σ_k² is their variance, and π_k, as with
#    heights above, the share of k in all r. The bound rises from log p, so log p never falls.
class Mixture:
    def __init__(self, x, bells):
        self.weight = torch.full((bells,), 1 / bells)
        self.mean = x.quantile((torch.arange(bells) + 0.5) / bells)
        self.std = x.std().repeat(bells)

    def log_joint(self, x):
        """log(π_k N(x; μ_k, σ_k²)), (B, bells)."""
        return self.weight.log() + Normal(self.mean, self.std).log_prob(x[:, None])

    def log_prob(self, x):
        return self.log_joint(x).logsumexp(1)

    def em_step(self, x):
        r = self.log_joint(x).softmax(1)  # exp, divided by the sum: (N, bells)
        n = r.sum(0)
        self.weight = n / len(x)
        self.mean = (r * x[:, None]).sum(0) / n
        variance = (r * (x[:, None] - self.mean) ** 2).sum(0) / n
        self.std = variance.sqrt().clamp(min=1)  # on one number alone p would become infinite


# A flow: x is a uniform number u in disguise. Let F(x) be the probability of all that lies below x.
# It rises from 0 to 1 with the slope p, dF = p(x) dx, and is called the cumulative distribution
# function, CDF. u = F(x) is uniform: it is below 0.3 if x is below F⁻¹(0.3), with probability 0.3.
# Backwards, F⁻¹(u) of a uniform u is a sample. Now, every rising function from 0 to 1 is a CDF, of
#     p(x) = 1 · dF/dx          density of u, times the factor by which F stretches the place
# This is the change of variables; realnvp.py has it for 784 numbers. Here, with z = x / 50 − 2,
#     F(x) = sigmoid(g),  g = a z + b + Σ_j w_j tanh(v_j (z − c_j)),  a, v, w > 0: g rises
#     log dF/dx = log σ(g) + log σ(−g) + log dg/dx        the sigmoid σ has the slope σ(g) σ(−g)
class Flow(nn.Module):
    def __init__(self, units=8):
        super().__init__()
        self.b = nn.Parameter(torch.zeros(1))
        self.c = nn.Parameter(torch.linspace(-2, 2, units))
        self.log_a = nn.Parameter(torch.zeros(1))  # a, v, w are exp of any numbers: positive
        self.log_v = nn.Parameter(torch.zeros(units))
        self.log_w = nn.Parameter(torch.zeros(units))

    def g(self, x):
        z = x[:, None] / 50 - 2
        bends = self.log_w.exp() * torch.tanh(self.log_v.exp() * (z - self.c))
        return self.log_a.exp() * z[:, 0] + self.b + bends.sum(1)

    def cdf(self, x):
        return self.g(x).sigmoid()

    def log_prob(self, x):
        x = x.clone().requires_grad_()
        g = self.g(x)
        (slope,) = torch.autograd.grad(g.sum(), x, create_graph=True)  # dg/dx at each x
        return F.logsigmoid(g) + F.logsigmoid(-g) + slope.log()

    @torch.no_grad()
    def inverse(self, u):
        """F⁻¹(u): from far left go to the right, by ever shorter steps, if F is still below u."""
        x = torch.full_like(u, -1000)
        for k in range(40):
            step = 2000 / 2**k
            x = x + step * (self.cdf(x + step) < u)
        return x


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    images, y, images_test, y_test, source = mnist()
    n = len(y) * 11 // 12
    x = ink(images[:n], y[:n])
    x_valid = ink(images[n:], y[n:])
    x_test = ink(images_test, y_test)
    if not min(len(x), len(x_valid), len(x_test)):
        raise OSError(f"{source} has too few zeros and ones")
    print(f"the ink of {len(x):,} zeros and ones of {source!a}", flush=True)
    histograms = {2**k: Histogram(x, 2**k) for k in range(1, 14)}
    by_bins = {bins: (nll(h, x), nll(h, x_valid)) for bins, h in histograms.items()}
    best = min(by_bins, key=lambda bins: by_bins[bins][1])
    models = {f"{bins:,} bins": histograms[bins] for bins in (8, best, 4096)}
    for name, bells in (("one bell", 1), ("two bells", 2)):
        models[name] = mixture = Mixture(x, bells)
        by_step = []
        for _ in range(50):
            by_step.append(nll(mixture, x))
            mixture.em_step(x)

    # The flow has 26 numbers, and no formula for the best: go downhill, as all chapters do.
    torch.manual_seed(0)
    models["flow"] = flow = Flow()
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(args.steps):
        batch = torch.randint(len(x), (500,))
        loss = -flow.log_prob(x[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    results = {f"{name}, nats": nll(model, x_test) for name, model in models.items()}
    bell_of_ones = mixture.log_joint(x_test).argmax(1) == 0  # ones take less ink: the left bell
    same = bell_of_ones == (y_test[y_test < 2] == 1)
    results["share of test digits in the bell of their kind"] = same.float().mean().item()
    for name, value in results.items():
        print(f"{name}: {value:.4g}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    metrics = json.dumps({"results": results, "source": source}, indent=1)
    (args.out / "metrics.json").write_text(metrics)
    figure = page(models, flow, by_bins, by_step, x_test)
    figure.supxlabel(f"data: {source}", size="x-small", parse_math=False)
    figure.savefig(args.out / "densities.png", dpi=100)


# %% Evaluation
def page(models, flow, by_bins, by_step, x):
    """A figure: six densities, how bins and bells are learnt, and the flow, for test digits x."""
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    *panels, left, middle, right = figure.subplots(3, 3).flat
    places = torch.linspace(0, 300, 2000)
    for axes, (name, model) in zip(panels, models.items()):
        axes.hist(x.numpy(), 50, density=True, color="lightgray")
        axes.plot(places.numpy(), model.log_prob(places).exp().detach().numpy(), linewidth=1)
        title = f"{name}: {nll(model, x):.3f} nats"
        axes.set(title=title, xlabel="ink (grey: test digits)", ylabel="density p", ylim=(0, 0.02))
    left.semilogx(list(by_bins), list(by_bins.values()), "o-")
    left.set(title="too many bins learn by heart", xlabel="bins", ylabel="NLL, nats")
    left.legend(["training digits", "validation digits"])
    middle.plot(by_step, "o-")
    middle.set(title="EM: NLL never rises", xlabel="steps", ylabel="NLL of training digits, nats")
    right.plot(places.numpy(), flow.cdf(places).detach().numpy())
    u = torch.linspace(0, 1, 51)
    few = torch.full_like(x, 1500 / len(x)).numpy()  # weights: bars about 30 long
    right.hist(flow.cdf(x).detach().numpy(), u.numpy(), weights=few, orientation="horizontal")
    right.hist(flow.inverse(torch.rand(len(x))).numpy(), 300 * u.numpy(), weights=few / 400)
    for height, place in zip(u[1::2].tolist(), flow.inverse(u[1::2]).tolist()):
        right.plot([0, place, place], [height, height, 0], color="gray", linewidth=0.5)
    right.set(title="F(x) of digits: orange; F⁻¹(u): green", xlabel="x", ylabel="u", xlim=(0, 300))
    return figure


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
