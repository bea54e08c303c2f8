"""Coins as latents, on vae.py: four ways past a draw without a derivative (Williams 1992 and more).

The chapter's style is 20 real numbers. But has this 7 a bar, this 2 a loop? Yes or no. Let the
style be 32 tosses, h = (h_1, …, h_32), each 0 or 1. The encoder puts out q, how probable a 1 is,
for each coin: that makes q(h | x, y). With r(h) = log p(x | h, y) the bound is the chapter's:

    ELBO = E_q[r(h)] − KL(q ‖ p)      p(h) = 2^−32: the prior tosses fair coins. The KL is exact

The decoder's gradient is easy: q has none of its weights, so one draw of h estimates it. The
encoder's came through z = μ + σ ε. But a toss is a step: h = 1 if a uniform u < q, else 0, so its
derivative is 0. Yet with r(0) = −100, r(1) = −98 the mean, −98 q − 100 (1 − q), has the slope 2.

**REINFORCE.** A mean can be estimated by draws. So turn the derivative into a mean:

    ∇E_q[r] = Σ_h r(h) ∇q(h)               a mean is a sum of r times probability
            = E_q[r(h) ∇log q(h)]          ∇q = q ∇log q, the log-derivative trick

At q = 1/2, ∇log q(h) is 1 / q = 2 for h = 1, −1 / (1 − q) = −2 for h = 0. The estimates, −196 and
200, have the mean 2 and a standard deviation of 198. Any b without h in it may be taken off r, as
E_q[b ∇log q(h)] = b Σ_h ∇q(h) = b ∇1 = 0. With b = −99, a baseline, both estimates are 2. Nobody
knows the −99. So draw twice, h and h′, and let each r be the other's baseline. The mean of both is

    (r(h) − r(h′)) (∇log q(h) − ∇log q(h′)) / 2       0, 4, 4 or 0: mean 2, deviation 2

**Gumbel-softmax** (Jang et al., Maddison et al. 2017: 1611.01144, 1611.00712). Noise from outside,
as in the chapter: g = log(u / (1 − u)) rises with u, and at u = 1 − q it is −a, for the logit
a = log(q / (1 − q)). So h = 1 if a + g > 0, else 0, is the coin. Make this step a smooth slope,
sigmoid((a + g) / τ). With a small τ it is rare but steep, up to 1 / 4τ: noise. With a large τ the
decoder learns from values like 0.4, which no coin ever shows: a bias.

**Straight-through** (Bengio et al. 2013, 1308.3432). Toss, and pretend that ∂h/∂q = 1. The estimate
is dr/dh: right if r is a straight line in h. For r = h² it is 2h, on average 2q; the truth is 1.

**Wake-sleep** (Hinton et al. 1995). Awake, toss h ~ q and raise r(h): the decoder's gradient.
Asleep, dream h ~ p(h), x ~ p(x | h, y), and raise log q(h | x, y): now h is known. What does sleep
minimise? Leave y out, add and subtract log p(h | x), and take the mean over dreams:

    E[−log q(h | x)] = E[KL(p(h | x) ‖ q(h | x))] − E[log p(h | x)]      no q in the last

Let two coins fit x if they show 00 or 11, both alike. The chapter's gap, KL(q ‖ p(h | x)), is least
if q keeps to one of these, sleep's KL if both coins are fair: then half the tosses fit nothing.

MNIST, one core of an AMD EPYC (bfloat16), 8,000 steps each, 134 s in all; −ELBO of test digits in
nats (natural logarithms); noise and bias of the encoder's gradient, in lengths of the true one:

    reinforce           −ELBO 114.5   5.2 ms a step   noise 3.7 (no baseline: 51)   bias 0, as shown
    gumbel_softmax            111.8   2.7                   1.5                          0.25
    straight_through          117.0   2.7                   1.2                          0.48
    wake_sleep                116.4   3.4

vae.py, larger, has 85.72 after 351 s. If r has no derivative by h, only the first and last remain.
"""

