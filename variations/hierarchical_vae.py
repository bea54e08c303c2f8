"""Two levels of style, on vae.py: a top-down ladder (Sønderby et al. 2016, arXiv:1602.02282).

The chapter draws the 20 numbers of a style each by itself. But a writer's habits leave their mark
on many strokes, and in each stroke there is chance as well. So draw habits z₂ first, then details
z₁ around a place that depends on them:

    z₂ ~ p(z₂) = N(0, I)                     16 numbers, the upper level
    z₁ ~ p(z₁ | z₂) = N(μ_p, σ_p²)           32 numbers; a network computes μ_p and σ_p from z₂
    x  ~ p(x | z₁)                           the chapter's decoder

All this is given the class y, left out here. The bound is the chapter's, with a pair for z:

    log p(x) = log ∫∫ p(z₂) p(z₁ | z₂) p(x | z₁) dz₁ dz₂            add up what is not observed
             = log E_q[p(z₂) p(z₁ | z₂) p(x | z₁) / q(z₁, z₂ | x)]  multiply and divide by q
             ≥ E_q[log p(x | z₁) + log(p(z₁ | z₂) p(z₂) / q(z₁, z₂ | x))]       Jensen
             = E_q[log p(x | z₁)]                                   let q be q(z₂ | x) times
               − KL(q(z₂ | x) ‖ p(z₂))                              q(z₁ | z₂, x): the log is a sum,
               − E_q[KL(q(z₁ | z₂, x) ‖ p(z₁ | z₂))]                and each level has its price

The price of z₁ counts from the forecast p(z₁ | z₂): what z₂ foretells is paid above, not there.

**Top-down.** The encoder might guess z₁ from x alone. Then pixels teach z₂ nothing: it can only
lower the price of z₁ by its forecast, which at first is worthless. So z₂ may fall silent, q(z₂ | x)
be the prior, and stay so. But what is best? By Bayes' rule, given z₂,
p(z₁ | z₂, x) ∝ p(z₁ | z₂) p(x | z₁): the forecast from above times what the image says. Let q be
such a product, with the encoder's message N(z₁; μ_x, σ_x²) for p(x | z₁). Its log in one dimension:

    −(z₁ − μ_p)² / 2σ_p² − (z₁ − μ_x)² / 2σ_x² + … = −(z₁ − μ)² / 2σ² + …     a Gaussian again
    1 / σ² = 1 / σ_p² + 1 / σ_x²                   equal factors of z₁²: precisions add up
    μ / σ² = μ_p / σ_p² + μ_x / σ_x²               equal factors of z₁

Forecast N(0, 1), message N(2, 1): q = N(1, 0.5). A surer message, N(2, 1/9): q = N(1.8, 0.1). A
message that says nothing, σ_x = ∞: q is the forecast, at no price. So to encode and to draw, one
goes the same way down from z₂ to z₁. The decoder sees what z₂ foretells wherever the image is not
surer, and the gradient of the pixels reaches z₂ by that way from the first step on.

**Importance weighting**, --draws k (IWAE: Burda et al. 2016, arXiv:1509.00519). A draw's weight is
w = p(x, z₁, z₂) / q(z₁, z₂ | x). E_q[w] = p(x), also for the average of k weights: so by Jensen

    log p(x) ≥ E_q[log((w_1 + … + w_k) / k)]       of k draws; k = 1: the ELBO

Two draws with log w = −100 and −98: the ELBO's mean is −99, the log of their mean −98.57. A bad
draw costs little next to a good one, so q may dare more, and the bound comes closer.

MNIST, one core of an AMD EPYC (bfloat16); test digits, nats (natural logarithms). IW: of every 50th
by 500 importance samples. Validation: −ELBO.

                                    −ELBO   IW      validation
    20,000 steps, 224 s             85.30   82.48   86.0    KL of z₂ 3.1, of z₁ 17.6
    vae.py, 50,000 steps, 351 s     85.72   82.78   88.67 at step 30,000, 210 s, its rate still high
    --draws 5, 3,600 steps, 113 s   92.34   86.27   93.1    one draw by then 90.2: too soon for five

In a draft z₂ said 2.4 nats after 1,500 steps (−ELBO in validation 98.8), but 0.6 with the message
alone for q(z₁ | x) (99.0), and bottom-up, by q(z₁ | x) q(z₂ | z₁), 3.6 (99.1): that works, too. In
levels.png z₂ holds the form of a row, z₁ the width of the pen and some more. Use it where details
vary around something that stays.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

import vae
from data import mnist
from vae import MLP, VAE, Run, binarise, grid, log_likelihood, reparameterise, ten_classes


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="optimiser steps")
    parser.add_argument("--batch-size", type=vae.positive_int, default=100, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--hidden", type=vae.positive_int, default=500, help="units in a layer")
    parser.add_argument("--lower", type=vae.positive_int, default=32, help="dimensions of z₁")
    parser.add_argument("--upper", type=vae.positive_int, default=16, help="dimensions of z₂")
    draws = "k, draws of (z₁, z₂) for an image: 1 is the ELBO, more is importance weighting"
    parser.add_argument("--draws", type=vae.positive_int, default=1, help=draws)
    classes = "10: the digit is given to all networks; 1: it is not"
    parser.add_argument("--classes", type=vae.positive_int, default=10, help=classes)
    vae.add_common_flags(parser, out="out/hierarchical_vae", save_every=2000)
    return vae.parse(parser, argv)


# %% Model
# Of the precision of q, let the message have the share g, the forecast the rest: 1 / σ_x² = g / σ²
# and 1 / σ_p² = (1 − g) / σ². Then σ² = (1 − g) σ_p² and μ = g μ_x + (1 − g) μ_p. The encoder puts
# out m = g μ_x and s, which gives g = sigmoid(s − 1), about 0.27 at first. (With μ_x and log σ_x²
# instead, training starts slowly: to say nothing, σ_x must become very large.)
def combine(m, s, prior_mean, prior_log_var):
    """Mean and log σ² of q(z₁ | z₂, x), (B, lower) each, from message and forecast."""
    share = torch.sigmoid(s - 1)
    mean = m + (1 - share) * prior_mean
    log_var = prior_log_var + F.logsigmoid(1 - s)  # log(1 − share)
    return mean, log_var


# Distributions need not check their numbers: Run finds a loss that is NaN, and names its step.
def gaussian(mean, log_var):
    return Normal(mean, torch.exp(0.5 * log_var), validate_args=False)


PRIOR = Normal(0.0, 1.0, validate_args=False)  # of each dimension of z₂


class HierarchicalVAE(VAE):
    """The chapter's encoder and decoder for z₁, and two small networks more, to and from z₂."""

    def __init__(self, hidden=500, lower=32, upper=16, classes=10):
        super().__init__(hidden, lower, classes)  # encode(x, y) gives the message: m and s
        self.upper = upper
        small = (hidden + 1) // 2
        self.summary = MLP(2 * lower + classes, small, 2 * upper)  # to μ and log σ² of q(z₂ | x)
        self.prior = MLP(upper + classes, small, 2 * lower)  # to μ and log σ² of p(z₁ | z₂)

    def two(self, network, v, y):
        """A network's outputs for vectors v of classes y, in two halves."""
        v_and_y = torch.cat([v, F.one_hot(y, self.classes)], dim=1)
        return network(v_and_y).float().chunk(2, dim=1)

    def infer(self, x, y, draws=1):
        """q(z₂ | x, y), draws of z₂ from it, and for each p(z₁ | z₂, y) and q(z₁ | z₂, x, y)."""
        message = [half.repeat_interleave(draws, dim=0) for half in self.encode(x, y)]
        y = y.repeat_interleave(draws)
        q_upper = self.two(self.summary, torch.cat(message, dim=1), y)
        z2 = reparameterise(*q_upper)
        p_lower = self.two(self.prior, z2, y)
        q_lower = combine(*message, *p_lower)
        return gaussian(*q_upper), z2, gaussian(*p_lower), gaussian(*q_lower)

    def log_weights(self, x, y, draws):
        """log p(x, z₁, z₂ | y) − log q(z₁, z₂ | x, y) of so many draws, nats (B, draws)."""
        q_upper, z2, p_lower, q_lower = self.infer(x, y, draws)
        z1 = q_lower.rsample()  # μ + σ ε
        upper = PRIOR.log_prob(z2) - q_upper.log_prob(z2)
        lower = p_lower.log_prob(z1) - q_lower.log_prob(z1)
        logits = self.decode(z1, y.repeat_interleave(draws))
        reconstruction = log_likelihood(x.repeat_interleave(draws, dim=0), logits)
        return (reconstruction + lower.sum(1) + upper.sum(1)).view(-1, draws)

    def elbo(self, x, y, draws=1):
        """The log of the mean of so many weights, nats (B,); draws=1: an estimate of the ELBO."""
        return self.log_weights(x, y, draws).logsumexp(1) - math.log(draws)

    def draw_lower(self, z2, y):
        """Draw z₁ for given z₂ (B, upper); the probability of ink, (B, 1, 28, 28)."""
        z1 = reparameterise(*self.two(self.prior, z2, y))
        return self.decode(z1, y).sigmoid()

    @torch.no_grad()
    def sample(self, y):
        """Draw z₂, then z₁, for each class in y (B,); the probability of ink, (B, 1, 28, 28)."""
        z2 = torch.randn(len(y), self.upper, device=y.device)
        return self.draw_lower(z2, y)


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n:]), y[n:]
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = HierarchicalVAE(args.hidden, args.lower, args.upper, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    run = Run(args, source, n, "−bound, nats", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * vae.warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.elbo(binarise(x[batch]), y[batch], args.draws).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = -model.elbo(x_valid, y_valid).mean()  # whatever --draws
            run.save(validation.item())
            samples = model.sample(ten_classes(y).repeat(10))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)


# %% Evaluation
def load(path="out/hierarchical_vae/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = vae.load_checkpoint(path)
    sizes = ("hidden", "lower", "upper", "classes")
    model = HierarchicalVAE(**{name: saved["flags"][name] for name in sizes})
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    elbo = model.elbo(x, y)
    q_upper, z2, p_lower, q_lower = model.infer(x, y)
    upper = kl_divergence(q_upper, PRIOR).mean(0)  # by dimension
    lower = kl_divergence(q_lower, p_lower).mean(0)
    few = range(0, len(x), 50)
    print("importance samples of every 50th image ...", flush=True)
    tighter = torch.cat([model.elbo(x[i : i + 1], y[i : i + 1], 500) for i in few])
    results = {
        "-ELBO, nats": -elbo.mean().item(),
        "-ELBO, standard error": elbo.std().item() / len(x) ** 0.5,
        "KL of the upper level": upper.sum().item(),
        "KL of the lower level": lower.sum().item(),
        "upper dimensions above 0.05 nats": (upper > 0.05).sum().item(),
        "lower dimensions above 0.05 nats": (lower > 0.05).sum().item(),
        "-ELBO, every 50th image": -elbo[::50].mean().item(),
        "500 importance samples, every 50th image": -tighter.mean().item(),
    }
    run.report(results)

    shown = ten_classes(y)
    samples = model.sample(shown.repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))

    z2_rows = torch.randn(10, model.upper, device=x.device).repeat_interleave(10, dim=0)
    images = model.draw_lower(z2_rows, shown.repeat_interleave(10))
    title = "a row: one z₂, its form; ten draws of z₁, its details"
    run.picture("levels.png", grid(images, title))

    rows = [x[:10], model.decode(q_lower.mean[:10], y[:10]).sigmoid()]
    rows += [model.draw_lower(z2[:10], y[:10]) for _ in range(4)]
    title = "test digits; rebuilt from both levels; and from z₂ alone, four times"
    run.picture("reconstructions.png", grid(torch.cat(rows), title))


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
