"""The pages and the openings say what was measured: numbers, tables, links, logs, and the diff for many machines."""
import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from harness import CHAPTERS, ROOT, TINY, small

sys.path.insert(0, str(ROOT / "benchmarks"))
import judge_variations  # noqa: E402
import readme as front  # noqa: E402

PAGES = {str(f.relative_to(ROOT).as_posix()): f.read_text(encoding="utf-8")
         for f in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "variations" / "README.md"]}
RESULTS = ROOT / "benchmarks" / "results"
VARIATIONS = sorted(f.stem for f in (ROOT / "variations").glob("[a-z]*.py"))
KNOWN = {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in RESULTS.glob("*.json")}
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-\d+)?(?![\d.]*\w)")
# Numbers in the prose that nobody measured here: sizes of the data, of pictures, figures of others, plain counting.
CONSTANTS = {
    "28", "784", "49", "64", "256", "255", "2", "55,000", "5,000", "10,000", "60,000", "1,000", "543.4", "8,000", "0",
    "1", "8", "9", "11", "12", "16", "65", "200", "300", "400", "2,000", "14,990", "99", "4.6",
    "95",  # per cent, of intervals
    "158", "14",  # CS294-158, and the number of a tutorial
    "118.6",  # transformer_ar.py's nats, in bits
    "1.4697", "1.88", "84.87", "86.77", "84.78",  # published, see REFERENCES in the openings
}


def leaves(known):
    if isinstance(known, dict):
        known = list(known.values())
    if isinstance(known, list):
        return [leaf for part in known for leaf in leaves(part)]
    return [abs(known)] if isinstance(known, (int, float)) and not isinstance(known, bool) else []


def measured(name):
    """Every number that the results hold of a chapter: its runs, its row of the comparison, what the judge said."""
    parts = [v for k, v in KNOWN.items() if re.match(rf"{name}[-.]", k)]
    parts = [{k: v for k, v in part.items() if k != "curve"} for part in parts]
    parts += [v for k, v in KNOWN["compare-cpu"]["rows"].items() if re.fullmatch(rf"{name}([-,].*)?", k)]
    parts += [KNOWN["sampling-cpu"]["results"].get(name)]
    parts += [v for k, v in KNOWN["variations-cpu"].items() if k.partition("-")[0] == name]
    parts += [v for k, v in KNOWN["judge-cpu"].items() if f"judge.py {name}" in k] + [KNOWN["notes"].get(name)]
    return leaves(parts + ([KNOWN.get("ear-cpu")] if name == "wavenet" else []))


def is_one_of(number, values):
    """Whether a printed number is one of the values, or one of them in per cent, rounded to as many digits."""
    bare = number.replace(",", "")
    digits = len(bare.partition(".")[2])
    for value in values:
        if "e-" in bare and f"{value:.0e}" == bare:
            return True
        if "e-" not in bare and bare in (f"{value:.{digits}f}", f"{100 * value:.{digits}f}"):
            return True
    return False


def prose(text):
    """Paragraphs without code, commands, links, log lines and tables."""
    text = re.sub(r"```.*?```|<!-- table.*?<!-- end.*?-->|^\|.*?$|^    .*?$", "", text, flags=re.S | re.M)
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|\b\d{4}\.\d{4,5}\b|\b(19|20)\d\d\b", " ", text)
    return re.split(r"\n\s*\n", text)


def unmeasured(paragraph, also=()):
    """The numbers of a paragraph that stand in no result of the chapters it names, nor among the constants."""
    names = {*also, *re.findall(r"\b(\w+)\.py", paragraph)} & {*CHAPTERS, *VARIATIONS}
    values = [v for name in names or CHAPTERS for v in measured(name)] + leaves(
        {k: v for k, v in KNOWN["compare-cpu"].items() if k != "rows"})
    found = [m for m in NUMBER.findall(paragraph) if m.strip(",") not in CONSTANTS]
    return [m for m in found if not is_one_of(m.rstrip(","), values)]


def opening(name):
    return (ROOT / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]


@pytest.mark.parametrize("name", CHAPTERS)
def test_numbers_of_an_opening_are_those_of_the_results(name):
    seen = opening(name).split(f"`python {name}.py`")[1]
    assert not [bad for paragraph in prose(seen) for bad in unmeasured(paragraph, [name])]


@pytest.mark.parametrize("name", VARIATIONS)
def test_numbers_of_a_variation_are_those_of_the_results(name):
    opening = (ROOT / "variations" / f"{name}.py").read_text(encoding="utf-8").split('"""')[1]
    assert ("Measured, " in opening) == (f"{name}-cpu" in KNOWN) == ("not yet measured" not in opening)
    said = opening.split("Measured, ")[-1] if "Measured, " in opening else ""
    assert not [bad for paragraph in prose(said) for bad in unmeasured(paragraph, [name])]


