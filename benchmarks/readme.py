"""Every table and figure of README.md and docs/, made again from the saved runs.

    python benchmarks/readme.py              from out/ and benchmarks/results; says which runs are missing
    python benchmarks/readme.py --measure    first measures all: compare.py, sampling.py, ear.py
    python benchmarks/readme.py --run        first makes the missing runs of the twelve, then measures

The numbers of each run go to benchmarks/results/NAME-cpu.json, its log to NAME-cpu.log (NAME-gpu for runs on a GPU),
its pictures to assets/, and the tables into the pages between their marks. What no run is there for stays as it was.
"""
import argparse
import importlib
import json
import shutil
import subprocess
import sys

import compare
import torch
import torch.nn.functional as F
from compare import RESULTS, kept
from judge import ROOT, metrics_of, sampler
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

ORDER = ["made", "char_rnn", "wavenet", "pixelcnn", "gated_pixelcnn", "transformer_ar",
         "vae", "vqvae", "gan", "realnvp", "ddpm", "ebm"]
PICTURES = {  # in assets/: where it comes from, in out/
    "made_completion.png": "made/completion.png", "char_rnn_surprise.png": "char_rnn/surprise.png",
    "wavenet_predictions.png": "wavenet/predictions.png", "pixelcnn_blind_spot.png": "pixelcnn/blind_spot.png",
    "gated_pixelcnn_blind_spot.png": "gated_pixelcnn/view.png",
    "transformer_ar_attention.png": "transformer_ar/attention.png", "vae_style.png": "vae/styles.png",
    "vqvae_codes.png": "vqvae/one_code.png", "gan_samples.png": "gan/samples.png",
    "realnvp_temperature.png": "realnvp/temperature.png", "denoising.gif": "ddpm/denoising.gif",
    "ebm_inpainting.png": "ebm/inpainting.png",
    "realnvp_likelihood.png": "realnvp/likelihood.png", "gan_neighbours.png": "gan/neighbours.png"}
PAGES = ["README.md", "docs/comparison.md"]  # tables stand in these, between their marks
MAP = {  # a chapter: its idea, p(x), latent, its picture in assets/, what is on it, what it shows
    "made": ("masks make an autoencoder autoregressive", "exact", "none", "made_completion.png",
             "Lower halves drawn anew below the same upper halves", "the lower half, drawn anew"),
    "char_rnn": ("a state is carried along a sequence", "exact", "none", "char_rnn_surprise.png",
                 "A text, each letter coloured by its bits", "bits of each character"),
    "wavenet": ("convolutions that look back 1, 2, 4, … samples", "exact", "none", "wavenet_predictions.png",
                "The distribution of each next sample, and the sound", "the distribution of each next sample"),
    "pixelcnn": ("masked convolutions, and their blind spot", "exact", "none", "pixelcnn_blind_spot.png",
                 "Which pixels one pixel depends on: a wedge is missing",
                 "which pixels a pixel sees: a wedge is missing"),
    "gated_pixelcnn": ("two stacks and gates: no blind spot", "exact", "none", "gated_pixelcnn_blind_spot.png",
                       "Which pixels one pixel depends on: all within reach",
                       "which pixels a pixel sees: no wedge is missing"),
    "transformer_ar": ("every patch a token that attends to those before it", "exact", "none",
                       "transformer_ar_attention.png", "Attention of one token over the picture so far",
                       "to which tokens a token attends"),
    "vae": ("a latent vector for every digit, learned by a bound", "bound", "20 numbers", "vae_style.png",
            "One latent vector a row, one class a column", "one latent vector in every class"),
    "vqvae": ("a grid of discrete codes, and a prior that writes it", "bound", "16 codes", "vqvae_codes.png",
              "A 7 whose codes are changed, one at a time", "a 7 with one of its codes changed"),
    "gan": ("a generator and a discriminator train each other", "none", "64 numbers", "gan_samples.png",
            "Ten classes of generated digits", "samples of each class"),
    "realnvp": ("an invertible network", "exact density; a bound for grey levels", "as large as x",
                "realnvp_temperature.png", "The noise of test digits at rising temperature",
                "the noise z of test digits, times 0 to 1.25"),
    "ddpm": ("predict the noise, remove it step by step", "bound", "as large as x", "denoising.gif",
             "Ten digits coming out of noise", "digits come out of noise (above), as predicted (below)"),
    "ebm": ("an energy for every image, and Langevin dynamics", "up to a constant", "none", "ebm_inpainting.png",
            "Lower halves of digits, inpainted by Langevin dynamics", "lower halves, inpainted"),
}
BINARY = {  # unconditional models of binary digits: key in metrics.json, and nats, epochs published, [G]
    "made": ("NLL, nats", "84.87", "85"),
    "pixelcnn": ("NLL, nats", "81.45", "457"),
    "gated_pixelcnn": ("NLL, nats", "81.50", "457"),
    "transformer_ar": ("NLL, nats", "79.17 (ImageGPT)", "457"),
    "vae": ("-ELBO, nats", "≤ 86.77", "457"),
}
GREY = [  # models of 8-bit grey digits: run, what, its sign, key in metrics.json
    ("realnvp", "given the class, one draw of noise", "≤ ", "bound, bits/dim"),
    ("realnvp", "given the class, 8 importance samples", "≤ ", "8 importance samples, every 10th image, bits/dim"),
    ("realnvp-unconditional", "`--classes 1`, one draw of noise", "≤ ", "bound, bits/dim"),
    ("ddpm", "given the class", "≤ ", "bound, bits/dim"),
    ("ddpm-unconditional", "`--classes 1`", "≤ ", "bound, bits/dim"),
]
PUBLISHED_GREY = [
    ("RealNVP / Glow / FFJORD / Residual Flow", "1.06 / 1.05 / 0.99 / 0.97", "their papers, as quoted by others"),
    ("flow: simple / variational dequantisation / multi-scale", "1.078 / 1.043 / 1.020",
     "8 importance samples a digit, [U11]"),
    ("PixelCNN, softmax", "0.808", "50,000 digits to train on, [U12]"),
    ("linear / softmax transformer", "0.644 / 0.621", "Katharopoulos et al. 2020, as quoted by others"),
]


