"""Masked diffusion on transformer_ar.py: tokens in any order, many at once (D3PM, Austin et al. 2021,
arXiv:2107.03006; MDLM, Sahoo et al. 2024, arXiv:2406.07524).

What changes: the order. The chapter draws tokens from the first to the last. Here a forward process replaces
each token by [MASK] with probability t: none at t = 0, all at t = 1. The transformer, with no causal mask,
sees what is left, x_t, and predicts every masked token. The bound:

    −log p(x | y) ≤ E [ 1/t Σ_{i masked} −log p(x_i | x_t, y) ]     t ~ U(0, 1); each token masked or not
                  = E [ T/m Σ_{i masked} −log p(x_i | x_t, y) ]     m ~ U{1, …, T}; any m tokens masked

Training draws the second form, whose variance is lower, with m spread evenly over the batch (low-discrepancy
sampler, Kingma et al. 2021, arXiv:2107.00630). The bound is also the NLL of an autoregressive model, averaged
over all orders (Hoogeboom et al. 2022, arXiv:2110.02037). The share of masks in x_t tells the network t.

Sampling: from masks everywhere, in random order, S steps of T/S tokens, each drawn from p(x_i | x_t, y). S =
T is any-order autoregression, exactly; with fewer steps, the tokens of one step are drawn as if independent.
Why: a digit in S < T network calls, and any part of it may be given. The price: a bound, and no cache.

Measured, 539 s of training on two cores: −ELBO 91.2 ± 0.4 nats given the class, where transformer_ar.py
needs 79.77 for its one order (8,000 steps; here 6,000). A separate classifier finds the class asked for
in 66.7 % of 2,000 samples in 28 network calls.
"""
from functools import partial

import torch
import torch.nn.functional as F

import transformer_ar
from transformer_ar import NULL, grid, to_images, to_tokens
from variations import start

SETTINGS = transformer_ar.SETTINGS | {
    "steps": (6000, "optimiser steps", 1, 10**9), "sampling_steps": (28, "S, network calls", 1, 784)}

