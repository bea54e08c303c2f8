"""FSQ, finite scalar quantisation, on vqvae.py: no learned codebook (Mentzer et al. 2024, arXiv:2309.15505).

What changes: the codebook. A code is a point of a fixed grid: d numbers (channels), of which number i has L_i
levels, so that there are K = L_1 ⋯ L_d codes. Each number z of the encoder is bounded, then rounded:

    f(z) = h tanh(z + artanh(s / h)) − s,           h = (L − 1) / 2,  s = 0 for odd L, 1/2 for even L
    e = (f(z) + sg(round f(z) − f(z))) / ⌊L/2⌋      where sg stops the gradient: ∂e/∂z = f′(z) / ⌊L/2⌋

Rounded, f takes the L levels −⌊L/2⌋, …, ⌈L/2⌉ − 1. If L is even, these do not lie evenly about 0: s shifts
the range of f by half a level to fit them, and artanh(s / h) keeps f(0) = 0. (L = 2 would need artanh 1 = ∞.
The paper's code differs a little: tan for artanh, h smaller by 0.1 %.)

Nothing of the grid is learned: no running means, no restarts of dead codes, and no commitment loss, as f(z)
is never far from its code. Networks and prior are the chapter's, and −ELBO is the whole loss. The decoder's
input is smaller, T d numbers in [−1, 1]. The decoder's last bias starts at the mean digit: if it were 0, all
codes would first move one way, to paint the background, to where the tanh is flat, and stay there.
Why: a large learned codebook is hard to keep in use; a grid is used nearly whole. But its codes cost more,
3.8 nats each for the chapter's 2.2: the default has T = 8 for its 16, and its K, 8 · 4 · 4 (paper: L ≥ 5).
Measured, 465 s of training on one busy core: −ELBO 93.80 nats given the class, 30.35 of them for the codes,
perplexity 126.6 (vqvae.py: 96.79, 35.07, 97.8); with 16 codes 109.83, of them 53.91. Class accuracy 97.7 %,
Fréchet distance 1.6 (97.1 %, 1.5).
"""
import math

import torch
from matplotlib.figure import Figure

import vqvae
from data import mnist
from variations import checked, independent_pixels, start
from vqvae import binarise, drop_labels, grid

SETTINGS = {key: vqvae.SETTINGS[key] for key in "steps batch_size lr hidden label_dropout".split()} | {
    "codes": (8, "T, codes of an image", 1, 1000),
    "levels": ("8,4,4", "levels of each channel of a code, 3 or more; their product is K")}

class FSQ(torch.nn.Module):
    """All K codes of d channels, `entry` (K, d), in the place of the chapter's codebook."""
    def __init__(self, levels):
        super().__init__()
        self.K, L = math.prod(levels), torch.tensor(levels)
        half_width, level = L // 2, torch.cartesian_prod(*map(torch.arange, levels)).view(self.K, -1)
        basis = torch.tensor([math.prod(levels[i + 1:]) for i in range(len(levels))])  # the last runs fastest
        parts = {"h": (L - 1) / 2, "s": (1 - L % 2) / 2, "half_width": half_width, "basis": basis}
        for name, value in (parts | {"entry": (level - half_width) / half_width}).items():
            self.register_buffer(name, value)

    def bound(self, z):
        """f(z) / ⌊L/2⌋, in [−1, 1], of any numbers z (…, d)."""
        return (self.h * (z + (self.s / self.h).atanh()).tanh() - self.s) / self.half_width

    def nearest(self, z_e):
        """The index (B, T) of the code to which bounded numbers z_e (B, T, d) are rounded."""
        return (((z_e * self.half_width).round().long() + self.half_width) * self.basis).sum(-1)

class FSQVAE(vqvae.VQVAE):
    """The chapter's model; its straight-through estimator now goes from the grid to the bounded z_e."""
    def __init__(self, hidden=500, codes=8, levels=(8, 4, 4), conditional=True):
        super().__init__(hidden, codes, math.prod(levels), len(levels), conditional)
        self.codebook = FSQ(levels)

    def encode(self, x, y=None):
        return self.codebook.bound(super().encode(x, y))

def read_levels(text):
    levels = [int(word) if word.isdecimal() else 0 for word in text.split(",")]
    if min(levels) < 3 or math.prod(levels) > 10**5:
        raise OSError(f"--levels {text!r} must be numbers from 3, as in 8,4,4, of product at most 100,000")
    return levels

def main(argv=None):
    vars(vqvae).update(NAME="fsq", SETTINGS=SETTINGS, load=checked)  # for Run
    run = vqvae.Run(argv)
    levels = read_levels(run.levels)
    x, y, x_test, y_test, run.source = mnist(run.stand_in, run.device)
    n = len(x) * 11 // 12  # the last twelfth is for validation
    x_valid, y_valid, x_test = binarise(x[n:], seed=0), y[n:], binarise(x_test, seed=1)
    run.baselines = {"independent pixels": independent_pixels(x[:n], x_test)}
    torch.manual_seed(run.seed)
    model = FSQVAE(run.hidden, run.codes, levels, run.label_dropout < 1).to(run.device)
    mean = (x[:n].float().mean(0).flatten() / 255).clamp(0.01, 0.99)
    model.decoder[-1].bias.data.copy_(mean.logit())  # see above: codes need not paint the background
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, run.lr, total_steps=run.steps, pct_start=0.06, cycle_momentum=False)
    for step in run.loop(model=model, optimizer=optimizer, schedule=schedule):
        i = torch.randint(n, (run.batch_size,), device=run.device)
        with run.autocast():
            labels = drop_labels(y[i], run.label_dropout)
            z_e = model.encode(binarise(x[i]), labels)  # of another binarisation, as in the chapter
            loss = -sum(model.terms(binarise(x[i]), z_e, labels)[:2]).mean()  # log p(x | z, y) + log p(z | y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if run.log(loss):  # a status line; True every 20 s and at the end
            samples = grid(model.sample(40, torch.arange(40) % 10), f"samples, step {step:,}")
            with torch.no_grad():
                run.save(-model.elbo(x_valid, y_valid).mean().item(), samples)
    with torch.no_grad():
        z_e, run.entries = model.encode(x_test, y_test), model.codebook.K
    vqvae.evaluate(run, model, x_test, y_test)
    run.picture("levels.png", histograms(z_e, model.codebook))

def histograms(z_e, codebook):
    """A figure of the bounded numbers z_e (B, T, d), a panel for each channel, and of its levels."""
    figure = Figure(figsize=(3 * z_e.shape[2] + 1, 3.2), layout="constrained")
    used = len(codebook.nearest(z_e).unique())
    figure.suptitle("what the encoder gives before rounding (lines: the levels); "
                    f"{used} of {codebook.K} codes are used", size=10)
    for c, ax in enumerate(figure.subplots(1, z_e.shape[2], sharey=True, squeeze=False)[0]):
        values, levels = z_e[:, :, c].flatten().cpu(), codebook.entry[:, c].unique().cpu()
        ax.hist(values, 100, range=(-1, 1), weights=torch.full_like(values, 100 / len(values)), color="gray")
        ax.vlines(levels, 0, 1, lw=1, transform=ax.get_xaxis_transform())
        ax.set(title=f"channel {c + 1}: {len(levels)} levels", xlabel="f(z) / ⌊L/2⌋", ylabel="" if c else "%")
    return figure

if __name__ == "__main__":
    start(main)
