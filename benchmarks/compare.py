"""The comparison: every image model on the same digits, the same machine and before the same judge.

    python benchmarks/compare.py                 measures every saved run in out/, says which are missing
    python benchmarks/compare.py vae gan         these two alone; what was measured of the others stays
    python benchmarks/compare.py --run           first makes the missing runs, one after the other (an hour and a half)

Writes benchmarks/results/compare-cpu.json and assets/comparison.png, prints the tables. What is in them: likelihoods
as the runs themselves scored them (out/NAME/metrics.json); 5,000 samples of each model, asked for in the classes of
the 5,000 validation digits, read by the judge (judge.py) and compared in its features with the 10,000 test digits by
the Fréchet distance, with every other one by precision and recall; parameters, lines of code, seconds, memory. Five
models are trained three times, out/NAME-1 and out/NAME-2 with --seed 1 and 2: their mean and spread. p(x) of made.py,
others without classes is that of out/NAME-unconditional, as readme.py keeps it.

Binary models are compared with binarised test digits, the others with grey ones. vae.py and vqvae.py hand out
probabilities: they stand in both halves, once as they are and once with a Bernoulli draw for each pixel. Two rows are
no models: validation digits, which show what real ones score, and noise, what failure looks like.
"""
import argparse
import importlib
import io
import json
import math
import statistics
import subprocess
import sys
import time
import tokenize
from pathlib import Path

import torch
from judge import ROOT, frechet, judge_for, metrics_of, read, sampler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data import mnist

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ["made", "pixelcnn", "gated_pixelcnn", "transformer_ar", "vae", "vqvae", "gan", "realnvp", "ddpm", "ebm"]
SEQUENCES = ["char_rnn", "wavenet"]
SEEDED = {"made": "binary", "vae": "binary", "gan": "grey", "ddpm": "grey", "ebm": "grey"}  # and their protocol
SEEDS = [f"{name}-{seed}" for name in SEEDED for seed in (1, 2)]
PIXELS = ["pixelcnn", "gated_pixelcnn", "transformer_ar"]
GROUPS = {  # protocol: who stands in it, in order
    "binary": ["made", *PIXELS, "vae", "vqvae", "digits", "noise"],
    "grey": ["vae", "vqvae", "gan", "realnvp", "realnvp, temperature 0.7", "ddpm", "ddpm, unguided",
             "ddpm, Algorithm 2 (1,000 samples)", "ebm", "digits", "noise"]}
OTHERWISE = {"ddpm, unguided": {"w": 1}, "ddpm, Algorithm 2 (1,000 samples)": {"plain": True},
             "realnvp, temperature 0.7": {"temperature": 0.7}}  # of the same runs
NATS = 784 * math.log(2)  # in a bit per dimension
UNCONDITIONAL = ["made", *PIXELS, "vae", "ddpm"]  # trained once more without classes
LIKELIHOOD = {  # script: what the figure is, protocol, keys in metrics.json: marginal, conditional
    "made": ("exact", "binary", "NLL, marginal over classes, nats", "NLL, nats"),
    **dict.fromkeys(PIXELS, ("exact", "binary", "NLL, marginal over classes, every 10th image, nats", "NLL, nats")),
    "vae": ("bound", "binary", "marginal over classes, 100 samples, every 50th image", "-ELBO, nats"),
    "vqvae": ("bound", "binary", "bound, marginal over classes, every 10th image, nats", "bound, nats"),
    "realnvp": ("bound", "grey", None, "bound, bits/dim"),
    "ddpm": ("bound", "grey", None, "bound, bits/dim"),
    "gan": ("none", "grey", None, None),
    "ebm": ("up to a constant", "grey", None, None),
}
FEW = {  # where the marginal is that of few digits: how many, another figure of all digits, the same of these few
    **dict.fromkeys(PIXELS, (1000, "NLL, nats", "NLL, every 10th image, nats")),
    "vae": (200, "-ELBO, nats", "-ELBO, every 50th image"),
    "vqvae": (1000, "bound, nats", "bound, every 10th image, nats"),
}


