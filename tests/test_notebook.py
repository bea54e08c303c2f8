"""A chapter opened as a notebook: it runs from the first cell to the last and draws its pictures."""
import re
import shutil

import pytest
from harness import ROOT, small

pytestmark = pytest.mark.slow


def test_ddpm_runs_as_a_notebook(tmp_path, monkeypatch):
    import jupytext
    from nbconvert.preprocessors import ExecutePreprocessor

    for name, value in small().items():  # DATA_DIR: a kernel inherits it
        monkeypatch.setenv(name, value)
    shutil.copy(ROOT / "data.py", tmp_path)
    text = (ROOT / "ddpm.py").read_text(encoding="utf-8")
    for name, value in {"steps": 3, "batch_size": 8, "channels": 8, "timesteps": 12, "sampling_steps": 2}.items():
        text, n = re.subn(rf'("{name}": )\(\d+,', rf"\g<1>({value},", text)  # main() takes the defaults in a kernel
        assert n == 1
    notebook = jupytext.reads(text, fmt="py:percent")
    assert len(notebook.cells) >= 8
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    ExecutePreprocessor(timeout=240, kernel_name="python3").preprocess(
        notebook, {"metadata": {"path": str(tmp_path)}})  # an error in a cell is raised here
    assert {"samples.png", "denoising.gif", "metrics.json"} <= {f.name for f in (tmp_path / "out" / "ddpm").iterdir()}
