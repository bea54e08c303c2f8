"""What stands under which heading of a table, from the files in benchmarks/results.

Each of the functions in TABLES takes the name of a row, such as `vae` or `ddpm, guided`, and gives
{heading: cell}. tables.py writes them into the pages.
"""

import statistics

import likelihood
import runs

NOT_YET = "not yet"  # trained, or measured
LOOKS = {  # heading: key in the results, scale, digits behind the point, unit
    "class accuracy": ("class accuracy", 100, 1, " %"),
    "Fréchet distance": ("Frechet distance", 1, 1, ""),
    "precision": ("precision", 1, 3, ""),
    "recall": ("recall", 1, 3, ""),
}


def plus(value, half, scale, digits, unit):
    return f"{scale * value:.{digits}f} ± {scale * half:.{digits}f}{unit}"


def measured(row):
    """What measure.py found of a row; nothing if it is not measured yet."""
    return runs.read("compare").get("rows", {}).get(row, {})


def looks(row, protocol):
    """What the judge found."""
    scores = measured(row).get(protocol)
    if scores is None:
        return dict.fromkeys(LOOKS, NOT_YET)
    return {heading: plus(*scores[key], *how) for heading, (key, *how) in LOOKS.items()}


def nats(row):
    """−log p of a test example, by what it conditions on."""
    name = runs.chapter(row)
    figures = {  # the value, and who has one
        "class-conditional": (likelihood.conditional(name), likelihood.CONDITIONAL),
        "marginal": (likelihood.marginal(name), likelihood.MARGINAL),
        "unconditional": (likelihood.unconditional(name), runs.UNCONDITIONAL),
    }
    cells = {}
    for heading, (value, names) in figures.items():
        cells[heading] = NOT_YET if name in names else "–"
        if value is not None:
            cells[heading] = likelihood.written(name, value)
            if heading == "marginal" and name in likelihood.ESTIMATED:
                cells[heading] = f"≈ {cells[heading]}"
    return cells


def headline(row):
    """−log p given the class, with its unit, or why there is none."""
    name = runs.chapter(row)
    if name in likelihood.INSTEAD:
        return likelihood.INSTEAD[name]
    value = likelihood.conditional(name)
    if value is None:
        return NOT_YET
    return f"{likelihood.written(name, value)} {likelihood.unit(name)}"


def cores(threads):
    return {1: "", 2: " on two cores"}.get(threads, f" on {threads} cores")


def training(row):
    run = runs.read(runs.chapter(row))
    return f"{run['seconds']:,.0f} s{cores(run['run']['threads'])}" if run else NOT_YET


def models(row):
    """One line about a chapter: the table of the first page."""
    name = runs.chapter(row)
    # The pixel probabilities of vae and vqvae are judged as they are, as grey digits.
    cells = looks(row, "binary" if name in likelihood.EXACT else "grey")
    if name in runs.SEQUENCES:
        cells = {"class accuracy": "–", "Fréchet distance": "–"}
    if name == "wavenet":
        heard = runs.read("ear").get("sounds of 0.5 s, class accuracy")
        cells["class accuracy"] = plus(*heard, 100, 1, " %") if heard else NOT_YET
    if name in runs.FLAGS:
        cells |= {"p(x), test set": headline(row), "training": training(row)}
    return cells


def binary(row):
    return looks(row, "binary") | (nats(row) if row in runs.IMAGES else {})


def grey(row):
    """vae and vqvae have no likelihood of grey digits."""
    cells = looks(row, "grey")
    if row in runs.GREY:
        cells |= nats(row)
    if row in likelihood.INSTEAD:
        cells["class-conditional"] = likelihood.INSTEAD[row]
    return cells


def seeds(row):
    """Mean and standard deviation over three trainings."""
    name, comma, way = row.partition(",")
    protocol = "binary" if name in runs.BINARY else "grey"
    scores = []
    for run in (name, f"{name}-1", f"{name}-2"):
        scores.append(measured(run + comma + way).get(protocol))
    if None in scores:
        return dict.fromkeys(["class-conditional", *LOOKS], NOT_YET)
    cells = {"class-conditional": "–"}
    for heading, (key, *how) in LOOKS.items():
        cells[heading] = spread([score[key][0] for score in scores], *how)
    values = [likelihood.conditional(run) for run in (name, f"{name}-1", f"{name}-2")]
    if None not in values:
        digits = likelihood.DIGITS[likelihood.unit(name)]
        cells["class-conditional"] = likelihood.sign(name) + spread(values, 1, digits, "")
    return cells


def spread(values, *how):
    return plus(statistics.mean(values), statistics.stdev(values), *how)


def duration(seconds):
    digits = 3 if seconds < 0.01 else 2 if seconds < 1 else 1
    return f"{seconds:.{digits}f} s"


def costs(row):
    """Training, size and sampling."""
    run = runs.read(row)
    model = measured(row)
    drawn = runs.read("sampling").get(row, {})
    cells = {"training": training(row), "−log p(x)": headline(row), "most memory": "–"}
    if run and run["run"]["peak memory, MB"]:
        cells["most memory"] = f"{run['run']['peak memory, MB']:,.0f} MB"
    cells["weights"] = f"{model['parameters']:,}" if model else NOT_YET
    cells["lines of code"] = str(model["lines of code"]) if model else NOT_YET
    for way in ("plain", "fast"):
        seconds = drawn.get(f"{way}, seconds")
        cells[way] = "–"
        if seconds is not None:
            cells[way] = duration(seconds) + cores(drawn["threads"])
    if not drawn.get("plain, seconds"):
        cells["plain"] = NOT_YET
    cells["ratio"] = "–"
    if drawn.get("plain, seconds") and drawn.get("fast, seconds"):
        cells["ratio"] = f"{drawn['plain, seconds'] / drawn['fast, seconds']:.0f}"
    cells["samples"] = str(drawn.get("samples", NOT_YET))
    cells["symbols of each"] = f"{drawn['symbols of each']:,}" if drawn else NOT_YET
    return cells


def published(row):
    """Without classes, as in papers."""
    run = runs.read(f"{row}-unconditional")
    if not run:
        return {"nats": NOT_YET, "epochs": NOT_YET}
    epochs = run["flags"]["steps"] * run["flags"]["batch_size"] / 55000
    return {"nats": nats(row)["unconditional"], "epochs": f"{epochs:.1f}"}


def published_grey(row):
    """The same, and given the class, of 8-bit grey digits."""
    name = runs.chapter(row)
    cells = {}
    for heading, run in (("class-conditional", name), ("unconditional", f"{name}-unconditional")):
        bits = likelihood.conditional(run)
        if "importance" in row:
            bits = runs.read("importance").get(run, {}).get("bits/dim")
        cells[heading] = likelihood.written(name, bits) if bits else NOT_YET
    return cells


def guided(row):
    return looks(row, "grey")


TABLES = {
    "models": models,
    "binary": binary,
    "grey": grey,
    "guided": guided,
    "seeds": seeds,
    "cost": costs,
    "sequences": costs,
    "sampling": costs,
    "published": published,
    "published grey": published_grey,
}
