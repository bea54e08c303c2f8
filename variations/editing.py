"""Editing real digits with a DDPM (a variation on ddpm.py): inpainting and interpolation.

The chapter draws new digits. Here its trained network, as it is, starts from digits that are there.

Inpainting (Song et al. 2021, arXiv:2011.13456): the chain runs back as in sampling, but after every step the
known pixels are put in their place, with the noise of that time, x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε. The network
fills in the others so that they fit. A step from t to s < t draws x_s from the posterior, Gaussian by Bayes'
rule, with the x_0 that is predicted from x_t:

    q(x_s | x_t, x_0) = N((√ᾱ_s (1 − α) x_0 + √α (1 − ᾱ_s) x_t) / (1 − ᾱ_t), (1 − ᾱ_s) / (1 − ᾱ_t) (1 − α) I)

where α = ᾱ_t / ᾱ_s (for s = t − 1, equations 6 and 7 of the DDPM paper).

Interpolation (Song, Meng & Ermon 2021, arXiv:2010.02502): DDIM adds no noise, so it can run in both ways.
`encode` takes a digit to its x_T; a great circle leads from one x_T to the next, since a straight line would
leave the shell on which Gaussian noise lies; DDIM leads back from each point of it.

Nothing is trained: first `python ddpm.py`, then `python -m variations.editing`.

Measured, 14 s on two cores: after encoding and decoding pixels differ by 2.0 of 255 on average; the latents
have a standard deviation of 0.63, where noise has 1.
"""
import torch
import torch.nn.functional as F

import ddpm
from data import mnist
from variations import start

SETTINGS = {"steps": (0, "nothing is trained", 0, 0), "batch_size": (1, "nothing is trained", 1, 1),
            "model": ("out/ddpm/model.pt", "a run of ddpm.py"), "guidance": ddpm.SETTINGS["guidance"],
            "strides": (250, "steps of inpainting", 1, 10**5),
            "encoding": (100, "DDIM steps, each way", 1, 10**5)}

def times(T, steps):
    """Pairs (t, s) from T down to 0, shorter near 0, as in the chapter's `ddim`."""
    at = (T * torch.linspace(1, 0, min(steps, T) + 1) ** 2).round().int().unique().tolist()[::-1]
    return list(zip(at, at[1:]))

def posterior(model, x0, x, t, s):
    """Mean and variance of q(x_s | x_t, x_0), s < t."""
    a_t, a_s, alpha = model.alpha_bar[t], model.alpha_bar[s], model.alpha_bar[t] / model.alpha_bar[s]
    mean = (a_s.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - a_s) * x) / (1 - a_t)
    return mean, (1 - a_s) / (1 - a_t) * (1 - alpha)

@torch.no_grad()
def inpaint(model, image, known, y=None, steps=250, w=1.6):
    """Samples of x_0, given the pixels of `image` (B, 1, 28, 28) in [-1, 1] where the mask `known` is 1."""
    x = torch.randn_like(image)
    for t, s in times(model.T, steps):
        mean, var = posterior(model, ddpm.predict_x0(model, x, t, model.eps(x, t, y, w)), x, t, s)
        x = mean + var.sqrt() * torch.randn_like(x)
        x = torch.where(known, model.q_sample(image, s, torch.randn_like(x)), x)
    return x

@torch.no_grad()
def encode(model, x, steps=100):
    """DDIM backwards: images x (B, 1, 28, 28) in [-1, 1] to their latents x_T; `ddim` nearly undoes it."""
    for t, s in reversed(times(model.T, steps)):
        eps = model.eps(x, max(s, 1))  # the network knows no t = 0
        x = model.q_sample((x - (1 - model.alpha_bar[s]).sqrt() * eps) / model.alpha_bar[s].sqrt(), t, eps)
    return x

def great_circle(a, b, u):
    """The point at the share u of the way from latents a to latents b, (B, …) each, of one length."""
    angle = F.cosine_similarity(a.flatten(1), b.flatten(1)).acos().view(-1, 1, 1, 1)
    return (((1 - u) * angle).sin() * a + (u * angle).sin() * b) / angle.sin()

def main(argv=None):
    vars(ddpm).update(NAME="editing", SETTINGS=SETTINGS)  # for Run
    run = ddpm.Run(argv)
    ddpm.NAME = "ddpm"  # whose model it is
    model = ddpm.load(run.model, run.device)
    ddpm.NAME = "editing"
    _, _, x, y, run.source = mnist(run.stand_in, run.device)
    run.baselines, digit = {}, torch.arange(10, device=run.device)
    x = x[torch.stack([(y == d).nonzero()[0, 0] for d in digit])] / 127.5 - 1  # the first of each class
    for _ in run.loop():
        pass
    torch.manual_seed(1)
    z = encode(model, x, run.encoding)

    def decode(z):
        return list(ddpm.ddim(model, z, None, run.encoding, 1))[-1][1].clamp(-1, 1)

    run.report({"mean |pixel| difference after encoding and decoding, of 255":
                127.5 * (decode(z) - x).abs().mean().item(),
                "standard deviation of the latents": z.std().item()})
    (run.out / "curve.png").unlink()  # of no training
    known = torch.arange(28, device=run.device).view(28, 1) < 14  # the upper half
    half = (digit, run.strides, run.guidance)
    rows = [x, torch.where(known, x, 0), *(inpaint(model, x, known, *half).clamp(-1, 1) for _ in range(4))]
    run.picture("inpainting.png", ddpm.grid(torch.cat(rows) / 2 + 0.5, "the lower half of a digit, inpainted",
                                            ["x", "known", *"1234"]))
    walk = [decode(great_circle(z, z.roll(-1, 0), u / 8)) / 2 + 0.5 for u in range(9)]
    run.picture("interpolation.png", ddpm.grid(torch.cat(walk), "to the next digit, through the latents"))
    run.picture("interpolation.gif", *(ddpm.grid(images, "to the next digit") for images in walk))

if __name__ == "__main__":
    start(main)