import argparse
import copy
import math
import sys
import time

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.distributions import Bernoulli

import vae
from data import mnist
from vae import MLP, VAE, Run, add_common_flags, binarise, grid, log_likelihood, ten_classes


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000, help="steps of each of the four models")
    parser.add_argument("--batch-size", type=vae.positive_int, default=100, help="images a step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam, constant")
    parser.add_argument("--hidden", type=vae.positive_int, default=200, help="units in a layer")
    parser.add_argument("--latent", type=vae.positive_int, default=32, help="coins in h")
    parser.add_argument("--classes", type=vae.positive_int, default=10, help="1: labels unused")
    add_common_flags(parser, out="out/discrete_latents", save_every=500)
    return vae.parse(parser, argv)


# %% Model
def draw(logits):
    return (torch.rand_like(logits) < logits.sigmoid()).float()


def log_prob(h, logits):
    return Bernoulli(logits=logits, validate_args=False).log_prob(h).sum(1)


class CoinVAE(VAE):
    """The chapter's decoder p(x | h, y), and an encoder to coins."""

    def __init__(self, hidden=200, latent=32, classes=10):
        super().__init__(hidden, latent, classes)
        self.encoder = MLP(28 * 28 + classes, hidden, latent)

    def encode(self, x, y):
        """The logits of q(h | x, y), (B, latent)."""
        x_and_y = torch.cat([x.flatten(1), nn.functional.one_hot(y, self.classes)], dim=1)
        return self.encoder(x_and_y).float()

    def bound(self, x, y, h, logits):
        """r(h) − KL, nats (B,). A coin's KL is log 2 less its entropy: 0 if it is fair."""
        kl = (math.log(2) - Bernoulli(logits=logits, validate_args=False).entropy()).sum(1)
        return log_likelihood(x, self.decode(h, y)) - kl

    def elbo(self, x, y):
        """An estimate of the ELBO by honest tosses, nats (B,): the same for all four."""
        logits = self.encode(x, y)
        return self.bound(x, y, draw(logits), logits)

    @torch.no_grad()
    def sample(self, y):
        """Toss fair coins for each class in y (B,); the probability of ink, (B, 1, 28, 28)."""
        h = draw(torch.zeros(len(y), self.latent, device=y.device))
        return self.decode(h, y).sigmoid()


# Each method returns an estimate of the bound, (B,), that has the method's gradient. Where the two
# do not belong together, a term is added that counts 0 and has the gradient wanted.
def silent(term):
    return term - term.detach()


def reinforce(model, logits, x, y):  # bound − other_bound is r(h) − r(h′): the KL cancels
    h, other = draw(logits), draw(logits)
    bound, other_bound = model.bound(x, y, h, logits), model.bound(x, y, other, logits)
    score = log_prob(h, logits) - log_prob(other, logits)
    return (bound + other_bound + silent((bound - other_bound).detach() * score)) / 2


def no_baseline(model, logits, x, y):  # is not trained, only measured
    h = draw(logits)
    bound = model.bound(x, y, h, logits)
    return bound + silent(bound.detach() * log_prob(h, logits))


def gumbel_softmax(model, logits, x, y, temperature=0.5):
    noise = torch.rand_like(logits).logit(eps=1e-6)  # log(u / (1 − u))
    soft = torch.sigmoid((logits + noise) / temperature)
    return model.bound(x, y, soft, logits)


def straight_through(model, logits, x, y):
    h = draw(logits) + silent(logits.sigmoid())
    return model.bound(x, y, h, logits)


def wake_sleep(model, logits, x, y):
    wake = model.bound(x, y, draw(logits), logits.detach())
    h = draw(torch.zeros_like(logits))
    dream = draw(model.decode(h, y)).detach()
    return wake + silent(log_prob(h, model.encode(dream, y)))


METHODS = {f.__name__: f for f in (reinforce, gumbel_softmax, straight_through, wake_sleep)}


