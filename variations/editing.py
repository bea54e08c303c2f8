"""Editing on ddpm.py: digits hidden, blurred or noisy (Wang et al. 2023, arXiv:2212.00490).

The chapter draws digits from nothing. But whoever can draw can also mend. Its network stays as it
is, nothing is trained; an image x_0 is sought of which only something is known.

The chapter goes back from x_t in two moves: guess x̂_0, the mean of all x_0 that fit x_t; then
draw x_s, s < t, from q(x_s | x_t, x̂_0). Two kinds of knowledge fit in.

1. Sums of pixels are known, b = A x_0, one for each row of the matrix A. In inpainting a row picks
a pixel that is not hidden. In super-resolution each of 16 rows takes the mean of a block of 7 x 7
pixels. At each step the guess should obey A x = b as well. How should it be changed for that? Let
w_i be the variance of pixel i about the guess x̂_i, given x_t. Were the pixels independent
Gaussians, the likeliest x would have the least Σ_i (x_i − x̂_i)² / 2w_i among all with A x = b. By
Lagrange's method, with one more unknown for each row of A, together λ:

    0 = ∂/∂x_i [Σ_i (x_i − x̂_i)² / 2w_i − λᵀ (A x − b)]
    0 = (x_i − x̂_i) / w_i − (Aᵀ λ)_i
    x = x̂_0 + W Aᵀ λ                     times w_i;  W = diag(w)
    b = A x = A x̂_0 + A W Aᵀ λ           times A;  so λ = (A W Aᵀ)⁻¹ (b − A x̂_0)

Known pixels take their values, hidden ones stay at x̂_i. Let the mean of a block of n pixels be δ
too low: W Aᵀ is w_i / n and A W Aᵀ is mean(w) / n, so pixel i gains δ w_i / mean(w). Two pixels,
0.2 and 0.6, with variances 0.1 and 0.3, should have the mean 0.5, that is δ = 0.1 more: they gain
0.05 and 0.15 and become 0.25 and 0.75.

And w? A pixel that is either −1 or 1 and has the mean m has the variance 1 − m²: sure ones stay,
grey ones move. Pixels of digits are neither Gaussian nor independent, so the draws are not quite
those of p(x_0 | b); but all meet A x = b exactly. (With w = 1 everywhere this is the null-space
method of the paper above; for inpainting see Song et al. 2021, arXiv:2011.13456, too.)

2. The image has noise of some strength σ: v = x_0 + σ ε. By equation 4, √ᾱ_t v is an x_t if
√ᾱ_t σ = √(1 − ᾱ_t). So look up the t with (1 − ᾱ_t) / ᾱ_t = σ², start there and walk to 0. Only
the network and the size of the steps make this inexact. A single pass gives m = x̂_0, the mean of
all x_0 that fit v, which has the least square error; the walk draws one of them, x. For a pixel,
given v,

    E (x − x_0)² = E (x − m)² + E (m − x_0)²     x and x_0 are independent draws of mean m
                 = 2 E (m − x_0)²                and of one distribution, p(x_0 | v)

So the walk's error is √2 = 1.41 times as large. Yet it looks like a digit, the mean like a blur.

Measured on every 100th test digit with the model of a default run of ddpm.py, 24 s of one core of
an AMD EPYC (bfloat16); root mean square errors in grey levels, 0 to 255. Super-resolution: bicubic
(a smooth enlargement) 61.4, one draw 70.2, the mean of five draws 52.8. Noise of σ = 64 levels:
3 x 3 means 32.5, one pass 14.4, the walk 19.1, 1.33 times as much. σ was estimated from the image,
as 66.6; a noise of 32 as 35.4, one of 128 as 129.

Use it where the damage is known and a model of undamaged images is at hand. A draw is what may have
been, not what was: where little is known, draws differ, and that is worth seeing.
"""

import argparse
import sys

import torch
import torch.nn.functional as F

from data import mnist
from ddpm import Run, add_common_flags, grid, load, parse, positive_int, to_pixels


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="out/ddpm/model.pt", help="a run of ddpm.py")
    parser.add_argument("--steps", type=positive_int, default=25, help="from noise to a digit")
    parser.add_argument("--repeats", type=positive_int, default=4, help="of each of these steps")
    parser.add_argument("--draws", type=positive_int, default=5, help="for the mean of samples")
    parser.add_argument("--stride", type=positive_int, default=100, help="1: all test digits")
    add_common_flags(parser, out="out/editing", save_every=1)
    return parse(parser, argv)


