"""assets/taxonomy.png: the families of models as a tree, by what each knows of p(x)."""

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# Each box: its middle, its text, its width and height, its color.
ROOT = (6, 5, "a model of data x", 2.2, 0.5, "white")
EXPLICIT = (4.2, 4.05, "explicit: it has a p(x)", 2.6, 0.5, "#eef3fa")
IMPLICIT = (10.9, 4.05, "implicit: it only draws", 2.0, 0.5, "#fdeee6")
TRACTABLE = (2.4, 3.0, "tractable: p(x) is computed", 2.6, 0.5, "#dde9f7")
APPROXIMATE = (7.2, 3.0, "approximate: a bound, or up to Z", 2.7, 0.5, "#dde9f7")
FAMILIES = [  # parent, box, chapters, how a sample is drawn
    (
        TRACTABLE,
        (1.35, 1.95, "autoregressive", 2.3, 0.45, "#c8dcf2"),
        "made  char_rnn  wavenet\npixelcnn  gated_pixelcnn\ntransformer_ar",
        "symbol by symbol",
    ),
    (
        TRACTABLE,
        (3.75, 1.95, "normalising flow", 1.5, 0.45, "#c8dcf2"),
        "realnvp",
        "one pass, invertible",
    ),
    (
        APPROXIMATE,
        (5.75, 1.95, "latent, a bound", 1.5, 0.45, "#c8dcf2"),
        "vae  vqvae",
        "a code, then one pass",
    ),
    (
        APPROXIMATE,
        (7.55, 1.95, "diffusion, a bound", 1.5, 0.45, "#c8dcf2"),
        "ddpm",
        "many passes",
    ),
    (
        APPROXIMATE,
        (9.3, 1.95, "energy, up to Z", 1.5, 0.45, "#c8dcf2"),
        "ebm",
        "Langevin dynamics",
    ),
    (
        IMPLICIT,
        (10.95, 1.95, "adversarial", 1.5, 0.45, "#f9d9c6"),
        "gan",
        "one pass",
    ),
]
BELOW = (
    "What can be computed of p(x), and how a sample is drawn: "
    "that decides what a model is good for."
)


def draw_box(ax, box):
    x, y, text, width, height, color = box
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0.04"
    ax.add_patch(FancyBboxPatch(corner, width, height, style, fc=color, ec="gray", lw=0.8))
    ax.text(x, y, text, ha="center", va="center", size=9)


def connect(ax, parent, child):
    across = [parent[0], child[0]]
    down = [parent[1] - parent[4] / 2, child[1] + child[4] / 2]
    ax.plot(across, down, color="gray", lw=0.8, zorder=0)


def tree():
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(0, 12), ylim=(0, 5.4))
    ax.axis("off")
    for box in (ROOT, EXPLICIT, IMPLICIT, TRACTABLE, APPROXIMATE):
        draw_box(ax, box)
    connect(ax, ROOT, EXPLICIT)
    connect(ax, ROOT, IMPLICIT)
    connect(ax, EXPLICIT, TRACTABLE)
    connect(ax, EXPLICIT, APPROXIMATE)
    for parent, box, chapters, how in FAMILIES:
        draw_box(ax, box)
        connect(ax, parent, box)
        x = box[0]
        ax.text(x, 1.55, chapters, ha="center", va="top", size=9, family="monospace", weight="bold")
        ax.text(x, 0.75, how, ha="center", va="top", size=8, style="italic", color="dimgray")
    ax.text(6, 0.2, BELOW, ha="center", size=9)
    return figure
