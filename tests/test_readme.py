"""The pages: links and pictures resolve, and the diff for many machines works."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from chapters import ROOT, TINY, checkpoint, data_folder

PAGES = {}
for folder in ("", "docs", "variations", "benchmarks"):
    for path in sorted((ROOT / folder).glob("*.md")):
        PAGES[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")


def headings(page):
    """The anchors of a page's headings, as GitHub makes them."""
    anchors = set()
    for heading in re.findall(r"^#+ (.*)$", page, re.M):
        words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
        anchors.add(words.replace(" ", "-"))
    return anchors


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_path_of_a_page_resolves(page):
    text = PAGES[page]
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert links
    for link in links:
        if re.fullmatch(r"https://[\w.-]+\.\w+(/[\w./-]*)?", link):
            continue
        file, _, anchor = link.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in headings(path.read_text(encoding="utf-8")), link


def test_no_picture_is_left_over():
    linked = set()
    for text in PAGES.values():
        linked.update(re.findall(r"assets/([\w./]+)", text))
    assets = ROOT / "assets"
    assert linked == {path.relative_to(assets).as_posix() for path in assets.rglob("*.*")}


@pytest.mark.slow
def test_the_diff_for_many_machines_trains_equal_ranks(tmp_path):
    diff = re.search(r"```diff\n(.*?)```", PAGES["docs/scaling.md"], re.S)[1]
    for file in ("ddpm.py", "data.py"):
        shutil.copy(ROOT / file, tmp_path)
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, check=True)
    two = "-m torch.distributed.run --standalone --nproc-per-node 2 ddpm.py".split()
    here = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    here["DATA_DIR"] = str(data_folder(tmp_path / "data"))
    ranks = subprocess.run(
        [sys.executable, *two, *TINY["ddpm"].split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | here,
    )
    assert ranks.returncode == 0, ranks.stderr
    a, b = (checkpoint(tmp_path / "out" / f"ddpm-{rank}") for rank in (0, 1))
    assert a["step"] == b["step"] == 4
    for key, weights in a["model"].items():
        assert torch.equal(weights, b["model"][key])
    # Each rank saw digits of its own.
    assert a["curve"][-1]["training"] != b["curve"][-1]["training"]