# %% Going back, with what is known
def step_back(model, x, t, s, x0):
    """Draw x_s from q(x_s | x_t, x_0) for times s < t, (B,) each: equations 6 and 7 of the chapter.

    There s is t − 1. But the way from s to t is a step, too, with α = ᾱ_t / ᾱ_s and β = 1 − α.
    """
    alpha_bar = model.alpha_bar[t]
    before = model.alpha_bar[s]
    alpha = alpha_bar / before
    from_x0 = before.sqrt() * (1 - alpha) * x0
    from_x = alpha.sqrt() * (1 - before) * x
    mean = (from_x0 + from_x) / (1 - alpha_bar)
    variance = (1 - alpha) * (1 - before) / (1 - alpha_bar)
    return mean + variance.sqrt() * torch.randn_like(x)


def step_forth(model, x, s, t):
    """Draw x_t from q(x_t | x_s), s < t."""
    alpha = model.alpha_bar[t] / model.alpha_bar[s]
    return alpha.sqrt() * x + (1 - alpha).sqrt() * torch.randn_like(x)


def guess(model, x, t):
    """x̂_0 of x_t (B, 1, 28, 28) at times t (B,), for no class given."""
    no_class = model.classes if model.classes > 1 else 0  # if there is one class, it is 0
    eps = model.network(x, t, torch.full_like(t, no_class))
    return model.predict_x0(x, t, eps)


# `project` corrects the guess x̂_0 by what is known. The rest of x may not fit to that: half an
# eight, half a nine. So undo the step, x_t = √α x_s + √(1 − α) ε, and take it again: the network
# now sees what was put in, and mends the rest (Lugmayr et al. 2022, arXiv:2201.09865).
@torch.no_grad()
def walk(model, x, start, steps, project, repeats=1):
    """From x_t (B, 1, 28, 28) at times t = start (B,) to x_0, each guess x̂_0 corrected."""
    shares = torch.linspace(1, 0, steps + 1) ** 2  # t / start, 1 to 0: small steps at small t
    for now, after in zip(shares.tolist(), shares[1:].tolist()):
        t = (start * now).ceil().long()
        s = (start * after).ceil().long()
        for again in range(repeats):
            if again > 0:
                x = step_forth(model, x, s, t)
            x = step_back(model, x, t, s, project(guess(model, x, t)))
    return x


def from_noise(model, n, project, steps, repeats):
    """n images from pure noise, (n, 1, 28, 28)."""
    device = model.beta.device
    x = torch.randn(n, 1, 28, 28, device=device)
    start = torch.full((n,), model.T, device=device)
    return walk(model, x, start, steps, project, repeats)


# %% Sums that are known
def inpaint(model, image, known, steps=25, repeats=4):
    """Images like `image` (B, 1, 28, 28), in [−1, 1], where the mask `known` is true."""

    def project(x0):
        return torch.where(known, image, x0)

    return from_noise(model, len(image), project, steps, repeats)


def block_means(x):
    """(B, 1, 28, 28) to the means of 7 x 7 blocks, (B, 1, 4, 4)."""
    return F.avg_pool2d(x, 7)


def enlarge(means):
    """(B, 1, 4, 4) to blocks of one grey, (B, 1, 28, 28)."""
    return F.interpolate(means, scale_factor=7, mode="nearest")


def super_resolve(model, means, steps=25, repeats=4):
    """Images (B, 1, 28, 28), about in [−1, 1], whose blocks have the means (B, 1, 4, 4)."""

    def project(x0):
        w = 1.01 - x0**2  # not quite 0 even for the surest
        delta = means - block_means(x0)
        return x0 + w * enlarge(delta / block_means(w))

    return from_noise(model, len(means), project, steps, repeats)