def collect(name):
    """Copies of a run's numbers and log where they are kept."""
    out = ROOT / "out" / name
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    kind = "cpu" if "cpu, " in metrics_of(out / "metrics.json")["where"].lower() else "gpu"
    run = out / "run.json"
    metrics["run"] = json.loads(run.read_text()) if run.exists() else {}
    (RESULTS / f"{name}-{kind}.json").write_text(json.dumps(metrics, indent=1) + "\n")
    if (out / "log.txt").exists():
        shutil.copy(out / "log.txt", RESULTS / f"{name}-{kind}.log")


def gallery():
    """All twelve at once: samples of digits, text and sound, each in a panel of the same size."""
    kinds = {"vae": "pixel probabilities", "vqvae": "pixel probabilities", "gan": "grey", "realnvp": "grey",
             "ddpm": "grey", "ebm": "grey", "char_rnn": "text", "wavenet": "sound"}
    fig, width, height = Figure(figsize=(12, 6.2)), 0.316, 0.1835  # a panel has the shape of 10 by 3 digits
    for k, name in enumerate(ORDER):
        torch.manual_seed(0)
        if name in compare.IMAGES:
            _, draw = sampler(name, ROOT / "out" / name / "model.pt")
        else:
            model = importlib.import_module(name).load(ROOT / "out" / name / "model.pt")
        left, low = 0.009 + k % 3 * 0.333, 0.76 - k // 3 * 0.25
        fig.text(left, low + height + 0.014, f"{name}.py", family="monospace", weight="bold", size=11)
        fig.text(left + width, low + height + 0.014, kinds.get(name, "binary"), color="gray", size=9, ha="right")
        if name == "wavenet":
            for i, (digit, word) in enumerate(((0, "zero"), (4, "four"), (7, "seven"))):
                ax = fig.add_axes((left + i * (width + 0.01) / 3, low, (width - 0.02) / 3, height))
                how = (torch.tensor([digit]), torch.tensor([0]), 4000)
                sound = F.pad(importlib.import_module(name).cached_sample(model, *how)[0], (128, 128))
                power = torch.stft(sound, 256, 32, window=torch.hann_window(256), center=False, return_complex=True)
                ax.imshow(power.abs().clamp(min=0.01).log(), origin="lower", aspect="auto", cmap="magma")
                ax.text(0.04, 0.95, f"“{word}”", color="white", size=9, va="top", transform=ax.transAxes)
                ax.axis("off")
            continue
        ax = fig.add_axes((left, low, width, height))
        ax.axis("off")
        if name == "char_rnn":
            text = [line[:56] for line in model.sample().strip().split("\n")]
            ax.text(0, 1, "\n".join(text[:9]), va="top", size=8, family="monospace", linespacing=1.25)
        else:
            x = draw(torch.arange(30) % 10).view(3, 10, 28, 28).transpose(1, 2).reshape(84, 280)
            ax.imshow(x, cmap="gray_r", vmin=0, vmax=1, aspect="auto")
    return fig


