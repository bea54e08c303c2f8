"""FSQ on vqvae.py: rounded numbers instead of a codebook (Mentzer et al. 2023, arXiv:2309.15505).

vqvae.py learns its letters: a table of K vectors, its entries, that follow the encoder's vectors.
That takes a loss to move them, a loss that holds the encoder near them, and restarts for those
that are never used. Finite scalar quantisation asks: need letters be learnt? Here the encoder puts
out d numbers z_1, …, z_d at each place; each is squeezed into (−1, 1) and rounded. For number i,
which has L_i levels:

    v_i = tanh z_i                               in (−1, 1), whatever z_i is
    n_i = round((L_i − 1) (1 + v_i) / 2)         (1 + v_i) / 2 is in (0, 1): a level, 0 … L_i − 1
    e_i = 2 n_i / (L_i − 1) − 1                  back to [−1, 1]: what the decoder gets

    L = 4     z       −2       −0.5     0.1     1.5        the levels       e = −1  −1/3  1/3  1
              v       −0.964   −0.462   0.100   0.905      the borders, half-way: −2/3  0  2/3
              n        0        1       2       3
              e       −1       −1/3     1/3     1

How many letters are there? Each number takes its level without asking the others, so there are
K = L_1 · L_2 · … of them: 4 · 4 = 16 for the default, as many as the chapter has, 8 · 8 = 64,
5 · 5 · 5 = 125. Their names are numbers of d digits, the last running fastest: with levels 4, 4
(n_1, n_2) = (2, 1) is letter 4 · 2 + 1 = 9; with 5, 5, 5 (4, 0, 3) is 25 · 4 + 5 · 0 + 3 = 103.

How does the encoder learn through round, whose derivative is 0 almost everywhere? As in the
chapter, straight through: pretend that round(u) = u. Then

    ∂e_i/∂z_i = 2 / (L_i − 1) · 1 · (L_i − 1) / 2 · ∂v_i/∂z_i    the chain rule, 1 for round
              = 1 − tanh² z_i                                    L_i cancels: it is that of v_i

What becomes of the chapter's loss?

    −log p(x | k(x), y)     stays
    ‖sg[z] − e‖²            is gone: e is no weight, there is nothing to move
    β ‖z − sg[e]‖²          is gone: v is within 1 / (L − 1) of its level, and e cannot run away
    −log p(k(x) | y)        stays: these two are the bound, and now they are the whole loss

Nor can an entry die. In the chapter one that is nearest to nothing gets no gradient and stays where
it is for ever. Here it has nothing to learn, and its box, all v that are rounded to it, lies beside
those in use: the encoder has to cross a border, not to wait for an entry. It may still find no use
for one: that is measured by the perplexity, exp of the entropy of the entries' shares.

Logarithms are natural, the unit is the nat. On MNIST and one core of an AMD EPYC (bfloat16), test
images; `class found` is by a separate classifier, of 5,000 and 2,000 samples:

                             steps  seconds  bound, nats  for the codes  perplexity  class found
    vqvae.py, 16 entries    27,000      730        90.51          27.35        15.1       98.5 %
    levels 4 4, 16 letters   4,000      296        94.94          27.61        14.8       96.0 %

Other programs shared that core: about 120 of the 296 seconds were its own. Validation images: 96.1,
and 95.5 in a draft of the chapter, also of 4,000 steps: 16 letters may as well be learnt. More cost
more: at step 250 the loss is 142 with 4 4 or 2 2 2 2, 158 with 8 8. (In the paper L is at least 5.)
"""

import argparse
import math
import sys

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from data import mnist
from vqvae import (
    VQVAE,
    Run,
    add_common_flags,
    binarise,
    evaluate,
    grid,
    load_checkpoint,
    log_likelihood,
    parse,
    positive_int,
    straight_through,
    ten_classes,
    warmup_cosine,
)


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=50, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="of the 14 x 14 layers")
    levels = "L, how many values each number of a code has: as many numbers as are given here"
    parser.add_argument("--levels", type=two_or_more, nargs="+", default=[4, 4], help=levels)
    parser.add_argument("--width", type=positive_int, default=64, help="of the prior; 4 divides it")
    classes = "10: the digit is given to decoder and prior; 1: it is not"
    parser.add_argument("--classes", type=positive_int, default=10, help=classes)
    add_common_flags(parser, out="out/fsq", save_every=1000)
    return parse(parser, argv)


def two_or_more(text):
    if int(text) < 2:
        raise ValueError
    return int(text)


# %% Model
def round_to_levels(v, levels):
    """The levels n, 0 … L − 1, of numbers v (…, d) in [−1, 1]; `levels` (d,) holds the L."""
    return ((levels - 1) * (1 + v) / 2).round()


def values(n, levels):
    """The numbers e (…, d) in [−1, 1] of levels n (…, d)."""
    return 2 * n / (levels - 1) - 1