def chapter(name):
    return name.partition("-")[0]


def command(name):
    """The command that makes the run in out/NAME."""
    script, _, what = name.partition("-")
    if not what:
        return f"{script}.py"
    flags = "--classes 1" if what == "unconditional" else f"--seed {what}"
    return f"{script}.py {flags} --out out/{name}"


def kept(name):
    """The copy of a run's metrics.json in benchmarks/results; None if there is none."""
    path = RESULTS / f"{name}-cpu.json"
    return metrics_of(path) if path.exists() else None


def run_chapter(name):
    """`python NAME.py` to its end, its log in out/NAME/log.txt, its time and most memory in out/NAME/run.json."""
    meter = [sys.executable, str(Path(__file__).parent / "meter.py"), f"out/{name}", *command(name).split()]
    if subprocess.run(meter, cwd=ROOT).returncode:
        raise SystemExit(1)


def lines_of_code(path):
    """Lines that hold code: no blank ones, no comments, no docstrings."""
    lines, begins = set(), True  # whether a logical line begins here
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            begins = True
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            if not (begins and token.type == tokenize.STRING):
                lines.update(range(token.start[0], token.end[0] + 1))
            begins = False
    return len(lines)


def binarise(x, seed):
    """A Bernoulli draw for each pixel of images in [0, 1]."""
    return (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < x).float()


class Against:
    """Images against real ones, in the judge's features; intervals of 95 % by a jackknife over ten blocks of both."""

    BLOCKS = 10

    def __init__(self, judge, real):
        self.judge = judge
        self.real = self.features(real)

    @torch.no_grad()
    def features(self, x):
        return torch.cat([self.judge.features(part) for part in x.split(1000)])

    def scores(self, x):
        """{measure: (value, half its interval)} of images x (N, 1, 28, 28): Fréchet distance, precision, recall."""
        fake = self.features(x)
        apart = len(self.real) // len(fake)
        real = self.real[::apart]  # precision and recall want as many of both
        names = ["Frechet distance", "precision", "recall"]
        across, block = torch.cdist(fake, real), torch.arange(len(self.real)) // apart % self.BLOCKS
        near = [torch.cdist(own, own).topk(24, largest=False) for own in (fake, real)]

        def measured(out):  # all but block `out`; of 24 neighbours enough are left
            outside, every = block[::apart] == out, block != out
            kept = ~outside
            balls = [d.masked_fill(outside[i], math.inf).sort(1).values[:, 3] for d, i in near]  # beside itself, 3
            of_fake, of_real = (radius.masked_fill(~kept, -1) for radius in balls)
            return (frechet(fake[kept], self.real[every]),
                    (across <= of_real).any(1)[kept].double().mean().item(),
                    (across <= of_fake[:, None]).any(0)[kept].double().mean().item())

        value, g = measured(-1), self.BLOCKS
        parts = list(zip(*(measured(out) for out in range(g))))
        half = [1.96 * math.sqrt((g - 1) * statistics.pvariance(p)) for p in parts]
        return {name: pair for name, *pair in zip(names, value, half)}


def share(right):
    """The share of (N,) booleans and half its interval of 95 %, Wilson's at its wider side."""
    n, p, z = len(right), right.double().mean().item(), 1.96
    middle = (p + z * z / 2 / n) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return [p, max(p - (middle - half), middle + half - p)]


def likelihood(name, metrics):
    """What metrics.json says of p(x), in the unit of its protocol, with half an interval of 95 %."""
    kind, protocol, *keys = LIKELIHOOD[chapter(name)]
    results = metrics["results"]
    error = [v for k, v in results.items() if "standard error" in k]
    marginal, conditional = (None if key is None else results[key] for key in keys)
    digits = None if marginal is None else 10000
    if chapter(name) in FEW:  # what the mixture gains on these digits, off the figure of all
        digits, of_all, of_few = FEW[chapter(name)]
        marginal += results[of_all] - results[of_few]
    return {"kind": kind, "protocol": protocol, "unit": "nats" if protocol == "binary" else "bits/dim",
            "NLL, marginal": marginal, "summed over": digits,
            "NLL, conditional": conditional, "95 %": 1.96 * error[0] if error else None}


