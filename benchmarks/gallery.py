"""assets/gallery.png: samples of all twelve models, each in a panel of the same size."""

import importlib

import runs
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from measure import draw, load
from PIL import Image

ORDER = ["made", "char_rnn", "wavenet", "pixelcnn", "gated_pixelcnn", "transformer_ar"]
ORDER += ["vae", "vqvae", "gan", "realnvp", "ddpm", "ebm"]
WIDTH, HEIGHT = 0.316, 0.1835  # of a panel: the shape of 10 by 3 digits


def gallery():
    figure = Figure(figsize=(12, 6.2))
    for k, name in enumerate(ORDER):
        torch.manual_seed(0)
        model = load(name)
        left = 0.009 + k % 3 * 0.333
        low = 0.76 - k // 3 * 0.25
        title = low + HEIGHT + 0.014
        figure.text(left, title, f"{name}.py", family="monospace", weight="bold", size=11)
        figure.text(left + WIDTH, title, kind(name), color="gray", size=9, ha="right")
        if name == "wavenet":
            sounds(figure, model, left, low)
            continue
        ax = figure.add_axes((left, low, WIDTH, HEIGHT))
        ax.axis("off")
        if name == "char_rnn":
            lines = [line[:53] for line in model.sample().strip().split("\n")[:9]]
            text = "\n".join(lines)
            ax.text(0, 1, text, va="top", size=8, family="monospace", linespacing=1.25)
        else:
            ax.imshow(digits(name, model), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
    return figure


def kind(name):
    """What is shown, in a word or two."""
    kinds = {"vae": "pixel probabilities", "vqvae": "pixel probabilities"}
    kinds |= {"char_rnn": "text", "wavenet": "sound"}
    return kinds.get(name, "binary" if name in runs.BINARY else "grey")


@torch.no_grad()
def digits(name, model):
    """Three rows of ten digits, a class a column, as one image."""
    row = "ddpm, guided" if name == "ddpm" else name
    x = draw(row, model, torch.arange(30) % 10)
    return x.view(3, 10, 28, 28).transpose(1, 2).reshape(84, 280)


def sounds(figure, model, left, low):
    """Three spectrograms, half a second each."""
    wavenet = importlib.import_module("wavenet")
    width = (WIDTH - 0.02) / 3
    for i, (digit, word) in enumerate(((0, "zero"), (4, "four"), (7, "seven"))):
        ax = figure.add_axes((left + i * (width + 0.01), low, width, HEIGHT))
        sound = wavenet.cached_sample(model, torch.tensor([digit]), torch.tensor([0]), 4000)
        sound = F.pad(sound[0], (128, 128))
        window = torch.hann_window(256)
        power = torch.stft(sound, 256, 32, window=window, center=False, return_complex=True)
        shown = power.abs().clamp(min=0.01).log()
        ax.imshow(shown, origin="lower", aspect="auto", cmap="magma")
        ax.text(0.04, 0.95, f"“{word}”", color="white", size=9, va="top", transform=ax.transAxes)
        ax.axis("off")


def save(path):
    """Write it with 256 colours, which takes a third of the room."""
    gallery().savefig(path, dpi=140)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