def taxonomy():
    """The families as a tree: what each knows of p(x)."""
    fig = Figure(figsize=(12, 5.2), layout="constrained")
    ax = fig.subplots()
    ax.set(xlim=(0, 12), ylim=(0, 5.4))
    ax.axis("off")

    def box(x, y, text, color, width=1.9, height=0.72):
        ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.04",
                                    fc=color, ec="gray", lw=0.8))
        ax.text(x, y, text, ha="center", va="center", size=9)
        return x, y, height

    def line(a, b):
        ax.plot([a[0], b[0]], [a[1] - a[2] / 2, b[1] + b[2] / 2], color="gray", lw=0.8, zorder=0)

    root = box(6, 5, "a model of data x", "white", 2.2, 0.5)
    explicit = box(4.2, 4.05, "explicit: it has a p(x)", "#eef3fa", 2.6, 0.5)
    implicit = box(10.9, 4.05, "implicit: it only draws", "#fdeee6", 2.0, 0.5)
    tractable = box(2.4, 3.0, "tractable: p(x) is computed", "#dde9f7", 2.6, 0.5)
    approximate = box(7.2, 3.0, "approximate: a bound, or up to Z", "#dde9f7", 2.7, 0.5)
    for a, b in ((root, explicit), (root, implicit), (explicit, tractable), (explicit, approximate)):
        line(a, b)
    leaves = [
        (tractable, 1.35, "autoregressive", "made  char_rnn  wavenet\npixelcnn  gated_pixelcnn\ntransformer_ar",
         "symbol by symbol"),
        (tractable, 3.75, "normalising flow", "realnvp", "one pass, invertible"),
        (approximate, 5.75, "latent, a bound", "vae  vqvae", "a code, then one pass"),
        (approximate, 7.55, "diffusion, a bound", "ddpm", "many passes"),
        (approximate, 9.3, "energy, up to Z", "ebm", "Langevin dynamics"),
        (implicit, 10.95, "adversarial", "gan", "one pass"),
    ]
    for parent, x, family, files, how in leaves:
        width = 2.3 if "\n" in files else 1.5
        leaf = box(x, 1.95, family, "#c8dcf2" if parent is not implicit else "#f9d9c6", width, 0.45)
        line(parent, leaf)
        ax.text(x, 1.55, files, ha="center", va="top", size=9, family="monospace", weight="bold")
        ax.text(x, 0.75, how, ha="center", va="top", size=8, style="italic", color="dimgray")
    ax.text(6, 0.2, "What can be computed of p(x), and how a sample is drawn: that decides what a model is good for.",
            ha="center", size=9)
    return fig


def sampling_table():
    known = json.loads((RESULTS / "sampling-cpu.json").read_text())["results"]
    lines = ["| | drawn | plain | cached | ratio |", "|" + "---|" * 5]
    for name in [n for n in ORDER if n in known]:
        r = known[name]
        lines.append(f"| {name}.py | {r['sequences']} x {r['symbols of each']:,} symbols | "
                     f"{r['plain, seconds']:.1f} s | {r['cached, seconds']:.2f} s | {r['ratio']:.0f} |")
    return "\n".join(lines) + "\n"


