"""Latent diffusion on ddpm.py and vae.py: a chain of codes (Rombach et al. 2022, arXiv:2112.10752).

ddpm.py computes with all 784 pixels at each of its many steps, though most of them only repeat what
a few numbers say. Could the chain run on those numbers instead? Two stages:

    1. an autoencoder, vae.py with convolutions and no classes: an encoder makes of an image x a
       code z ~ q(z | x) of 4 x 7 x 7 numbers, a decoder makes of z the image
    2. the chain of ddpm.py on codes instead of images, from noise to a code of the class y

    p(x | y) = ∫ p(x | z) p(z | y) dz         the decoder; the chain, where vae.py has N(0, I)

Stage two. With this p the ELBO of vae.py is

    log p(x | y) ≥ E_q[log p(x | z)] − E_q[log q(z | x)] + E_q[log p(z | y)]

and the chain stands in its last part alone. With q fixed that is the likelihood of codes, which are
to the chain what images are in ddpm.py: so its loss is the error of the noise in a code.

Stage one needs no chain. What does a code cost under a prior p(z), on average over the images?
Multiply and divide by q(z), the mean of q(z | x) over all images, that is, the codes there are:

    E_x KL(q(z | x) ‖ p(z)) = E log q(z | x) / q(z)  +  E log q(z) / p(z)
                            = what z tells of x      +  KL(q(z) ‖ p(z)), where the prior is wrong

If p is N(0, I), q(z) must come close to it: codes tell little. A chain learns any q(z), so codes
may tell much. Let q(z | x) = N(μ, 0.2² I), the numbers of each μ brought to mean 0, mean square 1.
Their KL to N(0, 1), in vae.py (−log σ² − 1 + μ² + σ²) / 2, is then (3.22 − 1 + 1 + 0.04) / 2 = 1.63
nats on average, whatever the encoder does. A constant needs no gradient: the loss of stage one is
the error of the decoded image. The noise makes close codes decode alike, so that small errors of
the chain are harmless; the scale keeps codes from growing until noise cannot harm them.

Then all codes are computed, once, and no step sees a pixel any more: with the blocks of ddpm.py it
takes 27 ms instead of 50 (64 images, one core of an AMD EPYC, bfloat16), and 100 digits 0.41 s
instead of 1.25. Both stages train for 197 s, the first for 28. Decoded test images miss 3 % of the
variance of pixels. A separate classifier finds the class asked for in 98.0 % of 2,000 samples, the
Fréchet distance is 2.5, of decoded test images 1.5 (ddpm.py, 342 s on two cores: 99.3 % and 2.2).
Use it for large images: 256 x 256 in three colours become 32 x 32 x 4, 48 times fewer numbers.
"""

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import nn

from data import mnist
from ddpm import (
    DDPM,
    Run,
    UNet,
    add_common_flags,
    grid,
    guided_noise,
    load_checkpoint,
    parse,
    positive_int,
    ten_classes,
    warmup_cosine,
)


# %% Settings
def parse_flags(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000, help="steps of both stages together")
    parser.add_argument("--first-steps", type=positive_int, default=1200, help="of stage one")
    parser.add_argument("--batch-size", type=positive_int, default=64, help="images a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--channels", type=positive_int, default=32, help="maps, as in ddpm.py")
    parser.add_argument("--classes", type=positive_int, default=10, help="10: the digit is given")
    add_common_flags(parser, out="out/latent_diffusion", save_every=1000)
    return parse(parser, argv)


# %% Model
SIGMA = 0.2  # of the noise in a code