class MaskedDiffusion(transformer_ar.Transformer):
    """p(x | y) by predicting masked tokens; [MASK] is the symbol K."""
    def __init__(self, width=128, layers=4, heads=2, patch=2, conditional=True):
        super().__init__(width, layers, heads, patch, conditional)
        self.symbol = torch.nn.Embedding(self.K + 1, width)
        torch.nn.init.normal_(self.symbol.weight, std=0.1)

    def embed(self, tokens, y=None):
        """The input (B, T, D): every position is given its token or [MASK], and the class."""
        y = self.labels(NULL if y is None else y, len(tokens))
        return self.symbol(tokens) + self.label(y)[:, None] + self.positions()

    def forward(self, tokens, y=None):
        """Logits (B, T, K) of tokens (B, T), some of them [MASK]; y as in the chapter."""
        h = self.embed(tokens, y)
        for block in self.blocks:  # the chapter's, but all positions attend to all
            attended = F.scaled_dot_product_attention(*block.project(h))
            h = h + block.out(attended.transpose(1, 2).flatten(2))
            h = h + block.mlp(block.norm2(h))
        return self.head(self.norm(h)).float()

    def log_prob(self, x, y=None, draws=1):
        """A lower bound of log p(x | y), nats (B,), estimated by so many draws of m and of the masks."""
        tokens, y = to_tokens(x, self.patch).repeat(draws, 1), self.labels(NULL if y is None else y, len(x))
        B, T = tokens.shape
        shift, row = torch.randint(T, (1,), device=x.device), torch.arange(B, device=x.device)
        m = (shift + row * T // B) % T + 1  # each uniform on 1, …, T, together evenly spread
        masked = torch.rand(B, T, device=x.device).argsort(1) < m[:, None]  # m random places in each row
        logits = self(tokens.masked_fill(masked, self.K), y.repeat(draws))
        nll = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")  # (B, T)
        return -(T / m * (nll * masked).sum(1)).view(draws, -1).mean(0)

    @torch.no_grad()
    def sample(self, n, y=None, guidance=1.0, steps=28, given=None, frames=None):
        """n binary images (n, 1, 28, 28) in a random order, cut into steps; y, guidance as in the chapter.
        `given` (n, T) are tokens, [MASK] where to draw; the list `frames` collects tokens after each step."""
        y, steps = self.labels(y, n), min(steps, self.T)
        y = y if guidance == 1 else torch.cat([y, torch.full_like(y, NULL)])
        tokens = torch.full((n, self.T), self.K, device=y.device) if given is None else given.clone()
        turn = torch.rand(n, self.T, device=y.device).argsort(1) * steps // self.T  # a token's step
        for step in range(steps):
            batches = zip(tokens.repeat(len(y) // n, 1).split(50), y.split(50))  # of 50: faster on a CPU
            logits = torch.cat([self(*batch) for batch in batches])
            if guidance != 1:
                logits = torch.lerp(*reversed(logits.chunk(2)), guidance)  # null + w (conditional − null)
            now = (turn == step) & (tokens == self.K)
            tokens[now] = torch.multinomial(logits[now].softmax(1), 1)[:, 0]
            if frames is not None:
                frames.append(tokens.clone())
        return to_images(tokens, self.patch)

def show(tokens, model):
    """Tokens (B, T) as images, [MASK] in grey: K itself becomes an empty patch, K − 1 would be a full one."""
    return to_images(tokens, model.patch) + to_images((tokens == model.K) * (model.K - 1), model.patch) / 2

@torch.no_grad()
def evaluate(run, model, x, y):
    torch.manual_seed(1)
    S, digit, frames = run.sampling_steps, torch.arange(10, device=x.device), []
    sample, digits = run.autocast()(partial(model.sample, steps=S)), digit.repeat(10)  # in bfloat16 if fast
    bound = torch.cat([-model.log_prob(*part) for part in zip(x.split(100), y.split(100))])
    null = torch.cat([-model.log_prob(part, draws=4) for part in x[::10].split(25)])
    run.report({"test −ELBO, conditional, nats": bound.mean().item(),
                "its standard error": (bound.std() / len(x) ** 0.5).item(),
                "every 10th digit: −ELBO, unconditional, nats": null.mean().item()})
    run.picture("samples.png", grid(sample(100, digits, frames=frames), f"samples, {S} steps"))
    run.picture("unmasking.gif", *(
        grid(show(tokens[:40], model), f"{(tokens[0] < model.K).sum()} of {model.T} tokens drawn")
        for tokens in [torch.full_like(frames[0], model.K), *frames, *frames[-1:] * 9]))
    rows, labels = [], []
    for steps, w in (7, 1), (14, 1), (28, 1), (196, 1), (28, 2):
        rows.append(sample(20, digits[:20], w, steps=steps))
        labels += [f"S = {steps}, w = {w}", ""]
    run.picture("steps.png", grid(torch.cat(rows), "samples in S steps, guidance w", labels))
    first = torch.stack([x[y == d][0] for d in digit])  # the first test digit of each class
    given = to_tokens(first, model.patch).index_fill(1, torch.arange(model.T // 2, device=x.device), model.K)
    rows = torch.cat([first, show(given, model), *(sample(10, digit, given=given) for _ in range(4))])
    run.picture("inpainting.png", grid(rows, "upper halves drawn four times", ["x", "given", *"1234"]))

def main(argv=None):
    vars(transformer_ar).update(NAME="masked_diffusion", LOSS="−ELBO, nats", SETTINGS=SETTINGS,
                                Transformer=MaskedDiffusion, evaluate=evaluate)
    transformer_ar.main(argv)  # the chapter's loop, with these in the place of its own

if __name__ == "__main__":
    start(main)
