"""The figures of the pages: pictures of the runs, the gallery, a tree, the comparison.

tables.py calls `main`. Pictures are taken from out/NAME where the run that the results are of is
there; what there is none for stays as it is in assets/. comparison.png is drawn from
benchmarks/results alone.
"""

import shutil

import gallery
import likelihood
import runs
import taxonomy
from matplotlib.figure import Figure

ASSETS = runs.ROOT / "assets"
PICTURES = {  # in assets/: where it comes from, in out/
    "made_completion.png": "made/completion.png",
    "char_rnn_surprise.png": "char_rnn/surprise.png",
    "wavenet_predictions.png": "wavenet/predictions.png",
    "pixelcnn_blind_spot.png": "pixelcnn/blind_spot.png",
    "gated_pixelcnn_blind_spot.png": "gated_pixelcnn/view.png",
    "transformer_ar_attention.png": "transformer_ar/attention.png",
    "vae_style.png": "vae/styles.png",
    "vqvae_codes.png": "vqvae/one_code.png",
    "gan_samples.png": "gan/samples.png",
    "gan_neighbours.png": "gan/neighbours.png",
    "realnvp_temperature.png": "realnvp/temperature.png",
    "realnvp_likelihood.png": "realnvp/likelihood.png",
    "denoising.gif": "ddpm/denoising.gif",
    "ebm_inpainting.png": "ebm/inpainting.png",
}
COLORS = {"binary": "#1f6fb4", "grey": "#e0701a"}
KINDS = {  # of likelihood: how it is found, marker, color
    "unconditional": (likelihood.unconditional, "o", "#7f7f7f"),
    "marginal": (likelihood.marginal, "s", "#1f6fb4"),
    "class-conditional": (likelihood.conditional, "D", "#2c9a4b"),
}


def comparison():
    """Likelihood, looks against speed, and precision beside recall, binary and grey."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    (upper_left, upper_right), below = figure.subplots(2, 2)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#eeeeee")
        ax.set_axisbelow(True)
    likelihoods(upper_left)
    speed(upper_right)
    for protocol, ax in zip(COLORS, below):
        precision_and_recall(ax, protocol)
    return figure


def likelihoods(ax):
    for kind, (find, marker, color) in KINDS.items():
        ax.plot([], [], marker, color=color, label=kind)
        for place, name in enumerate(runs.BINARY):
            value = find(name)
            if value is not None:
                inside = color if name in likelihood.EXACT else "white"
                ax.plot(value, place, marker, color=color, markerfacecolor=inside)
    names_at_left(ax, runs.BINARY)
    ax.set_xlabel("−log p of a binary test digit, nats")
    ax.set_title("Likelihood: fewer nats are better (hollow: a bound)")
    ax.legend(fontsize=9)


def names_at_left(ax, names):
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()


def measured(protocol):
    """{row: scores} of one half of the comparison."""
    rows = {}
    for row, known in runs.read("compare")["rows"].items():
        plain_run = "-" not in row  # not one of another seed
        if protocol in known and plain_run and row != "noise":
            rows[row] = known[protocol]
    return rows


def speed(ax):
    """The names stand at the right, in the order of their points, and lines lead to them."""
    sampling = runs.read("sampling")
    points = []
    for protocol, color in COLORS.items():
        for row, scores in measured(protocol).items():
            distance, half = scores["Frechet distance"]
            if row == "validation digits":
                ax.axhline(distance, linestyle="--", linewidth=1, color=color)
            drawn = sampling.get("ddpm" if row == "ddpm, guided" else row)
            if drawn:
                seconds = drawn.get("fast, seconds", drawn.get("plain, seconds"))
                seconds = seconds / drawn["samples"]
                ax.errorbar(seconds, distance, half, fmt="o", color=color, ecolor="#d0d0d0")
                points.append((distance, seconds, row, color))
        ax.plot([], [], "o", color=color, label=f"{protocol} samples")
    ax.plot([], [], "--", color="gray", label="real digits")
    for rank, (distance, seconds, row, color) in enumerate(sorted(points)):
        ax.annotate(
            row,
            (seconds, distance),
            (1.03, (rank + 0.5) / len(points)),
            textcoords="axes fraction",
            color=color,
            size=9,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": "#d8d8d8", "linewidth": 0.7},
        )
    ax.set(xscale="log", yscale="log", ylim=(0.3, 60))
    ax.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    ax.minorticks_off()
    ax.set_xlabel("seconds for a sample, many at once")
    ax.set_ylabel("Fréchet distance to real digits")
    ax.set_title("Looks against speed: low and left is good")
    ax.legend(fontsize=9, loc="upper left")


def precision_and_recall(ax, protocol):
    rows = measured(protocol)
    for shift, marker, measure in ((-0.13, "D", "precision"), (0.13, "o", "recall")):
        for place, scores in enumerate(rows.values()):
            value, half = scores[measure]
            inside = COLORS[protocol] if measure == "precision" else "white"
            ax.errorbar(
                value,
                place + shift,
                xerr=half,
                fmt=marker,
                color=COLORS[protocol],
                markerfacecolor=inside,
                ecolor="#d0d0d0",
            )
        ax.plot([], [], marker, color=COLORS[protocol], markerfacecolor=inside, label=measure)
    names_at_left(ax, list(rows))
    ax.set_xlabel("share of samples (precision) or of real digits (recall)")
    ax.set_title(f"{protocol.capitalize()} samples: sharp by precision, varied by recall")
    ax.legend(fontsize=9)


def main():
    for asset, source in PICTURES.items():
        run, _ = source.split("/")
        if runs.here(run):
            shutil.copy(runs.ROOT / "out" / source, ASSETS / asset)
    if all(runs.here(run) for run in gallery.ORDER):
        gallery.save(ASSETS / "gallery.png")
    else:
        print("assets/gallery.png needs the trained models of all twelve: it stays as it is")
    comparison().savefig(ASSETS / "comparison.png", dpi=110)
    taxonomy.tree().savefig(ASSETS / "taxonomy.png", dpi=120)