def unconditional(name):
    """−log p(x) of a network trained without classes, a run of its own; None if there is none."""
    key, run = LIKELIHOOD[name][-1], kept(f"{name}-unconditional")
    return run["results"][key] if run and key else None


def measure(name, judge, digits):
    """All of one image model, from out/NAME: its row, and those of its samples drawn otherwise."""
    out = ROOT / "out" / name
    metrics = metrics_of(out / "metrics.json")
    if metrics["source"] != "MNIST":
        raise SystemExit(f"{out} was trained on {metrics['source']}, not on MNIST")
    run = json.loads((out / "run.json").read_text()) if (out / "run.json").exists() else {}
    model, draw = sampler(chapter(name), out / "model.pt")
    with torch.no_grad():
        begun = time.perf_counter()
        draw(torch.arange(64) % 10)
        took = time.perf_counter() - begun
    rows = {name: {"likelihood": likelihood(name, metrics), "parameters": sum(p.numel() for p in model.parameters()),
                   "seconds of training": metrics["seconds"], "seconds for 64 samples": took,
                   "peak memory, MB": run.get("peak memory, MB"), "where": metrics["where"],
                   "torch": metrics["torch"]}}
    for who, how in {name: {}, **{k: v for k, v in OTHERWISE.items() if k.startswith(f"{name},")}}.items():
        _, draw = sampler(chapter(name), out / "model.pt", **how)
        asked = digits["asked"][::5] if "plain" in how else digits["asked"]  # a thousand passes
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = torch.cat([draw(y) for y in asked.split(500)])
        for protocol, names in GROUPS.items():
            if chapter(who) in names:
                x = binarise(drawn, 2) if protocol == "binary" else drawn
                rows.setdefault(who, {})[protocol] = scores(x, asked, judge, digits[protocol])
    return rows


def scores(x, asked, judge, against):
    """What the judge says of images x that were asked for in these classes."""
    return {"class accuracy": share(read(judge, x) == asked), **against.scores(x)}


def baselines(judge, digits):
    """The rows that are no models."""
    asked = digits["asked"]
    noise = torch.rand(len(asked), 1, 28, 28, generator=torch.Generator().manual_seed(3))
    return {"digits": {"binary": scores(binarise(digits["held out"], 2), asked, judge, digits["binary"]),
                       "grey": scores(digits["held out"], asked, judge, digits["grey"])},
            "noise": {"binary": scores((noise < 0.5).float(), asked, judge, digits["binary"]),
                      "grey": scores(noise, asked, judge, digits["grey"])}}


def sequence(name):
    """What a run of char_rnn.py or wavenet.py says of itself."""
    out = ROOT / "out" / name
    metrics = metrics_of(out / "metrics.json")
    run = json.loads((out / "run.json").read_text()) if (out / "run.json").exists() else {}
    model, begun = importlib.import_module(name).load(out / "model.pt"), time.perf_counter()
    module = importlib.import_module(name)
    if name == "char_rnn":
        model.sample(length=1000)
    else:
        module.cached_sample(model, torch.tensor([3]), torch.tensor([0]), 8000)
    return {"results": metrics["results"], "parameters": sum(p.numel() for p in model.parameters()),
            "seconds to sample": time.perf_counter() - begun, "seconds of training": metrics["seconds"],
            "peak memory, MB": run.get("peak memory, MB"), "where": metrics["where"],
            "torch": metrics["torch"]}


# The table and the figure, from the JSON alone

def plus(pair, scale=1, digits=1, unit=""):
    return f"{scale * pair[0]:.{digits}f} ± {scale * pair[1]:.{digits}f}{unit}"


def duration(t):
    return f"{t:.3f} s" if t < 0.01 else f"{t:.2f} s" if t < 1 else f"{t:.1f} s"


def title(name):
    name, _, otherwise = name.partition(", ")
    file = command(name)
    return f"[{file}]({file})" + (f", {otherwise}" if otherwise else "")