# %% Noise of unknown strength
# In a square of pixels, a b above c d, take (a − b − c + d) / 2. Where the image is plain it is 0
# but for the noise: four noises of variance σ², each halved, add up to the variance 4 σ² / 4 = σ².
# At edges there is more, but edges are few, and the median hardly sees them: as half of all |ε|,
# ε ~ N(0, 1), are below 0.6745, the median of the absolute values is about 0.6745 σ.
def noise_strength(v):
    """An estimate of σ for images v = x_0 + σ ε (B, 1, 28, 28), (B,)."""
    kernel = torch.tensor([[0.5, -0.5], [-0.5, 0.5]], device=v.device)
    differences = F.conv2d(v, kernel[None, None]).abs().flatten(1)
    return differences.median(dim=1).values / 0.6745


def matching_time(model, sigma):
    """The first t in 1..T whose noise, in proportion to the image, is σ (B,) or more, (B,)."""
    ratio = ((1 - model.alpha_bar) / model.alpha_bar).flatten()  # rises with t
    return torch.searchsorted(ratio, sigma**2).clamp(1, model.T)


def remove_noise(model, v, steps=25):
    """Of v = x_0 + σ ε (B, 1, 28, 28), σ unknown: the mean of x_0, and a draw of x_0."""
    t = matching_time(model, noise_strength(v))
    x = model.alpha_bar[t].sqrt() * v
    with torch.no_grad():
        mean = guess(model, x, t)
    draw = walk(model, x, t, steps, lambda x0: x0)  # no more is known: guesses stay as they are
    return mean, draw


# %% Evaluation
def rmse(x, x0):
    """Root mean square difference of images in [−1, 1], in grey levels."""
    return 127.5 * F.mse_loss(x.clamp(-1, 1), x0).sqrt().item()


def main(argv=None):
    args = parse_flags(argv)
    model = load(args.model, args.device)
    _, _, x_test, _, source = mnist(args.stand_in, args.device)
    x = to_pixels(x_test[:: args.stride])
    run = Run(args, source, len(x), "nothing is trained", model=model)
    torch.manual_seed(args.seed)
    effort = (args.steps, args.repeats)
    results = {}

    def show(name, title, *rows):
        images = torch.cat([row[:10] for row in rows])
        run.picture(name, grid(images / 2 + 0.5, title))

    print("inpainting ...", flush=True)
    known = torch.arange(28, device=x.device)[:, None] < 14  # the upper half
    seen = torch.where(known, x, -0.7)  # grey: hidden
    drawn = [inpaint(model, x[:10], known, *effort) for _ in range(4)]
    show("inpainting.png", "digits; their upper halves; four draws of the rest", x, seen, *drawn)

    print("super-resolution ...", flush=True)
    means = block_means(x)
    draws = [super_resolve(model, means, *effort) for _ in range(args.draws)]
    bicubic = F.interpolate(means, scale_factor=7, mode="bicubic")
    mean = torch.stack(draws).mean(0)
    results["super-resolution, blocks"] = rmse(enlarge(means), x)
    results["super-resolution, bicubic"] = rmse(bicubic, x)
    results["super-resolution, a draw"] = rmse(draws[0], x)
    results["super-resolution, mean of draws"] = rmse(mean, x)
    title = "digits; 4 x 4 means; bicubic; two draws; mean of draws"
    show("super_resolution.png", title, x, enlarge(means), bicubic, draws[0], draws[-1], mean)

    print("noise removal ...", flush=True)
    for grey_levels in (32, 64, 128):
        v = x + grey_levels / 127.5 * torch.randn_like(x)
        smooth = F.avg_pool2d(v, 3, stride=1, padding=1, count_include_pad=False)
        mean, draw = remove_noise(model, v, args.steps)
        name = f"noise of {grey_levels}, "
        results[name + "estimated"] = 127.5 * noise_strength(v).mean().item()
        results[name + "3 x 3 mean"] = rmse(smooth, x)
        results[name + "one pass"] = rmse(mean, x)
        results[name + "a draw"] = rmse(draw, x)
        title = "digits; with noise; 3 x 3 means; one pass; the walk"
        show(f"noise_{grey_levels}.png", title, x, v, smooth, mean, draw)
    run.report(results)
    (args.out / "curve.png").unlink()  # a learning curve of no training


# %% Notes
# DDIM's latents, and walks between digits through them, are left for a page of their own.
#
# Things to break:
# 1. In `super_resolve`, put w = torch.ones_like(x0): paper around strokes turns grey, in blocks.
# 2. --repeats 1: in super-resolution strokes of neighbouring blocks fit less well.


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")