def four(*sizes):
    model = CoinVAE(*sizes)  # all begin with the same weights
    return nn.ModuleDict({name: copy.deepcopy(model) for name in METHODS})


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n:]), y[n:]
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    models = four(args.hidden, args.latent, args.classes).to(args.device)
    optimizer = torch.optim.Adam(models.parameters(), fused=True)
    run = Run(args, source, n, "−ELBO, mean of four", model=models, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        images, labels = binarise(x[batch]), y[batch]
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            bounds = []
            for name, model in models.items():  # they share no weights, only the images
                bounds.append(METHODS[name](model, model.encode(images, labels), images, labels))
            loss = -torch.stack(bounds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                bounds = [-model.elbo(x_valid, y_valid).mean().item() for model in models.values()]
            run.save(sum(bounds) / len(bounds))
            run.curve[-1] |= dict(zip(METHODS, bounds))  # each its own, for bounds.png
            run.save_checkpoint()
    evaluate(run, models, binarise(x[:100]), y[:100], x_test, y_test)


# %% Evaluation
def load(path="out/discrete_latents/model.pt", device="cpu", method="reinforce"):
    """The model that one of the METHODS has trained, ready to sample."""
    saved = vae.load_checkpoint(path)
    models = four(*[saved["flags"][size] for size in ("hidden", "latent", "classes")])
    models.load_state_dict(saved["model"])
    return models[method].to(device).eval()


# Gradients by the logits of the same ten digits, many times. How far one lies from their mean is a
# method's noise; how far the mean lies from the truth, REINFORCE's mean, its bias (0.1 is chance).
def gradients(method, model, logits, x, y, draws):  # (draws, B, latent)
    many = logits.detach().repeat(draws, 1).requires_grad_()
    bounds = method(model, many, x.repeat(draws, 1, 1, 1), y.repeat(draws))
    return torch.autograd.grad(bounds.sum(), many)[0].view(draws, *logits.shape)


def evaluate(run, models, images, labels, x, y):
    """Results and pictures: times for training images, all else for test images x, y."""
    torch.manual_seed(1)
    results = {}
    axes = Figure(figsize=(7.5, 4.8), layout="constrained").subplots()
    for name, model in models.items():
        with torch.no_grad():
            results[f"-ELBO, nats, {name}"] = -model.elbo(x, y).mean().item()
        started = time.perf_counter()
        for _ in range(100):
            with torch.autocast(run.args.device, torch.bfloat16, enabled=run.args.bfloat16):
                bound = METHODS[name](model, model.encode(images, labels), images, labels)
            bound.sum().backward()
        milliseconds = 10 * (time.perf_counter() - started)
        results[f"milliseconds a step, without Adam, {name}"] = milliseconds
        seconds = [point["step"] * milliseconds / 1000 for point in run.curve]
        axes.plot(seconds, [point[name] for point in run.curve], "o-", label=name)
    axes.set(xlabel="seconds of its own training", ylabel="−ELBO of validation images, nats")
    axes.set_title("four gradients for the same coins, judged by the same bound")
    axes.legend()

    model = models["reinforce"]
    inputs = model, model.encode(x[:10], y[:10]), x[:10], y[:10]
    truth = gradients(reinforce, *inputs, draws=2000).mean(0)
    for method in (no_baseline, reinforce, gumbel_softmax, straight_through):
        estimates = gradients(method, *inputs, draws=1000)
        name = method.__name__
        results[f"noise, {name}"] = (estimates.std(0).norm() / truth.norm()).item()
        results[f"bias, {name}"] = ((estimates.mean(0) - truth).norm() / truth.norm()).item()
    run.report(results)
    run.picture("bounds.png", axes.figure)
    samples = [model.sample(ten_classes(y).repeat(2)) for model in models.values()]
    run.picture("samples.png", grid(torch.cat(samples), "two rows each: " + ", ".join(models)))


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