def table(known):
    """The comparison as Markdown, of the image models and of the sequence models."""
    lines = []
    for protocol, what in (("binary", "binary digits, nats"), ("grey", "8-bit grey digits, bits/dim")):
        lines += [f"| {what} | unconditional | marginal | conditional | class accuracy "
                  "| Fréchet distance | precision | recall | training |", "|" + "---|" * 9]
        for name in GROUPS[protocol]:
            row = known["rows"].get(name)
            if not row:
                lines.append(f"| {title(name)} | not yet measured |" + " |" * 7)
                continue
            cells = [title(name), "", "", ""]
            if name in ("digits", "noise"):
                cells[0] = {"digits": "*5,000 validation digits*", "noise": "*noise*"}[name]
            elif "likelihood" not in row or row["likelihood"]["protocol"] != protocol:
                cells[0] += ", probabilities" if "likelihood" in row else ""
            else:
                it = row["likelihood"]
                sign, digits = "≤ " if it["kind"] == "bound" else "", 2 if protocol == "binary" else 3

                def figure(value):
                    return f"{sign}{value:.{digits}f}" if value is not None else "–"

                few = it["summed over"] not in (None, 10000)
                marginal = ("≈ " if few and not sign else "") + figure(it["NLL, marginal"]) + "¹" * few
                cells[1:] = [figure(unconditional(name)), marginal, figure(it["NLL, conditional"])]
                if it["kind"] in ("none", "up to a constant"):
                    cells[1] = it["kind"]
            s = row.get(protocol)
            cells += ["not yet measured", "", "", ""] if not s else [
                plus(s["class accuracy"], 100, 1, " %"), plus(s["Frechet distance"], 1, 1),
                plus(s["precision"], 1, 3), plus(s["recall"], 1, 3)]
            cells.append(training(row) if "seconds of training" in row else "")
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines += seeds_table(known)
    lines += ["| cost | parameters | lines of code | training | 64 samples | most memory |", "|" + "---|" * 6]
    for name in IMAGES:
        if row := known["rows"].get(name):
            memory, file = row["peak memory, MB"], ROOT / command(name).split()[0]
            lines.append(f"| {title(name)} | {row['parameters']:,} | {lines_of_code(file)} | "
                         f"{training(row)} | {duration(row['seconds for 64 samples'])} | "
                         f"{f'{memory:,.0f} MB' if memory else '–'} |")
        else:
            lines.append(f"| {title(name)} | not yet measured |" + " |" * 4)
    lines += ["", "| sequences, exact | test set | −log p(x) | parameters | lines of code | training | drawn in | "
              "most memory |", "|" + "---|" * 8]
    for name in SEQUENCES:
        if row := known["rows"].get(name):
            r, memory = row["results"], row["peak memory, MB"]
            given = (["tiny Shakespeare, last tenth", f"{r['test NLL, nats/char']:.4f} nats/char"] if name == "char_rnn"
                     else ["spoken digits, recordings 0-4", f"{r['NLL, bits/sample']:.3f} "
                           "bits/sample given digit and speaker"])
            drawn = (f"{row['seconds to sample']:.1f} s, 1,000 characters" if name == "char_rnn" else
                     f"{row['seconds to sample']:.1f} s, a second of sound")
            lines.append(f"| {title(name)} | {given[0]} | {given[1]} | {row['parameters']:,} | "
                         f"{lines_of_code(ROOT / f'{name}.py')} | {training(row)} | {drawn} | "
                         f"{f'{memory:,.0f} MB' if memory else '–'} |")
    return "\n".join(lines) + "\n"


def training(run):
    """Seconds of training, and how many cores it had, from a row."""
    return f"{run['seconds of training']:,.0f} s{' on two cores' * ('2 threads' in run['where'])}"


