"""The pages: tables hold the results, links and paths resolve, and the diff for many machines works."""
import importlib
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from chapters import ROOT, TINY, data_folder

sys.path.insert(0, str(ROOT / "benchmarks"))
import readme as front  # noqa: E402

PAGES = {str(f.relative_to(ROOT).as_posix()): f.read_text(encoding="utf-8")
         for f in [ROOT / "README.md", ROOT / "variations" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize("name", front.ORDER)
def test_the_results_are_those_of_the_default_run_on_real_data(name):
    run, chapter = front.kept(name), importlib.import_module(name)
    if run is None:
        pytest.skip("not yet measured")
    defaults = vars(chapter.parse_flags([]))
    del defaults["bfloat16"]  # as the machine has it; and what names a run, not a model
    for key in ("device", "out", "resume"):
        del defaults[key]
    assert {key: run["flags"][key] for key in defaults} == defaults and run["step"] == defaults["steps"]
    assert "stand-in" not in run["source"]


def test_tables_of_the_pages_are_those_of_the_results():
    assert all(front.filled(PAGES[page], page) == PAGES[page] for page in front.PAGES)


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
    assert all(f"`python {name}.py` makes it" in printed for name in front.ORDER)
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
    linked = {name for page in PAGES.values() for name in re.findall(r"assets/([\w./]+)", page)}
    there = {f.relative_to(ROOT / "assets").as_posix() for f in (ROOT / "assets").rglob("*.*")}
    assert linked == there
    of_chapters = {name for name in linked if "/" not in name}
    assert of_chapters == {*front.PICTURES, "gallery.png", "taxonomy.png", "comparison.png"}


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
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                          "DATA_DIR": str(data_folder(tmp_path / "data"))})
    assert ranks.returncode == 0, ranks.stderr
    a, b = (torch.load(tmp_path / "out" / f"ddpm-{k}" / "model.pt", weights_only=True) for k in (0, 1))
    assert a["step"] == b["step"] == 4
    assert all(torch.equal(v, b["model"][k]) for k, v in a["model"].items())
    assert a["curve"][-1]["training"] != b["curve"][-1]["training"]  # each rank saw digits of its own
