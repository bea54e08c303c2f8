"""Representations on vae.py: what a linear layer reads in them (Alain & Bengio 2016, 1610.01644).

To draw digits, networks compute numbers f(x) from images x. What do these say? One rule for all
models: leave the network as it is, and fit one linear layer, the probe, that names the class y:

    p(y | x) = softmax(W f(x) + b)       W, b: the least mean of −log p(y | x) + λ/2 ‖W‖²

Each number of f is first standardised: mean 0, deviation 1. λ is chosen on validation digits. The
probe cuts by planes only, so what it reads lies open in f. The bar to pass: the pixels, f(x) = x.

**Nobody may tell f the answer.** The encoder of vae.py sees the class, and a probe would find it in
μ. So the VAE here is that of --classes 1, trained in this file. vqvae.py's encoder sees no class,
ddpm.py's network is told "no class given", and ebm.py's is cut before its last layer, which has an
output for each class. But these three were trained with classes; a * marks them. The loss of ebm.py
even contains −log p(y | x): its numbers have learnt from 55,000 labels, not from drawing alone.

**A plain autoencoder** is the VAE without noise and KL: code z = μ(x), loss −log p(x | z). It
rebuilds better, but cannot draw. Multiply μ by c > 0, divide the decoder's first weights A by c:

    (A / c)(c μ(x)) = A μ(x)             all digits are rebuilt as before, the loss is the same

So the loss does not say where codes lie, and z ~ N(0, I) misses them. A Gaussian fitted to codes
has their place, size and slant. But codes leave gaps, and no loss asks what a z in a gap becomes.

The VAE pays for where codes lie. Let q(z) be the mean of q(z | x) over all images x: its decoder
learns from z ~ q(z). With E the mean over x and over z ~ q(z | x),

    E_x KL(q(z | x) ‖ p(z)) = E[log q(z | x) − log p(z)]
                            = E[log(q(z | x) / q(z))] + E[log(q(z) / p(z))]   subtract, add log q(z)
                            = I(x; z) + KL(q(z) ‖ p(z))                       no x in the last

I, the mutual information, is what z tells of x. The rest buys nothing; it is 0 if q(z) = p(z). Let
z be 0 or 1 with p(z) = 1/2, for two images. One image at each z costs log 2 = 0.69 nats, all of it
I. Both at 0 cost as much, but I is 0. So codes spread over p, and the decoder meets what p draws.

160 s on one core of an AMD EPYC (bfloat16). Test digits misread, for 100 labels the mean of ten:

    numbers:     pixels 784   autoencoder 20   VAE 20   vqvae* 256   ddpm* 3,136   ebm* 128
    100 labels     28.4 %        21.3           30.8      48.2         21.7         10.0
    11,000          8.2           8.6           12.4       9.9          2.7          1.5

Means of five: untrained, ddpm.py has 34.6 and 11.2, ebm.py 36.2 and 15.1; ebm.py after 2,700 steps
of --classes 1 has 20.4 and 3.8: by drawing it learnt to read. But vqvae.py's decoder is told the
class, so codes need not tell it. And the VAE closes gaps where planes could, perhaps, cut. Fréchet
distance of 5,000 draws: VAE 33, plain 187, fitted 68. Use a probe to see what a model knows.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

import ddpm
import ebm
import vae
import vqvae
from data import mnist
from vae import VAE, Run, binarise, grid, log_likelihood


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=8000, help="optimiser steps")
    parser.add_argument("--batch-size", type=vae.positive_int, default=100, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--latent", type=vae.positive_int, default=20, help="numbers in a code")
    parser.add_argument("--draws", type=vae.positive_int, default=10, help="of 100 labels")
    for name in ("vqvae", "ddpm", "ebm"):
        parser.add_argument(f"--{name}", default=f"out/{name}/model.pt", help=f"a run of {name}.py")
    vae.add_common_flags(parser, out="out/representations", save_every=1000)
    return vae.parse(parser, argv)


# %% Model
class Autoencoder(VAE):
    """The VAE without noise and KL: z = μ. Its log σ² is not used."""

    def elbo(self, x, y):
        """What is left of the bound: log p(x | z), nats (B,)."""
        mean, _ = self.encode(x, y)
        return log_likelihood(x, self.decode(mean, y))


def two_models(latent):
    plain = Autoencoder(latent=latent, classes=1)
    return nn.ModuleDict({"VAE": VAE(latent=latent, classes=1), "plain": plain})


def loss_of(two, x):
    """Both losses for binary images x (B, 1, 28, 28), added up: the two share no weight."""
    return -(two["VAE"].elbo(x, alike(x)) + two["plain"].elbo(x, alike(x))).mean()


def alike(x):
    return torch.zeros(len(x), dtype=torch.long, device=x.device)  # one label for all


def code(model, x):
    return model.encode(x, alike(x))[0]  # μ, (B, latent)


def ink(model, z):
    return model.decode(z, alike(z)).sigmoid()


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation

    torch.manual_seed(args.seed)
    two = two_models(args.latent).to(args.device)
    optimizer = torch.optim.Adam(two.parameters(), fused=True)
    run = Run(args, source, n, "both losses, nats", model=two, optimizer=optimizer)
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = args.lr * vae.warmup_cosine(step / args.steps)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = loss_of(two, binarise(x[batch]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = loss_of(two, binarise(x[n:]))
            run.save(validation.item())
    evaluate(run, two, [x[:n:5], x[n:], x_test], [y[:n:5], y[n:], y_test])  # fit on 11,000


# %% Evaluation
def load(path="out/representations/model.pt", device="cpu"):
    """The two models of a finished or unfinished run."""
    saved = vae.load_checkpoint(path)
    two = two_models(saved["flags"]["latent"])
    two.load_state_dict(saved["model"])
    return two.to(device).eval()


# ε ~ N(0, I): Σ_i ε_i (z_i − mean) / √N is Gaussian, covariance Σ_i (z_i − mean)(z_i − mean)ᵀ / N.
def draw_like(codes, count):
    """Draws (count, latent) from a Gaussian with the mean and covariance of codes (N, latent)."""
    eps = torch.randn(count, len(codes), device=codes.device)
    return codes.mean(0) + eps @ (codes - codes.mean(0)) / len(codes) ** 0.5


def vqvae_features(model, x):
    k = vqvae.nearest(model.encode(x / 255), model.entries)
    return F.one_hot(k, len(model.entries)).float()  # (B, 16, K): a one at the letter


def ddpm_features(model, x):
    """What the network has halfway, (B, 2C, 7, 7); no class, t = 150 (best in validation)."""
    t = torch.full_like(alike(x), 3 * model.T // 20)
    x0 = ddpm.to_pixels(x)
    x_t = model.add_noise(x0, t, torch.randn_like(x0))
    seen = []

    def keep(module, inputs, output):
        seen.append(output)

    hook = model.network.coarse2.register_forward_hook(keep)
    model.network(x_t, t, torch.full_like(t, model.classes if model.classes > 1 else 0))
    hook.remove()
    return seen[0]


def ebm_features(model, x):
    return model.net[:-1](ebm.add_noise(x / 255, model.noise))  # (B, 128)


def representations(two, args):
    """Names, and functions that make numbers of grey levels x, 0 to 255 (B, 1, 28, 28)."""
    yield "pixels", lambda x: x / 255
    yield "autoencoder", lambda x: code(two["plain"], x / 255)
    yield "VAE", lambda x: code(two["VAE"], x / 255)
    for module, features in ((vqvae, vqvae_features), (ddpm, ddpm_features), (ebm, ebm_features)):
        name = module.__name__
        try:
            model = module.load(getattr(args, name), args.device)
        except OSError as error:
            print(f"{name} is left out, run {name}.py first: {error}", flush=True)
            continue
        yield name if model.classes == 1 else f"{name}*", lambda x: features(model, x)


def fit(f, y, decay):
    """The linear layer of least loss on features f (N, size), labels y (N,); the loss is convex."""
    layer = nn.Linear(f.shape[1], y.max().item() + 1, device=f.device)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        total = F.cross_entropy(layer(f), y) + decay / 2 * layer.weight.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return layer


def misread(layer, f, y):
    return (layer(f).argmax(1) != y).float().mean().item()


def test_error(f, labels, rows):
    """The share of test digits misread after fitting these rows of the training digits."""
    train, valid, test = f.split([len(y) for y in labels])
    y, y_valid, y_test = labels
    layers = [fit(train[rows], y[rows], decay) for decay in (0.0001, 0.001, 0.01, 0.1)]
    best = min(layers, key=lambda layer: misread(layer, valid, y_valid))
    return misread(best, test, y_test)


@torch.no_grad()
def evaluate(run, two, images, labels):
    """Results and pictures; images and labels of training, validation and test digits."""
    torch.manual_seed(1)
    count = len(labels[0])
    results = {}
    for name, features in representations(two, run.args):
        print(f"probing {name} ...", flush=True)
        f = torch.cat([features(x).flatten(1) for x in torch.cat(images).split(500)])
        f = (f - f[:count].mean(0)) / f[:count].std(0).clamp(min=0.01)  # some pixels have no ink
        draws = [torch.randperm(count)[:100] for _ in range(run.args.draws)]
        few = [test_error(f, labels, rows) for rows in draws]
        name = f"{name}, {f.shape[1]:,} numbers"
        results[f"{name}, {len(draws[0])} labels"] = sum(few) / len(few)
        results[f"{name}, {count:,} labels"] = test_error(f, labels, slice(None))
    run.report(results)
    axes = Figure(figsize=(8, 4), layout="constrained").subplots()
    percent = [100 * error for error in results.values()]
    bars = axes.barh(list(results), percent, color=["tab:blue", "tab:orange"] * len(percent))
    axes.bar_label(bars, fmt="%.1f")
    axes.invert_yaxis()
    axes.set(title="read by a linear layer (* trained with classes)", xlabel="misread, %")
    run.picture("probes.png", axes.figure)

    x = images[2][:10] / 255
    codes = code(two["plain"], images[0] / 255)
    noise = torch.randn(20, codes.shape[1], device=x.device)
    rows = [x]
    rows += [ink(model, code(model, x)) for model in two.values()]
    rows += [ink(model, noise) for model in two.values()]
    rows += [ink(two["plain"], draw_like(codes, 20))]
    title = "digits; rebuilt: VAE, plain; drawn, two rows each: VAE, plain, fitted"
    run.picture("samples.png", grid(torch.cat(rows), title))


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
