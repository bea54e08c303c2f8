"""The measures of the benchmarks against closed forms, and the tables against the results."""

import importlib
import json
import re
import sys

import pytest
import torch
from chapters import ROOT, TINY, short_run
from scipy import stats

sys.path.insert(0, str(ROOT / "benchmarks"))
import cells  # noqa: E402
import importance  # noqa: E402
import judge  # noqa: E402
import likelihood  # noqa: E402
import measure  # noqa: E402
import runs  # noqa: E402
import tables  # noqa: E402
import train  # noqa: E402


def normal(n, seed, features=2):
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed))


def cloud(mean, deviation, seed):
    """500 points (500, F) whose mean and covariance are exactly these."""
    x = normal(500, seed, len(mean)).double()
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return white * torch.tensor(deviation) + torch.tensor(mean)


class Plain:
    """A judge whose features are the pixels."""

    def features(self, x):
        return x.flatten(1)


def scores(fake, real):
    """The values that points fake (N, F) have beside real ones (M, F)."""
    against = judge.Against(Plain(), real)
    return {name: value for name, (value, _) in against.scores(fake).items()}


def test_frechet_of_gaussians_is_the_closed_form():
    a = cloud([0.0, 1, 2], [1.0, 2, 3], seed=0)
    b = cloud([1.0, 1, 0], [2.0, 2, 0.5], seed=1)
    assert judge.frechet(a, b) == pytest.approx(1 + 0 + 4 + 1 + 0 + 6.25, abs=1e-9)
    assert judge.frechet(a, a) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    assert judge.frechet(a @ turn, b @ turn) == pytest.approx(12.25, abs=1e-9)


def test_precision_and_recall_of_sets_that_are_known():
    real = torch.rand(300, 2)
    same, far = scores(real, real), scores(real + 9, real)
    assert same["precision"] == same["recall"] == 1
    assert far["precision"] == far["recall"] == 0
    few = scores(real[:10].repeat(30, 1) + 1e-4 * torch.randn(300, 2), real)
    assert few["precision"] > 0.9  # ten points again and again are good
    assert few["recall"] < 0.2  # and most are missing


def test_precision_and_recall_want_real_digits_from_the_whole_test_set():
    real = torch.rand(600, 2)
    real[300:] += 9  # the second half lies elsewhere
    strided = scores(real[::2], real)
    assert strided["precision"] == strided["recall"] == 1
    assert scores(real[:300], real)["recall"] < 0.6


def test_the_jackknife_has_the_spread_of_new_draws():
    draws = [normal(1000, seed) + 1 for seed in range(40)]
    real = normal(1000, 100)
    of_fake = [judge.frechet(x, real) for x in draws]
    of_real = [judge.frechet(draws[0], x - 1) for x in draws[1:]]
    spread = (stats.tvar(of_fake) + stats.tvar(of_real)) ** 0.5
    _, half = judge.Against(Plain(), real).scores(draws[0])["Frechet distance"]
    assert 0.4 < half / (1.96 * spread) < 2.5


@pytest.mark.parametrize("right", [0, 3, 50, 99, 100])
def test_the_interval_of_a_share_is_wilsons(right):
    share, half = judge.share(torch.arange(100) < right)
    low, high = stats.binomtest(right, 100).proportion_ci(method="wilson")
    assert share == right / 100
    assert half == pytest.approx(max(share - low, high - share), abs=1e-3)


def test_each_way_to_draw_is_another_and_gives_images():
    for name in ("ddpm", "realnvp", "pixelcnn"):
        model, _ = short_run(importlib.import_module(name), TINY[name])
        drawn = []
        for row in measure.rows_of(name):
            torch.manual_seed(0)
            drawn.append(measure.draw(row, model, torch.tensor([3, 1])).detach())
            assert drawn[-1].shape == (2, 1, 28, 28)
            assert drawn[-1].min() >= 0 and drawn[-1].max() <= 1
        assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