def letters(n, levels):
    """The codes (…), whole numbers from 0 to K − 1, of levels n (…, d)."""
    k = torch.zeros_like(n[..., 0])
    for i, size in enumerate(levels):
        k = k * size + n[..., i]  # as one reads a number: so far, times the base, plus a digit
    return k.long().clamp(min=0)  # of NaN, too: the run will stop with a hint


# All that the chapter's model does with its entries, it can do with a table that is fixed: decode,
# the bound, samples. To find a code it looks for the nearest entry of all K, and that is rounding,
# too: a squared distance is a sum over i, and each n_i makes its own term as small as it can be.
class FSQVAE(VQVAE):
    """The chapter's model, with the K possible results of rounding in place of its codebook."""

    def __init__(self, channels=32, levels=(4, 4), width=64, classes=10):
        super().__init__(channels, math.prod(levels), len(levels), width, classes)
        del self.entries, self.idle  # a table that learns, and what its restarts need
        every_level = [torch.arange(float(size)) for size in levels]
        n = torch.cartesian_prod(*every_level).view(-1, len(levels))  # (K, d), in order
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("entries", values(n, self.levels), persistent=False)

    def encode(self, x):
        """v (B, 16, d), numbers in [−1, 1] before they are rounded."""
        return torch.tanh(super().encode(x))


# %% Training
# tanh is flat where |z| is large: at z = 4 its slope 1 − tanh² z is 0.001; nothing gets through.
# At first every image comes out grey, half ink, and the quickest way to an ink of 0.13, to paper
# nearly everywhere, is to push all z one way: there they stay, and all letters are the same (174
# nats after 900 steps). So the decoder's last bias begins at the logit log(0.13 / 0.87) = −1.9.
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid, y_valid = binarise(x[n:]), y[n:]
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = FSQVAE(args.channels, args.levels, args.width, args.classes)
    ink = (x[:n:10] / 255).mean()
    nn.init.constant_(model.decoder[-1].bias, ink.logit().item())
    model.to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    run = Run(args, source, n, "bound, nats", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        plain = sdpa_kernel(SDPBackend.MATH)  # faster for 16 places
        with plain, torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            v = model.encode(binarise(x[batch]))  # one draw of the pixels; rebuild another
            n_v = round_to_levels(v, model.levels)
            e = straight_through(v, values(n_v, model.levels))
            reconstruction = log_likelihood(binarise(x[batch]), model.decode(e, y[batch]))
            price = -model.prior.log_prob(letters(n_v, model.levels), y[batch])
            loss = (price - reconstruction).mean()  # and nothing else
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = -model.elbo(x_valid, y_valid).mean()
            run.save(validation.item())
            samples = model.sample(ten_classes(y).repeat(10))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x[:n], x_test, y_test)  # the chapter's: figures, samples, codes
    run.picture("alphabet.png", alphabet(model, x_test))


# %% Evaluation
def load(path="out/fsq/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    sizes = ("channels", "levels", "width", "classes")
    model = FSQVAE(**{name: saved["flags"][name] for name in sizes})
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


# Left: how often numbers v occur before they are rounded; between two lines all get the level in
# the middle. Right: what letters mean: for one place, the mean of what it sees in test images, in
# a table of its two numbers. Letters side by side there differ by one level, and look alike.
@torch.no_grad()
def alphabet(model, x):
    """A figure about the first and the last number of a code, for images x (B, 1, 28, 28)."""
    v = model.encode(x)
    n = round_to_levels(v[:, 5], model.levels)
    ends = [0, -1]
    across, up = model.levels[ends].tolist()
    figure = Figure(figsize=(10, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    first, last = v[:, :, ends].flatten(0, 1).T.cpu().numpy()
    left.hist2d(first, last, bins=150, range=[[-1, 1], [-1, 1]], norm="log", cmap="Blues")
    for border in range(1, across):
        left.axvline((2 * border - 1) / (across - 1) - 1, color="black", lw=0.8)
    for border in range(1, up):
        left.axhline((2 * border - 1) / (up - 1) - 1, color="black", lw=0.8)
    left.plot(*model.entries[:, ends].T.tolist(), "o", color="red", clip_on=False)
    left.set(xlabel="first number, v", ylabel="last number, v", aspect="equal")
    left.set_title("test digits before rounding; red: the letters")

    rows = []
    for b in reversed(range(up)):
        row = []
        for a in range(across):
            chosen = (n[:, 0] == a) & (n[:, -1] == b)
            total = x[chosen, 0, 1:23, 1:23].sum(0)  # place 5, in the second row and column
            row.append(total / chosen.sum().clamp(min=1))
        rows.append(torch.cat(row, dim=1))
    right.imshow(torch.cat(rows).cpu().numpy(), cmap="gray_r", vmin=0, vmax=1)
    right.set(xlabel="level of the first number", ylabel="level of the last number")
    right.set_xticks([22 * a + 10.5 for a in range(across)], range(across))
    right.set_yticks([22 * b + 10.5 for b in range(up)], reversed(range(up)))
    right.set_title("the mean of what place 5 sees, by its letter")
    return figure


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
