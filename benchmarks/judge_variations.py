"""What the variations reach, and the tables of variations/README.md.

`python benchmarks/judge_variations.py` collects the saved runs in out/ (of the names given, or all; says which are
missing) into benchmarks/results/NAME-cpu.json, lets the judge (judge.py) classify samples of those that draw digits,
5,000 asked for in the classes of the validation digits, as compare.py does with the chapters, and fills
variations/README.md. A run is made by `python -m variations.NAME`; log.txt and run.json are there if
benchmarks/meter.py made it. Samples that are probabilities of pixels are classified as they are.
"""
import bz2
import gzip
import importlib
import json
import lzma
import re
import sys
import time
from functools import partial

import torch
from compare import RESULTS, Against, binarise, scores
from judge import ROOT, judge_for
from readme import collect

import data

BEGIN, END = "<!-- table -->\n", "<!-- end -->"
BINARY = ["rnn_pixels", "wavenet_pixels", "masked_diffusion"]


def with_state(name, build):
    """A variation's sampler of n images of classes y: its model, built from its settings, with the saved weights."""
    saved = torch.load(ROOT / "out" / name / "model.pt", weights_only=True)
    model = build(importlib.import_module(f"variations.{name.partition('-')[0]}"), saved["settings"])
    model.load_state_dict(saved["state"]["model"])
    return model.eval().sample


def masked_diffusion():
    variation, chapter = (importlib.import_module(part) for part in ("variations.masked_diffusion", "transformer_ar"))
    chapter.Transformer, chapter.NAME = variation.MaskedDiffusion, "masked_diffusion"  # for the chapter's `load`
    return chapter.load(ROOT / "out" / "masked_diffusion" / "model.pt").sample


def pixelcnn_pp(name="pixelcnn_pp"):
    return with_state(name, lambda v, s: v.GreyPixelCNN(s["channels"], s["layers"], True, s["levels"]))


def rnn_pixels():
    return with_state("rnn_pixels", lambda v, s: v.PixelRNN(s["hidden"], s["layers"]))


def wavenet_pixels():
    return with_state("wavenet_pixels", lambda v, s: v.PixelWaveNet(s["channels"], s["layers"]))


def fsq():
    return with_state("fsq", lambda v, s: v.FSQVAE(s["hidden"], s["codes"], v.read_levels(s["levels"])))


SAMPLERS = {f.__name__: f for f in (masked_diffusion, pixelcnn_pp, rnn_pixels, wavenet_pixels, fsq)}
SAMPLERS["pixelcnn_pp-softmax"] = partial(pixelcnn_pp, "pixelcnn_pp-softmax")  # a run with --levels softmax

IDEAS = {
    "masked_diffusion": "tokens appear in any order, many at once",
    "pixelcnn_pp": "8-bit grey levels by a mixture of logistics",
    "rnn_pixels": "an LSTM reads and draws pixels",
    "wavenet_pixels": "dilated convolutions over the pixels of a digit",
    "transformer_text": "characters for patches",
    "compression": "arithmetic coding of any text file",
    "moons": "points in the plane, where the density can be drawn",
    "fsq": "rounded numbers for the codebook"}


def table():
    """A line for each variation; what was measured is the end of its docstring, from "Measured" on."""
    lines = ["| variation | what changes | chapter | lines | measured |", "|" + "---|" * 5]
    for name, idea in IDEAS.items():
        text = (ROOT / "variations" / f"{name}.py").read_text(encoding="utf-8")
        opening = text.split('"""')[1]
        chapter, (_, found, measured) = re.search(r"(\w+)\.py", opening)[1], opening.rpartition("Measured, ")
        measured = " ".join(measured.split()) if found else "not yet measured"
        lines.append(f"| [{name}]({name}.py) | {idea} | [{chapter}.py](../{chapter}.py) | "
                     f"{len(text.splitlines())} | {measured} |")
    return "\n".join(lines) + "\n"


def filled(text):
    """variations/README.md with its table as the files have it."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def compression():
    """The last tenth of tiny Shakespeare, there and back by the run in out/char_rnn, beside other compressors."""
    coder, (text, *_) = importlib.import_module("variations.compression"), data.text(None, "never")
    text = text[len(text) * 9 // 10:]
    blob, model = text.encode(), importlib.import_module("char_rnn").load(ROOT / "out/char_rnn/model.pt")
    begun = time.time()
    packed = coder.pack(model, text)
    seconds, same = time.time() - begun, coder.unpack(model, packed) == text
    return {"script": "compression", "results": {
        "bytes": len(blob), "gzip": len(gzip.compress(blob)), "bz2": len(bz2.compress(blob)),
        "xz": len(lzma.compress(blob)), "char_rnn, the model not counted": len(packed), "the same came back": same,
        "seconds to compress": seconds}}


@torch.no_grad()
def judged(draw, name, judge, digits):
    """The judge's class accuracy and Fréchet distance of samples asked for."""
    torch.manual_seed(0)
    begun = time.perf_counter()
    x = torch.cat([draw(len(y), y) for y in digits["asked"].split(500)])
    seconds = (time.perf_counter() - begun) / len(x) * 1000
    x = binarise(x, 2) if name in BINARY else x
    said = scores(x, digits["asked"], judge, digits["binary" if name in BINARY else "grey"])
    return {key: said[key] for key in ("class accuracy", "Frechet distance")} | {
        "samples": len(x), "seconds for 1,000 samples": seconds, "threads": torch.get_num_threads()}


def main(names):
    path = RESULTS / "variations-cpu.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    judge = judge_for()
    _, labels, test, _, _ = data.mnist("never")
    digits = {"asked": labels[55000:], "grey": Against(judge, test / 255),
              "binary": Against(judge, binarise(test / 255, 1))}
    for name in names or {**IDEAS, **SAMPLERS}:
        if name == "compression":
            (RESULTS / "compression-cpu.json").write_text(json.dumps(compression(), indent=1) + "\n")
            continue
        if not (ROOT / "out" / name / "metrics.json").exists():
            print(f"{name}: no run in out/{name}; `python -m variations.{name.partition('-')[0]}` makes it")
            continue
        collect(name)
        if name in SAMPLERS:
            known[name] = judged(SAMPLERS[name](), name, judge, digits)
            path.write_text(json.dumps(known, indent=1) + "\n")
            print(name, known[name], flush=True)
    readme = ROOT / "variations" / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
