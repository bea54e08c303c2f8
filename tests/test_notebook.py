"""A chapter opened as a notebook: it runs from first cell to last and draws its pictures."""

import re
import shutil

import pytest
from chapters import ROOT, data_folder

pytestmark = pytest.mark.slow
QUICK = {"steps": 3, "batch-size": 8, "channels": 8, "timesteps": 12, "sampling-steps": 2}


def test_ddpm_runs_as_a_notebook(tmp_path, monkeypatch):
    import jupytext
    from nbconvert.preprocessors import ExecutePreprocessor

    monkeypatch.setenv("DATA_DIR", str(data_folder(tmp_path / "data")))  # a kernel inherits it
    shutil.copy(ROOT / "data.py", tmp_path)
    text = (ROOT / "ddpm.py").read_text(encoding="utf-8")
    for name, value in QUICK.items():  # main() ignores the kernel's flags and takes the defaults
        text, n = re.subn(rf'("--{name}", type=\w+, default=)[\d_]+', rf"\g<1>{value}", text)
        assert n == 1
    notebook = jupytext.reads(text, fmt="py:percent")
    assert len(notebook.cells) >= 8
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    ExecutePreprocessor(timeout=240, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tmp_path)}}
    )  # an error in a cell is raised here
    left = {path.name for path in (tmp_path / "out" / "ddpm").iterdir()}
    assert {"samples.png", "denoising.gif", "metrics.json"} <= left
