"""What every variation promises: its shape, and for those that train a run that can go on."""

import ast
import importlib
import json
import subprocess
import sys

import pytest
import torch
from chapters import (
    CHAPTERS,
    ROOT,
    VARIATIONS,
    checkpoint,
    data_folder,
    equal,
    lines,
    main,
    stop_at,
    touch,
)

FILES = sorted(path for path in (ROOT / "variations").glob("*.py") if path.stem != "__init__")
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
every = pytest.mark.parametrize("name", VARIATIONS)


@pytest.fixture(autouse=True)
def small_data(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "digits"
    if not folder.exists():
        data_folder(folder)
    monkeypatch.setenv("DATA_DIR", str(folder))


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    if not request.node.get_closest_marker("pictures"):
        for name in VARIATIONS:
            monkeypatch.setattr(importlib.import_module(name).Run, "picture", touch)


@every_file
def test_a_variation_is_short_and_a_statement_says_one_thing(path):
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    expressions = sum(isinstance(node, ast.expr) for node in nodes)
    assert expressions / sum(isinstance(node, ast.stmt) for node in nodes) <= 7.5
    assert not any(isinstance(node, ast.NamedExpr) for node in nodes)
    assert max(map(len, text.split("\n"))) <= 100 and lines(text) <= 200
    assert "# fmt:" not in text and "# noqa" not in text


@every_file
def test_a_variation_stands_on_a_chapter(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {n.name for i in ast.walk(tree) if isinstance(i, ast.Import) for n in i.names}
    assert imported & set(CHAPTERS)


def test_importing_variations_changes_no_chapter():
    program = f"""
import importlib, sys
chapters = [importlib.import_module(name) for name in {CHAPTERS}]
before = [dict(vars(chapter)) for chapter in chapters]
for name in {[path.stem for path in FILES]}:
    importlib.import_module("variations." + name)
sys.exit([dict(vars(chapter)) for chapter in chapters] != before)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


@every
@pytest.mark.slow
@pytest.mark.pictures
def test_a_run_leaves_what_it_promises(name, tmp_path, capsys):
    main(name, tmp_path)
    printed = capsys.readouterr().out
    names = {path.name for path in tmp_path.iterdir()}
    assert {"samples.png", "curve.png", "metrics.json", "model.pt"} <= names
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for key, value in metrics["results"].items():
        assert value is None or f"{key}: {value:.4g}" in printed
    with torch.inference_mode():
        assert importlib.import_module(name).load(tmp_path / "model.pt")


@every
@pytest.mark.slow
def test_interrupted_and_resumed_equals_never_interrupted(name, tmp_path, monkeypatch):
    main(name, tmp_path / "whole", "--steps 4 --save-every 2")
    with monkeypatch.context() as patch:
        stop_at(importlib.import_module(name), 3, patch)
        with pytest.raises(KeyboardInterrupt):
            main(name, tmp_path / "broken", "--steps 4 --save-every 2")
    main(name, tmp_path / "broken", "--resume")
    whole, broken = (checkpoint(tmp_path / part) for part in ("whole", "broken"))
    assert equal(whole | {"seconds": 0}, broken | {"seconds": 0})


@every
@pytest.mark.slow
def test_a_loss_that_is_no_number_is_never_saved(name, tmp_path):
    with pytest.raises(FloatingPointError, match="--lr"):
        main(name, tmp_path, "--lr nan")
    assert checkpoint(tmp_path)["step"] == 0 and not checkpoint(tmp_path)["curve"]