def published_table():
    """Unconditional models of binary digits, here and published."""
    lines = ["| without classes | nats | epochs | published, nats | epochs |", "|" + "---|" * 5]
    for name, (key, published, epochs) in BINARY.items():
        cells = ["not yet measured", "–"]
        if run := kept(f"{name}-unconditional"):
            s = run["flags"]
            sign = "≤ " if "ELBO" in key else ""
            cells = [f"{sign}{run['results'][key]:.2f}", f"{s['steps'] * s['batch_size'] / 55000:.1f}"]
        lines.append(f"| [{name}.py]({name}.py) | {' | '.join(cells)} | {published} | {epochs} |")
    return "\n".join(lines) + "\n"


def grey_table():
    """8-bit grey digits in bits per dimension, here and published."""
    lines = ["| 8-bit grey digits | bits/dim | protocol |", "|---|---|---|"]
    for name, protocol, sign, key in GREY:
        path = f"{compare.chapter(name)}.py"
        run = kept(name)
        figure = f"{sign}{run['results'][key]:.3f}" if run else "not yet measured"
        lines.append(f"| [{path}]({path}) | {figure} | {protocol} |")
    lines += [f"| {model} | {figure} | {protocol} |" for model, figure, protocol in PUBLISHED_GREY]
    return "\n".join(lines) + "\n"


def map_table():
    """The chapters in reading order, with a picture of each."""
    lines = ["| | chapter | p(x) | latent | training | a picture of it |", "|" + "---|" * 6]
    for k, name in enumerate(ORDER, 1):
        idea, p, latent, picture, alt, caption = MAP[name]
        time = "not yet measured"
        if run := kept(name):
            time = f"{run['seconds'] / 60:.0f} min{' on two cores' * ('2 threads' in run['where'])}"
        lines.append(f"| {k} | [**{name}.py**]({name}.py) {idea} | {p} | {latent} | {time} | "
                     f"<img src=\"assets/{picture}\" width=\"300\" alt=\"{alt}\"><br>{caption} |")
    return "\n".join(lines) + "\n"


def filled(text, page):
    """The text of a page with its tables as the results have them."""
    up = "../" * page.count("/")
    tables = {"map": map_table(), "sampling": sampling_table(), "published": published_table(),
              "published grey": grey_table()}
    tables |= dict(zip(("binary", "grey", "seeds", "cost", "sequences"), compare.table(json.loads(
        (RESULTS / "compare-cpu.json").read_text())).split("\n\n")))
    for name, table in tables.items():
        begin, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        if begin in text:
            before, rest = text.split(begin)
            text = before + begin + table.rstrip("\n").replace("](", f"]({up}") + "\n" + end + rest.split(end, 1)[1]
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", action="store_true", help="measure all that is in the tables again")
    parser.add_argument("--run", action="store_true", help="make the missing runs, then measure")
    args = parser.parse_args(argv)
    out, assets = ROOT / "out", ROOT / "assets"
    if args.measure or args.run:
        compare.main(["--run"] if args.run else [])
        for file in ["sampling.py", "ear.py"]:
            subprocess.run([sys.executable, f"benchmarks/{file}"], cwd=ROOT, check=True)
    alone = [f"{name}-unconditional" for name in [*compare.UNCONDITIONAL, "realnvp"]]
    commands = {name: compare.command(name) for name in [*ORDER, *compare.SEEDS, *alone]}
    missing = [name for name in commands if not (out / name / "metrics.json").exists()]
    for name in missing:
        print(f"{name}: no run in out/{name}; `python {commands[name]}` makes it. What it gave before stays")
    for name in set(commands) - set(missing):
        collect(name)
    for asset, source in PICTURES.items():
        if (out / source).exists():
            shutil.copy(out / source, assets / asset)
    if set(missing) & set(ORDER):
        print("assets/gallery.png needs all twelve chapters: it stays as it is")
    else:
        gallery().savefig(assets / "gallery.png", dpi=140)
        Image.open(assets / "gallery.png").convert("P", palette=Image.Palette.ADAPTIVE).save(assets / "gallery.png")
    taxonomy().savefig(assets / "taxonomy.png", dpi=120)
    known = json.loads((RESULTS / "compare-cpu.json").read_text())
    compare.figure(known).savefig(assets / "comparison.png", dpi=120)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(filled(text, page), encoding="utf-8")
    print(f"tables and pictures of {len(commands) - len(missing)} runs and of benchmarks/results")


if __name__ == "__main__":
    main()