def seeds_table(known):
    """Models that were trained three times: the mean and the standard deviation of what each run is measured at."""
    lines = ["| seeds 0, 1, 2 | conditional | class accuracy | Fréchet distance | precision | recall |",
             "|" + "---|" * 6]
    for name, protocol in SEEDED.items():
        rows = [known["rows"].get(run) for run in (name, f"{name}-1", f"{name}-2")]
        if None in rows:
            lines.append(f"| {title(name)} | not yet measured |" + " |" * 4)
            continue

        def spread(values, scale=1, digits=2, unit=""):
            if None in values:
                return "–"
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            return plus((mean, deviation), scale, digits, unit)

        sign, digits = "≤ " if rows[0]["likelihood"]["kind"] == "bound" else "", 2 if protocol == "binary" else 3
        nll = spread([row["likelihood"]["NLL, conditional"] for row in rows], 1, digits)
        cells = [sign * (nll != "–") + nll]
        cells += [spread([row[protocol][key][0] for row in rows], *how) for key, *how in (
            ("class accuracy", 100, 1, " %"), ("Frechet distance", 1, 1), ("precision", 1, 3), ("recall", 1, 3))]
        lines.append(f"| {title(name)} | {' | '.join(cells)} |")
    return [*lines, ""]


COLORS = {"binary": "#1f6fb4", "grey": "#e0701a"}