class Autoencoder(nn.Module):
    """Stage one: images (B, 1, 28, 28), 0 to 255, to codes z (B, 4, 7, 7); back to 0 to 1."""

    def __init__(self, C):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, C // 2, 4, stride=2, padding=1),  # (B, C/2, 14, 14)
            nn.SiLU(),
            nn.Conv2d(C // 2, C, 4, stride=2, padding=1),  # (B, C, 7, 7)
            nn.SiLU(),
            nn.Conv2d(C, 4, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(4, C, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(C, C // 2, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(C // 2, 1, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )

    def encode(self, x):
        """The means μ of q(z | x), (B, 4, 7, 7): of mean 0 and mean square 1 in each code."""
        parts = [self.encoder(part / 255) for part in x.split(1000)]  # to save memory
        return F.layer_norm(torch.cat(parts).float(), (4, 7, 7))

    def loss(self, x, y):
        """Mean square error / variance of pixels, without y (paper: also adversarial, weak KL)."""
        mu = self.encode(x)
        decoded = self.decoder(mu + SIGMA * torch.randn_like(mu)).float()
        return F.mse_loss(decoded, x / 255) / (x / 255).var()


# Stage two needs ε̂ for a code. The U-Net of ddpm.py gives it, if its stem, the ways down and up
# and its head leave the size as it is: the same blocks, but all of them compute 7 x 7 places.
class Denoiser(UNet):
    """ε̂ (B, 4, 7, 7) from z_t, t (B,) in 1..T and y (B,) in 0..classes."""

    def __init__(self, C, classes):
        super().__init__(C, classes)
        self.stem = nn.Conv2d(4, C, 3, padding=1)
        self.down = nn.Conv2d(C, 2 * C, 3, padding=1)
        self.up = nn.Conv2d(2 * C, C, 3, padding=1)
        self.head = nn.Conv2d(C, 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)  # an untrained network takes all of z_t for noise


class LatentDiffusion(DDPM):
    """p(x | y): the chapter's chain makes a code of class y (B,), the decoder an image of it."""

    def __init__(self, channels=32, classes=10):
        super().__init__(1, 1000, classes)
        self.network = Denoiser(channels, classes)  # in the place of the U-Net
        self.autoencoder = Autoencoder(2 * channels)

    def loss(self, mu, y):
        """The chapter's loss, of codes drawn from q: the mean square error of the noise."""
        return super().loss(mu + SIGMA * torch.randn_like(mu), y)

    @torch.no_grad()
    def ddim(self, y, steps, w):
        """DDIM with guidance w, as in the chapter: yields t, z_t and ẑ_0 at each of the times."""
        z = torch.randn(len(y), 4, 7, 7, device=y.device)
        times = self.T * torch.linspace(1, 0, steps + 1) ** 2
        times = times.ceil().int().unique().flip(0).tolist()  # from T to 0
        for t, s in zip(times, times[1:]):
            eps = guided_noise(self, z, t, y, w)
            alpha_bar = self.alpha_bar[t]
            z0 = (z - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()  # equation 4
            z0 = z0.clamp(-4, 4)  # codes reach further than pixels
            yield t, z, z0
            z = self.add_noise(z0, s, eps)

    @torch.no_grad()
    def sample(self, y, steps=12, w=1.6):
        """An image for each class in y (B,), (B, 1, 28, 28) in [0, 1]."""
        *_, (_, _, z0) = self.ddim(y, steps, w)
        return self.autoencoder.decoder(z0)


# %% Training
def main(argv=None):
    args = parse_flags(argv)
    x, y, x_test, y_test, source = mnist(args.stand_in, args.device, args.classes)
    n = len(x) * 11 // 12  # the last twelfth, 5,000 digits of MNIST, is for validation
    dropout = 0.1 if args.classes > 1 else 0.0  # how often the class is withheld, for guidance

    torch.manual_seed(args.seed)
    model = LatentDiffusion(args.channels, args.classes).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)  # moves only what has a gradient
    run = Run(args, source, n, "error: images, then noise", model=model, optimizer=optimizer)
    data = x  # what stage one learns from; of stage two it is the codes
    loss_of = model.autoencoder.loss
    for step in run.steps():
        u = step / args.first_steps
        if step > args.first_steps:
            u = (step - args.first_steps) / (args.steps - args.first_steps)
            if data is x:  # stage two begins, or goes on after --resume
                with torch.no_grad():
                    data = model.autoencoder.encode(x)
                loss_of = model.loss
        optimizer.param_groups[0]["lr"] = args.lr * warmup_cosine(u)
        batch = torch.randint(n, (args.batch_size,), device=args.device)
        withheld = torch.rand(args.batch_size, device=args.device) < dropout
        labels = torch.where(withheld, args.classes, y[batch])
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
            loss = loss_of(data[batch], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.log(loss)
        if step % args.save_every == 0 or step == args.steps:
            with torch.no_grad():
                validation = loss_of(data[n::5], y[n::5])
            run.save(validation.item())
    evaluate(run, model, x_test, y_test)


# %% Evaluation
def load(path="out/latent_diffusion/model.pt", device="cpu"):
    """The model of a finished or unfinished run, ready to sample."""
    saved = load_checkpoint(path)
    model = LatentDiffusion(saved["flags"]["channels"], saved["flags"]["classes"])
    model.load_state_dict(saved["model"])
    return model.to(device).eval()


def code_images(z):
    """Codes (B, 4, 7, 7) as images (B, 1, 28, 28): the four channels in a square."""
    square = z.view(-1, 2, 2, 7, 7).transpose(2, 3).reshape(-1, 1, 14, 14)
    images = F.interpolate(square / 6 + 0.5, scale_factor=2).clamp(0, 1)
    return F.pad(images[..., 1:-1, 1:-1], (1, 1, 1, 1))  # a white frame


@torch.no_grad()
def evaluate(run, model, x, y):
    """Results and pictures for test images x (N, 1, 28, 28), 0 to 255, of classes y (N,)."""
    torch.manual_seed(1)
    codes = model.autoencoder.encode(x)
    results = {
        "error of decoded images / variance": model.autoencoder.loss(x, y).item(),
        "error of the noise / variance": model.loss(codes, y).item(),
    }
    run.report(results)
    digits = ten_classes(y)
    samples = model.sample(digits.repeat(10))
    run.picture("samples.png", grid(samples, "samples, one class a column"))
    rows = [x[:10] / 255, code_images(codes[:10]), model.autoencoder.decoder(codes[:10])]
    run.picture("codes.png", grid(torch.cat(rows), "test digits; their codes; the codes decoded"))
    pages = []
    for t, z, z0 in model.ddim(digits, steps=25, w=1.6):
        rows = [code_images(z), code_images(z0), model.autoencoder.decoder(z0)]
        pages.append(grid(torch.cat(rows), f"t = {t}: z_t; the guess at z_0; the same decoded"))
    run.picture("chain.gif", *pages, *pages[-1:] * 5)


if __name__ == "__main__":
    try:
        main()
    except (OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; --resume goes on, --resume --steps 0 evaluates the last checkpoint")
