"""How long it takes to sample: the plain way, and by the fast sampler where a chapter has one.

    python benchmarks/sampling.py           models that are new or trained again since
    python benchmarks/sampling.py vae gan   these, in any case

Each trained model in out/NAME draws 100 images, or 1,000 characters of text, or a quarter of a
second of sound, by `model.sample`, and again by the chapter's `cached_sample` or `ddim_sample`.
The cached samplers are given the same random numbers and draw the same, but for rounding: how many
differ is written down too. All goes to benchmarks/results/sampling.json.
"""

import argparse
import importlib
import time

import runs
import torch
from measure import load, measured, trained

NAMES = runs.IMAGES + runs.SEQUENCES
FAST = ["cached_sample", "ddim_sample"]


def timed(sample, *how):
    """What `sample` draws, and in how many seconds."""
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.no_grad():
        drawn = sample(*how)
    return drawn, time.perf_counter() - start


def task(name, model):
    """What a model is asked for: the arguments, how many samples, of how many symbols each."""
    if name == "char_rnn":
        return ("", 1000), 1, 1000
    if name == "wavenet":
        return (torch.tensor([3]), torch.tensor([0]), 2000), 1, 2000
    return (torch.arange(100) % 10,), 100, model.T if name == "transformer_ar" else 28 * 28


def measure(name):
    module, model = importlib.import_module(name), load(name)
    how, samples, symbols = task(name, model)
    plain, seconds = timed(model.sample, *how)
    row = {"samples": samples, "symbols of each": symbols, "plain, seconds": seconds}
    for fast in FAST:
        if hasattr(module, fast):
            drawn, row["fast, seconds"] = timed(getattr(module, fast), model, *how)
            if fast == "cached_sample":
                differ = (drawn != plain).flatten(1).any(1)
                row["samples that differ"] = differ.sum().item()
    row["threads"] = torch.get_num_threads()
    row["seconds of training"] = runs.read(name)["seconds"]
    return row | runs.origin()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to time in any case")
    names = parser.parse_args().names
    if not set(names) <= set(NAMES):
        parser.error(f"a model is one of {', '.join(NAMES)}")
    known = runs.read("sampling")
    for name in names or [name for name in NAMES if not measured(name, known)]:
        if trained(name):
            known[name] = measure(name)
            runs.write("sampling", known)
            print(name, known[name], flush=True)


if __name__ == "__main__":
    main()
