"""What the judge says of each image model, and how large the models are.

    python benchmarks/measure.py           models that are new or trained again since
    python benchmarks/measure.py vae gan   these, in any case

Of every model in out/NAME, 5,000 samples are drawn in the classes of the 5,000 validation digits,
read by the judge (judge.py) and compared in its features with the 10,000 test digits. Binary models
meet binarised test digits, the others grey ones. vae.py and vqvae.py give probabilities: they are
measured twice, as they are and with a draw for each pixel. Two rows are no models: validation
digits, which show what real ones score, and noise. All goes to benchmarks/results/compare.json.
"""

import argparse
import importlib
import io
import json
import sys
import tokenize

import runs
import torch
from judge import Against, classes, load_judge, share

from data import mnist

MEASURED = runs.IMAGES + runs.SEQUENCES
for name in runs.SEEDED:
    MEASURED += [f"{name}-1", f"{name}-2"]


def rows_of(run):
    """The rows that the judge fills: plain samples of p(x | y), and those drawn in another way."""
    if run in runs.SEQUENCES:
        return []
    rows = [run]
    if runs.chapter(run) == "ddpm":
        rows.append(f"{run}, guided")
    if run == "ddpm":
        rows.append("ddpm, Algorithm 2")
    if run == "realnvp":
        rows.append("realnvp, temperature 0.7")
    return rows


def draw(row, model, y):
    """Samples of the classes y (B,), drawn as a row says, by the fast sampler if there is one."""
    module = importlib.import_module(runs.chapter(row))
    _, _, way = row.partition(", ")
    if way == "guided":
        return module.ddim_sample(model, y)
    if way == "Algorithm 2":
        return model.sample(y)
    if way == "temperature 0.7":
        return model.sample(y, temperature=0.7)
    if hasattr(module, "ddim_sample"):
        return module.ddim_sample(model, y, w=1)
    if hasattr(module, "cached_sample"):
        return module.cached_sample(model, y)
    return model.sample(y)


def load(run):
    return importlib.import_module(runs.chapter(run)).load(runs.ROOT / "out" / run / "model.pt")


def trained(run):
    """Whether out/NAME holds the model of the results; if not, a line says so."""
    here = runs.here(run)
    if not here:
        print(f"{run}: not measured, out/{run} does not hold the run of the results", flush=True)
    return here


def measured(run, known):
    """Whether what is known of a run is of the run that the results are of."""
    seconds = known.get(run, {}).get("seconds of training")
    return seconds is not None and seconds == runs.read(run).get("seconds")


def lines_of_code(text):
    """How many lines of a script hold code: no blank ones, no comments, no docstrings."""
    lines = set()
    begins = True  # whether a logical line begins here
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            begins = True
        elif token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER):
            docstring = begins and token.type == tokenize.STRING
            if not docstring:
                lines.update(range(token.start[0], token.end[0] + 1))
            begins = False
    return len(lines)


def binarise(x, seed):
    """A Bernoulli draw for each pixel of images in [0, 1]."""
    return (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < x).float()


class Comparison:
    """The judge, the test digits to compare with, and the classes to ask for."""

    def __init__(self):
        self.judge = load_judge()
        x, y, x_test, self.test_classes, _ = mnist("never")
        self.asked = y[55000:]
        self.validation = x[55000:] / 255
        self.test = x_test / 255
        self.real = {
            "binary": Against(self.judge, binarise(self.test, 1)),
            "grey": Against(self.judge, self.test),
        }

    def of_judge(self):
        """Which judge it is, and the shares of test digits that it reads right."""
        right = classes(self.judge, self.test) == self.test_classes
        binary = classes(self.judge, binarise(self.test, 1)) == self.test_classes
        return {
            "judge": self.judge.fingerprint,
            "judge, test digits read right": share(right),
            "judge, binarised test digits read right": share(binary),
        }

    def scores(self, x, asked, protocol):
        right = classes(self.judge, x) == asked
        return {"class accuracy": share(right)} | self.real[protocol].scores(x)

    def baselines(self):
        """The rows that are no models."""
        noise = torch.rand(self.validation.shape, generator=torch.Generator().manual_seed(3))
        images = {
            ("validation digits", "binary"): binarise(self.validation, 2),
            ("validation digits", "grey"): self.validation,
            ("noise", "binary"): (noise < 0.5).float(),
            ("noise", "grey"): noise,
        }
        rows = {"validation digits": runs.origin(), "noise": runs.origin()}
        for (row, protocol), x in images.items():
            rows[row][protocol] = self.scores(x, self.asked, protocol)
        return rows

    @torch.no_grad()
    def rows(self, run):
        """All rows of a run."""
        name, model = runs.chapter(run), load(run)
        rows = {run: runs.origin()}
        for row in rows_of(run):
            # A thousand passes a sample: fewer of them.
            asked = self.asked[::5] if row == "ddpm, Algorithm 2" else self.asked
            torch.manual_seed(0)
            x = torch.cat([draw(row, model, y) for y in asked.split(500)])
            rows[row] = runs.origin()
            if name in runs.BINARY:
                rows[row]["binary"] = self.scores(binarise(x, 2), asked, "binary")
            if name in ("vae", "vqvae") or name in runs.GREY:
                rows[row]["grey"] = self.scores(x, asked, "grey")
        text = (runs.ROOT / f"{name}.py").read_text(encoding="utf-8")
        about = {
            "seconds of training": runs.read(run)["seconds"],
            "parameters": sum(p.numel() for p in model.parameters()),
            "lines of code": lines_of_code(text),
        }
        rows[run] = about | rows[run]
        return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs to measure in any case")
    names = parser.parse_args().names
    if not set(names) <= set(MEASURED):
        parser.error(f"a run is one of {', '.join(MEASURED)}")
    known = runs.read("compare") or {"rows": {}}
    due = names or [run for run in MEASURED if not measured(run, known["rows"])]
    due = [run for run in due if trained(run)]
    if not due:
        return
    comparison = Comparison()
    if known.get("judge") not in (None, comparison.judge.fingerprint):
        sys.exit("compare.json is of another judge than out/judge: delete it to measure all anew")
    known |= comparison.of_judge()
    if "noise" not in known["rows"]:
        known["rows"] |= comparison.baselines()
    for run in due:
        known["rows"] |= comparison.rows(run)
        runs.write("compare", known)
        print(run, json.dumps(known["rows"][run]), flush=True)


if __name__ == "__main__":
    main()