@pytest.mark.parametrize("name", CHAPTERS)
def test_log_lines_of_an_opening_are_those_of_the_log(name):
    lines = re.findall(r"^    (step .*)$", opening(name), re.M)
    log = (RESULTS / f"{name}-cpu.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 2 and not set(lines) - set(log)


@pytest.mark.parametrize("paragraph", [p for page in PAGES.values() for p in prose(page) if NUMBER.search(p)],
                         ids=lambda p: p.strip()[:40])
def test_numbers_of_the_pages_are_those_of_the_results(paragraph):
    assert not unmeasured(paragraph)


def test_a_number_that_nobody_measured_is_found():
    assert unmeasured("made.py: 84.13 nats") == ["84.13"] and unmeasured("realnvp.py 1.999 bits") == ["1.999"]


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_results_are_those_of_the_default_run_on_real_data(name):
    run = KNOWN[f"{name}-cpu"]
    spec = __import__(name)
    defaults = {k: v[0] for k, v in (spec.SETTINGS | {"seed": (0,), "stand_in": ("auto",)}).items()}
    assert run["settings"] == defaults and run["step"] == defaults["steps"] and "stand-in" not in run["source"]


def test_tables_of_the_pages_are_those_of_the_results():
    assert all(front.filled(PAGES[page], page) == PAGES[page] for page in front.PAGES)
    assert judge_variations.filled(PAGES["variations/README.md"]) == PAGES["variations/README.md"]
    assert (RESULTS / "compare-cpu.md").read_text(encoding="utf-8") == front.compare.table(KNOWN["compare-cpu"])


def test_missing_runs_are_named_and_leave_what_there_is(tmp_path, monkeypatch, capsys):
    for part in ("benchmarks/results", "assets", "docs", "variations"):
        shutil.copytree(ROOT / part, tmp_path / part)
    for f in [*ROOT.glob("*.py"), ROOT / "README.md"]:
        shutil.copy(f, tmp_path)
    for module in (front, front.compare):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(module, "RESULTS", tmp_path / "benchmarks" / "results")
    front.main([])
    printed = capsys.readouterr().out
    assert all(f"`python {name}.py` makes it" in printed for name in CHAPTERS)
    assert all(f"`python -m variations.{name}` makes it" in printed for name in VARIATIONS if name != "compression")
    assert all((tmp_path / page).read_text(encoding="utf-8") == PAGES[page] for page in PAGES)
    for f in RESULTS.iterdir():
        assert (tmp_path / "benchmarks" / "results" / f.name).read_bytes() == f.read_bytes()
    assert (tmp_path / "assets" / "gallery.png").read_bytes() == (ROOT / "assets" / "gallery.png").read_bytes()


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-")
            for h in re.findall(r"^#+ (.*)$", page, re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_path_of_a_page_resolves(page):
    text = PAGES[page]
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert links
    for link in links:
        if not re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./-]*)?", link):
            file, _, anchor = link.partition("#")
            path = (ROOT / page).parent / file if file else ROOT / page
            assert path.exists(), link
            assert not anchor or anchor in headings(path.read_text(encoding="utf-8")), link


def test_no_picture_is_left_over():
    linked = {name for page in PAGES.values() for name in re.findall(r"assets/([\w.]+)", page)}
    assert linked == {f.name for f in (ROOT / "assets").iterdir()}
    assert linked == {*front.PICTURES, "gallery.png", "taxonomy.png", "comparison.png"}


def test_the_first_page_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 200


@pytest.mark.slow
def test_the_diff_for_many_machines_trains_equal_ranks(tmp_path):
    diff = re.search(r"```diff\n(.*?)```", PAGES["docs/scaling.md"], re.S).group(1)
    for f in ("ddpm.py", "data.py"):
        (tmp_path / f).write_bytes((ROOT / f).read_bytes())
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    ranks = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ddpm.py",
         *TINY["ddpm"].split()], cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env=small() | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})
    assert ranks.returncode == 0, ranks.stderr
    a, b = (torch.load(tmp_path / "out" / f"ddpm-{k}" / "model.pt", weights_only=True) for k in (0, 1))
    assert a["step"] == b["step"] == 3
    for part in ("model", "ema"):
        assert all(torch.equal(v, b["state"][part][k]) for k, v in a["state"][part].items())
    assert a["curve"][-1]["training"] != b["curve"][-1]["training"]  # each rank saw digits of its own
