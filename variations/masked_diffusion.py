"""Masked diffusion on transformer_ar.py: tokens in any order (Sahoo et al. 2024, arXiv:2406.07524).

The chapter draws a digit row by row, one token a call of the network. Must there be an order?
ddpm.py destroys an image by noise and learns to undo that. A token is destroyed more simply: hide
it. Each of the T = 196 tokens is masked at a time of its own, uniform between 0 and 1, and stays
so: at time t each is masked with probability t. The network sees what is left, x_t, and gives for a
masked token i the probabilities p_i(· | x_t, y) of its 16 values. It is not told t: which tokens
are masked says nothing about what they are (Austin et al. 2021, arXiv:2107.03006).

The bound. Go back in N steps, from t = n/N to s = (n − 1)/N. Were x known, the right step would be:
a token masked at t was masked at s already with probability s/t = (n − 1)/n, and stays so; else
(1/n) it is shown. Our step is the same but must guess: it shows token i as k with probability
p_i(k | x_t, y) / n. As in ddpm.py, −log p(x | y) is at most the sum of the KLs of the steps, means
of log (right / ours). A seen token costs nothing; a masked one, with p_i for p_i(x_i | x_t, y),

    KL = (n−1)/n log 1 + 1/n log [1/n / (p_i / n)] = −1/n log p_i      log 1: as likely to stay

    −log p(x | y) ≤ Σ_n 1/n E Σ_{i masked} −log p_i           all steps, all tokens; E: over masks
                  = 1/N Σ_n E [1/t Σ_{i masked} −log p_i]     1/n = 1/N · 1/t
                  → E_t E [1/t Σ_{i masked} −log p_i]         N → ∞: the mean over t ~ U(0, 1)

So 1/t is the rate at which a masked token is shown. How much does one mask of m tokens weigh in all
this? At time t it comes up with probability t^m (1 − t)^(T−m). For T = 4:

    masked tokens, m                                   1      2      3      4
    weight of one mask, ∫ 1/t · t^m (1 − t)^(4−m) dt   1/4    1/12   1/12   1/4
    masks of m tokens                                  4      6      4      1
    weight of all of them                              1      1/2    1/3    1/4

The last row is 1/m, for any T. 1/m times a sum of m terms is a mean. So, with m uniform on 1 … T,

    bound = Σ_m E [mean of −log p_i over the masked] = E_m E [T · mean of −log p_i over the masked]

That is the loss below. Drawing one token after the other in a random order costs the same on
average: when m are left they are any m, and the next is any of them. So the bound is the mean over
all orders of the chapter's −log p (for T = 4 a test adds up the 24). With S calls, each draws T/S
tokens as if they were independent. Then m is T/S, 2T/S, …, T, and the bound is the mean over these.

`python -m variations.masked_diffusion` trains for 200 s on one core of an AMD EPYC (bfloat16). Test
images given the class (S < 196: every 5th); one nat less, and p is e times as large. Class right:
a separate classifier finds the class asked for, in 1,000 samples (S = 49: in 600, S = 196: 200).

    calls S                                  1        4        14       49       196
    −ELBO, nats, of what S calls draw        131.9    95.6     89.3     88.6     86.8 ± 0.4
    class right (± standard error)           21 %     68 %     79 %     82 %     82 % ± 3

transformer_ar.py has 83.3 (validation) after 225 of its 787 s, 78.20 and 94.9 % at the end: it
learns one order, not all. 100 digits take 6.0 s in 49 calls, there 2.2 s by the cache. Use this
where there is no order, any part may be given (inpainting.png), or calls of the network are dear.
"""

import argparse
import math
import sys

import torch
import torch.nn.functional as F
from torch import nn

from data import mnist
from transformer_ar import (
    Block,
    Run,
    add_common_flags,
    binarise,
    grid,
    load_checkpoint,
    parse,
    positive_int,
    ten_classes,
    to_images,
    to_tokens,
    warmup_cosine,
)


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=3500, help="optimiser steps")
    parser.add_argument("--batch-size", type=positive_int, default=32, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--width", type=positive_int, default=128, help="numbers at a position")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/masked_diffusion", save_every=1000)
    return parse(parser, argv)


# %% Model
# An order needs a position for each token. Without one, a convolution of stride 2 joins 14 x 14
# tokens (16 kinds, or masked) to 7 x 7 positions: a step is four times as fast. Each looks at all,
# there is no causal mask. At the end a convolution the other way gives 16 logits for each token.
MASK = 16  # the chapter's tokens are 0 to 15