class TwoDraws:
    """A model whose draws of p / q are 1 and 3 for one image, 5 and 5 for another."""

    def __init__(self):
        self.draws = [torch.tensor([1.0, 5.0]), torch.tensor([3.0, 5.0])]

    def log_prob(self, x, y):
        return self.draws.pop().log()


def test_a_bound_of_several_draws_is_the_log_of_their_mean():
    bound = importance.tighter(TwoDraws(), None, None, draws=2)
    torch.testing.assert_close(bound, torch.tensor([2.0, 5.0]).log())


def test_lines_of_code_leave_out_what_is_none():
    text = '"""One.\n\nTwo.\n"""\nimport os  # three\n\n# four\ndef f(x):\n    """Five."""\n'
    text += '    return (x +\n            """six\n            """)\n'
    assert measure.lines_of_code(text) == 5  # import, def, and three of the return


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results of a project that has nothing but what a test writes."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    return tmp_path


def test_what_the_mixture_gains_on_few_digits_is_carried_over_to_all(results):
    few = {"NLL, nats": 80.0, "NLL, every 10th image, nats": 78.0}
    few["NLL, marginal over classes, every 10th image, nats"] = 81.0
    runs.write("pixelcnn", {"results": few})
    runs.write("pixelcnn-unconditional", {"results": {"NLL, nats": 84.0}})
    assert likelihood.marginal("pixelcnn") == 83
    assert likelihood.unconditional("pixelcnn") == 84
    assert likelihood.marginal("gan") is None and likelihood.unconditional("made") is None


def test_the_model_of_the_results_is_known_by_its_training_losses(results):
    runs.write("vae", {"seconds": 1.0, "curve": [{"step": 1, "training": 0.5}]})
    folder = results / "out" / "vae"
    folder.mkdir(parents=True)
    assert not runs.here("vae")
    for loss, same in ((0.5, True), (0.5000001, False)):  # trained again, in other seconds
        metrics = {"seconds": 2.0, "curve": [{"step": 1, "training": loss}]}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        assert runs.here("vae") == same


def test_the_table_of_seeds_has_mean_and_standard_deviation(results):
    rows = {}
    for run, nats, accuracy in (("vae", 1.0, 0.5), ("vae-1", 2.0, 0.6), ("vae-2", 3.0, 0.7)):
        runs.write(run, {"results": {"-ELBO, nats": nats}})
        looks = {"Frechet distance": [nats, 1], "precision": [0.5, 0], "recall": [0.5, 0]}
        rows[run] = {"binary": {"class accuracy": [accuracy, 0.1]} | looks}
    runs.write("compare", {"rows": rows})
    row = cells.seeds("vae")
    assert row["class-conditional"] == "≤ 2.00 ± 1.00"
    assert row["class accuracy"] == "60.0 ± 10.0 %"
    assert row["recall"] == "0.500 ± 0.000"


def test_a_run_is_missing_until_trained_and_after_its_code_has_changed(results):
    script = "import json, pathlib\nprint('step 1')\npath = pathlib.Path('out/made/metrics.json')\n"
    script += "path.write_text(json.dumps({'where': 'cpu, 2 threads', 'seconds': 1.5}))\n"
    (results / "made.py").write_text(script)
    assert train.missing("made")
    assert train.train("made") and not train.missing("made")
    trained = runs.read("made")
    assert trained["seconds"] == 1.5 and trained["run"]["threads"] == 2
    assert 0 < trained["run"]["seconds"] < 60
    assert (results / "made.log").read_text() == "step 1\n"
    (results / "made.py").write_text(f'"""Told."""\n\n# anew\n{script}')
    assert not train.missing("made")
    (results / "made.py").write_text("raise SystemExit(2)\n")
    assert train.missing("made") and not train.train("made")
    assert runs.read("made") == trained  # what there was stays


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_numbers_of_the_tables_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text
    wrong = re.sub(r"^\|.*", lambda line: line[0].replace(" ±", "0 ±"), text, flags=re.M)
    assert tables.filled(wrong) == text