def annotate(ax, points, names):
    """Names beside their points (N, 2), each where it covers least and is nearest to its own."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # the names do not move the axes
    places, room = torch.tensor(ax.transData.transform(points)), ax.get_window_extent()
    crowd, taken = torch.cdist(places, places).fill_diagonal_(math.inf).min(1).values, []
    for i in crowd.argsort().tolist():
        tried = []
        for dx, dy in ((6, 5), (-6, 5), (6, -5), (-6, -5), (0, 8), (0, -8), (8, 0), (-8, 0), (6, 18), (-6, -18),
                       (9, 11), (9, -11), (-9, 11), (-9, -11)):
            text = ax.annotate(names[i], points[i], xytext=(dx, dy), textcoords="offset points", size=9, zorder=5,
                               ha={1: "left", 0: "center", -1: "right"}[(dx > 0) - (dx < 0)],
                               va={1: "bottom", 0: "center", -1: "top"}[(dy > 0) - (dy < 0)])
            box = text.get_window_extent(ax.figure.canvas.get_renderer())
            low, high = torch.tensor([box.x0, box.y0]), torch.tensor([box.x1, box.y1])
            off = (low - places).clamp(min=0) + (places - high).clamp(min=0)  # from each point to the box, (N, 2)
            off = off.norm(dim=1)
            outside = not (room.x0 < box.x0 and box.x1 < room.x1 and room.y0 < box.y0 and box.y1 < room.y1)
            cost = 10 * outside + 3 * sum(box.overlaps(other) for other in taken) + (off < 6).sum() + (
                off < off[i]).sum() - (off[i] < 6).long()
            tried.append((float(cost), len(tried), text, box))
            text.set_visible(False)
        *_, text, box = min(tried, key=lambda t: t[:2])
        text.set_visible(True)
        taken.append(box)


def figure(known):
    """Four pictures of the table: likelihood; quality against speed; precision against recall, binary and grey."""
    fig = Figure(figsize=(11, 9))
    FigureCanvasAgg(fig)  # names are placed by their size in pixels
    fig.subplots_adjust(left=0.125, right=0.985, top=0.95, bottom=0.065, wspace=0.2, hspace=0.28)
    (left, right), below = fig.subplots(2, 2)
    rows = known["rows"]
    for ax in (left, right, *below):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#eeeeee", lw=0.8)
        ax.set_axisbelow(True)
    scored = [n for n in IMAGES if n in rows and rows[n]["likelihood"]["protocol"] == "binary"]
    for key, marker, color in (("unconditional", "o", "#7f7f7f"), ("marginal", "s", "#1f6fb4"),
                               ("conditional", "D", "#2c9a4b")):
        left.plot([], [], marker, color=color, label=key)
        for place, name in enumerate(scored):
            it = rows[name]["likelihood"]
            value = unconditional(name) if key == "unconditional" else it[f"NLL, {key}"]
            if value is not None:
                left.plot(value, place, marker, color=color, mfc=color if it["kind"] == "exact" else "white")
    left.set_yticks(range(len(scored)), scored)
    left.invert_yaxis()
    left.set(xlabel="−log p of a binary test digit, nats", title="Likelihood: fewer nats are better (hollow: a bound)")
    left.legend(fontsize=9)
    right.set(xscale="log", yscale="log", xlabel="seconds for 64 samples", xlim=(4e-4, 20), ylim=(0.3, 60),
              ylabel="Fréchet distance to real digits", title="Looks against speed: low and left is good")
    right.set_yticks([0.5, 1, 2, 5, 10, 20, 50], ["0.5", "1", "2", "5", "10", "20", "50"])
    right.minorticks_off()
    points, shown = [], []
    for (protocol, color), ax in zip(COLORS.items(), below):
        names = [n for n in GROUPS[protocol] if protocol in rows.get(n, {}) and n != "noise"]
        here = []
        for name in names:
            s, real = rows[name][protocol], name == "digits"
            (distance, half), (p, p_half), (r, r_half) = (s[k] for k in ("Frechet distance", "precision", "recall"))
            ax.errorbar(r, p, p_half, r_half, fmt="*" if real else "o", ms=13 if real else 6, color=color,
                        ecolor="#d0d0d0", zorder=3 if real else 2)
            here.append((r, p))
            if real:
                right.axhline(distance, ls="--", lw=1, color=color)
            elif name not in OTHERWISE:
                seconds = rows[name]["seconds for 64 samples"]
                right.errorbar(seconds, distance, half, fmt="o", color=color, ecolor="#d0d0d0")
                points.append((seconds, distance))
                shown.append(name)
        ax.margins(0.25, 0.1)
        ax.set(xlabel="recall: real digits within the samples' region", ylabel="precision: samples within the digits'",
               title=f"{protocol.capitalize()} samples: up is sharp, right is varied")
        annotate(ax, here, ["real digits" if n == "digits" else n.partition(" (")[0].replace("temperature", "T =") for n in names])
    annotate(right, points, shown)
    for protocol, color in COLORS.items():
        right.plot([], [], "o", color=color, label=f"{protocol} samples")
    right.plot([], [], "--", color="gray", label="real digits")
    right.legend(fontsize=9, loc="upper left")
    return fig


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="scripts to measure again (all that have a run)")
    parser.add_argument("--run", action="store_true", help="make the runs that are missing first")
    args = parser.parse_args(argv)
    if unknown := set(args.names) - {*IMAGES, *SEQUENCES, *SEEDS}:
        parser.error(f"{', '.join(sorted(unknown))}: no chapter of that name")
    names = args.names or IMAGES + SEQUENCES + SEEDS
    missing = [n for n in names if not (ROOT / "out" / n / "metrics.json").exists()]
    for name in missing:
        print(f"{name}: no run in out/{name}; `python {command(name)}` makes it", flush=True)
        if args.run:
            run_chapter(name)
    path = RESULTS / "compare-cpu.json"
    known = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    judge = judge_for()
    images, labels, test, test_labels, _ = mnist("never")
    grey = test / 255
    digits = {"asked": labels[55000:], "held out": images[55000:] / 255, "grey": Against(judge, grey),
              "binary": Against(judge, binarise(grey, 1))}
    known["judge, test digits read right"] = share(read(judge, grey) == test_labels)
    known["judge, binarised test digits read right"] = share(read(judge, binarise(grey, 1)) == test_labels)
    if not args.names or "digits" not in known["rows"]:
        known["rows"] |= baselines(judge, digits)
    for name in [n for n in names if args.run or n not in missing]:
        known["rows"] |= {name: sequence(name)} if name in SEQUENCES else measure(name, judge, digits)
        print(name, json.dumps(known["rows"][name]), flush=True)
        written(known)
    print(table(known))


def written(known):
    """The numbers and the figure, where they belong."""
    (RESULTS / "compare-cpu.json").write_text(json.dumps(known, indent=1) + "\n")
    figure(known).savefig(ROOT / "assets" / "comparison.png", dpi=120)


if __name__ == "__main__":
    main()