class MaskedDiffusion(nn.Module):
    """p(x | y) of binary images x (B, 1, 28, 28) of classes y (B,), tokens in any order."""

    def __init__(self, width=128, classes=10, layers=4):
        super().__init__()
        self.T = 14 * 14
        self.classes = classes
        self.join = nn.Conv2d(MASK + 1, width, 4, stride=2, padding=1)
        self.label = nn.Embedding(classes, width)
        self.place = nn.Embedding(7 * 7, width)
        self.blocks = nn.ModuleList(Block(width, heads=2) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.part = nn.ConvTranspose2d(width, MASK, 4, stride=2, padding=1)

    def forward(self, tokens, y):
        """The logits of all tokens, (B, 16, T), from tokens (B, T), some of them MASK."""
        kinds = F.one_hot(tokens, MASK + 1).float()  # (B, T, 17)
        h = self.join(kinds.transpose(1, 2).unflatten(2, (14, 14)))  # (B, width, 7, 7)
        h = h.flatten(2).transpose(1, 2)  # (B, 49, width)
        h = h + self.place.weight + self.label(y)[:, None]
        for block in self.blocks:
            q, k, v = block.queries_keys_values(h)
            weights = (q / q.shape[3] ** 0.5 @ k.transpose(2, 3)).softmax(3)
            h = block.add(h, weights @ v)
        h = self.norm(h).transpose(1, 2).unflatten(2, (7, 7))
        return self.part(h).flatten(2).float()

    def elbo(self, x, y, calls=196):
        """A bound on log p(x | y), nats (B,), from one mask an image; `calls` divides 196."""
        tokens = to_tokens(x, 2)
        u = torch.rand(1, device=x.device) + torch.arange(len(x), device=x.device) / len(x)
        calls_left = (u % 1 * calls).long() + 1  # 1 to S, about as often each: u is evenly spaced
        m = calls_left * (self.T // calls)
        masked = torch.rand(tokens.shape, device=x.device).argsort(1) < m[:, None]  # any m tokens
        logits = self(tokens.masked_fill(masked, MASK), y)
        nll = F.cross_entropy(logits, tokens, reduction="none")  # (B, T)
        return -self.T * (nll * masked).sum(1) / m

    @torch.no_grad()
    def unmask(self, tokens, y, calls):
        """Draw what is MASK in tokens (B, T), T/S random places a call: yields them after each."""
        turn = torch.rand(tokens.shape, device=y.device).argsort(1) * calls // self.T
        for call in range(calls):
            p = self(tokens, y).softmax(1).transpose(1, 2)  # (B, T, 16)
            drawn = torch.multinomial(p.flatten(0, 1), 1).view_as(tokens)
            tokens = torch.where((turn == call) & (tokens == MASK), drawn, tokens)
            yield tokens

    def sample(self, y, calls=49):
        """Draw an image for each class in y (B,), (B, 1, 28, 28)."""
        tokens = torch.full((len(y), self.T), MASK, device=y.device)
        *_, tokens = self.unmask(tokens, y, calls)
        return to_images(tokens, 2)


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    torch.manual_seed(0)  # validation and test images are binarised once, always the same way
    x_valid = binarise(x[n::5])
    x_test = binarise(x_test)

    torch.manual_seed(args.seed)
    model = MaskedDiffusion(args.width, args.classes).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
    run = Run(args, source, n, "−ELBO, nats", model=model, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = -model.elbo(binarise(x[batch]), y[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            run.save(-elbo_in_parts(model, x_valid, y[n::5]).mean().item())
            samples = model.sample(ten_classes(y).repeat(2))
            run.picture("samples.png", grid(samples, f"samples, step {step:,}"))
    evaluate(run, model, x_test, y_test)


# %% Evaluation
def load(path="out/masked_diffusion/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    model = MaskedDiffusion(saved["flags"]["width"], saved["flags"]["classes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


@torch.no_grad()
def elbo_in_parts(model, x, y, calls=196):
    """model.elbo, 250 images at a time."""
    parts = zip(x.split(250), y.split(250))
    return torch.cat([model.elbo(*part, calls) for part in parts])


def with_grey(tokens):
    """Tokens (B, T) as images (B, 1, 28, 28), what is MASK in grey."""
    ink = to_images(tokens % MASK, 2)  # MASK becomes token 0, all paper
    return ink + to_images((tokens == MASK) * 15, 2) / 2  # token 15 is all ink


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for binarised test images x (N, 1, 28, 28) of classes y (N,)."""
    torch.manual_seed(1)
    digits = ten_classes(y)
    results = {"untrained, nats": 28 * 28 * math.log(2)}
    rows = []
    for calls in (1, 4, 14, 49, 196):
        print(f"bound and samples of {calls} calls ...", flush=True)
        every = 1 if calls == 196 else 5  # of the others every 5th image
        elbo = elbo_in_parts(model, x[::every], y[::every], calls)
        results[f"-ELBO, {calls} calls, nats"] = -elbo.mean().item()
        rows.append(model.sample(digits, calls))
    results["standard error of the last"] = elbo.std().item() / len(elbo) ** 0.5
    run.report(results)
    run.picture("calls.png", grid(torch.cat(rows), "drawn in 1, 4, 14, 49 and 196 calls"))
    run.picture("samples.png", grid(model.sample(digits.repeat(10)), "samples in 49 calls"))

    hidden = torch.full((20, model.T), MASK, device=x.device)
    pages = []
    for tokens in [hidden, *model.unmask(hidden, digits.repeat(2), calls=28)]:
        drawn = (tokens[0] != MASK).sum()
        pages.append(grid(with_grey(tokens), f"{drawn} of 196 tokens drawn, in any order"))
    run.picture("unmasking.gif", *pages, *pages[-1:] * 5)

    first = torch.stack([x[y == label][0] for label in digits])  # a test digit of each class
    given = to_tokens(first, 2)
    given[:, : model.T // 2] = MASK
    *_, tokens = model.unmask(given.repeat(4, 1), digits.repeat(4), calls=49)
    rows = [first, with_grey(given), to_images(tokens, 2)]
    run.picture("inpainting.png", grid(torch.cat(rows), "digits, given halves, four ways on"))


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
