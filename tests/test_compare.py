"""The measures of the comparison against closed forms, and its table against its own numbers."""
import json
import sys

import chapters
import pytest
import torch
from chapters import ROOT
from scipy import stats

sys.path.insert(0, str(ROOT / "benchmarks"))
import compare  # noqa: E402
import judge  # noqa: E402


def cloud(n, mean, deviation, seed=0):
    """n points whose mean and covariance are exactly these: (n, F) for `mean`, `deviation` (F,)."""
    x = torch.randn(n, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T * torch.tensor(deviation) + torch.tensor(mean)


class Plain(torch.nn.Module):
    """A judge whose features are the pixels."""

    def features(self, x):
        return x.flatten(1)


def test_frechet_of_gaussians_is_the_closed_form():
    a, b = cloud(500, [0.0, 1, 2], [1.0, 2, 3], 0), cloud(400, [1.0, 1, 0], [2.0, 2, 0.5], 1)
    assert judge.frechet(a, b) == pytest.approx(1 + 0 + 4 + 1 + 0 + 6.25, abs=1e-9)
    assert judge.frechet(a, a) == pytest.approx(0, abs=1e-9)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]  # a rotation of both changes nothing
    assert judge.frechet(a @ turn, b @ turn) == pytest.approx(12.25, abs=1e-9)


def covered(points, centres, k=3):
    """The share of points in a ball around a centre, each ball as wide as to its centre's k-th neighbour."""
    points, centres = points.flatten(1), centres.flatten(1)
    radius = torch.cdist(centres, centres).kthvalue(k + 1, dim=1).values  # the nearest is the centre itself
    return (torch.cdist(points, centres) <= radius).any(1).double().mean().item()


def test_precision_and_recall_of_sets_that_are_known():
    real = torch.rand(300, 1, 2, 1)
    far, few = real + 9, real[:10].repeat(30, 1, 1, 1) + 1e-4 * torch.randn(300, 1, 2, 1)
    against = compare.Against(Plain(), real)
    for fake, precision, recall in ((real, 1, 1), (far, 0, 0)):
        scores = against.scores(fake)
        assert scores["precision"][0] == precision and scores["recall"][0] == recall
    precision, recall = covered(few, real), covered(real, few)
    assert precision > 0.9 and recall < 0.2  # ten digits again and again: each is good, most are missing
    scores = against.scores(few)
    assert scores["precision"][0] == pytest.approx(precision) and scores["recall"][0] == pytest.approx(recall)
    assert scores["Frechet distance"][0] == pytest.approx(judge.frechet(few.flatten(1), real.flatten(1)))
    assert scores["Frechet distance"][1] > 0


def test_precision_and_recall_want_real_digits_from_the_whole_test_set():
    real = torch.rand(600, 1, 2, 1) + 9 * (torch.arange(600) >= 300).view(-1, 1, 1, 1)  # its second half is elsewhere
    scores = compare.Against(Plain(), real).scores(real[::2])
    assert scores["precision"][0] == scores["recall"][0] == 1
    prefix = compare.Against(Plain(), real).scores(real[:300])
    assert prefix["precision"][0] > 0.9 and prefix["recall"][0] < 0.6


def test_the_table_of_seeds_has_mean_and_standard_deviation():
    def row(nats, accuracy):
        scores = {"class accuracy": [accuracy, 0.1], "Frechet distance": [nats, 1], "precision": [0.5, 0],
                  "recall": [0.5, 0]}
        return {"likelihood": {"kind": "bound", "NLL, conditional": nats},
                "binary": scores, "grey": scores}

    known = {"rows": {"vae": row(1.0, 0.5), "vae-1": row(2.0, 0.6), "vae-2": row(3.0, 0.7), "made": row(1.0, 0.5)}}
    lines = {line.split("]")[0]: line for line in compare.seeds_table(known)}
    assert lines["| [vae.py"] == ("| [vae.py](vae.py) | ≤ 2.00 ± 1.00 | 60.0 ± 10.0 % | 2.0 ± 1.0 | 0.500 ± 0.000 "
                                  "| 0.500 ± 0.000 |")
    assert "not yet measured" in lines["| [made.py"]


def test_a_run_of_another_seed_has_its_chapter_and_command():
    assert compare.chapter("gan-2") == "gan" and compare.command("gan-2") == "gan.py --seed 2 --out out/gan-2"
    assert compare.command("gan") == "gan.py"
    assert compare.command("vae-unconditional") == "vae.py --classes 1 --out out/vae-unconditional"


def test_the_jackknife_has_the_spread_of_new_draws():
    draws = [torch.randn(1000, 1, 2, 1, generator=torch.Generator().manual_seed(k)) + 1 for k in range(40)]
    base = torch.randn(1000, 1, 2, 1, generator=torch.Generator().manual_seed(100))
    found = [judge.frechet(x.flatten(1), base.flatten(1)) for x in draws]
    real = [judge.frechet(draws[0].flatten(1), x.flatten(1) - 1) for x in draws[1:]]
    spread = (stats.tvar(found) + stats.tvar(real)) ** 0.5  # of both samples together
    half = compare.Against(Plain(), base).scores(draws[0])["Frechet distance"][1]
    assert 0.4 < half / (1.96 * spread) < 2.5


@pytest.mark.parametrize("right", [0, 3, 50, 99, 100])
def test_the_interval_of_a_share_is_wilsons(right):
    share, half = compare.share(torch.arange(100) < right)
    low, high = stats.binomtest(right, 100).proportion_ci(method="wilson")
    assert share == right / 100 and half == pytest.approx(max(share - low, high - share), abs=1e-3)


def test_what_the_mixture_gains_on_few_digits_is_carried_over_to_all():
    results = {"NLL, nats": 80.0, "NLL, standard error": 0.5, "NLL, every 10th image, nats": 78.0,
               "NLL, marginal over classes, every 10th image, nats": 81.0}
    row = compare.likelihood("pixelcnn", {"results": results})
    assert row["NLL, marginal"] == 83 and row["summed over"] == 1000 and row["unit"] == "nats"
    few = {"-ELBO, nats": 90.0, "-ELBO, every 50th image": 88.0, "-ELBO, standard error": 0.5,
           "marginal over classes, 100 samples, every 50th image": 87.0}
    row = compare.likelihood("vae", {"results": few})
    assert row["NLL, marginal"] == 89 and row["summed over"] == 200 and row["95 %"] == 0.98
    exact = {"NLL, nats": 76.0, "NLL, marginal over classes, nats": 79.5, "NLL, standard error": 0.5}
    row = compare.likelihood("made", {"results": exact})
    assert row["NLL, marginal"] == 79.5 and row["summed over"] == 10000 and row["95 %"] == 0.98


def test_a_model_without_classes_has_a_run_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    row = compare.likelihood("ddpm", {"results": {"bound, bits/dim": 1.5}})
    assert row["NLL, conditional"] == 1.5 and compare.unconditional("ddpm") is None
    (tmp_path / "ddpm-unconditional-cpu.json").write_text(json.dumps({"results": {"bound, bits/dim": 1.6}}))
    assert compare.unconditional("ddpm") == 1.6 and compare.unconditional("gan") is None


@pytest.mark.parametrize("name", chapters.IMAGES)
def test_a_run_of_a_chapter_is_read_and_draws(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(chapters.data_folder(tmp_path / "data")))
    chapters.main(name, tmp_path / "out")
    metrics = judge.metrics_of(tmp_path / "out" / "metrics.json")
    assert metrics["seconds"] > 0 and "cpu, " in metrics["where"]
    row = compare.likelihood(name, metrics)
    assert (row["NLL, conditional"] is None) == (name in ("gan", "ebm"))
    y = torch.tensor([3, 1])
    for how in {"ddpm": [{}, {"w": 1}, {"plain": True}], "realnvp": [{}, {"temperature": 0.7}]}.get(name, [{}]):
        _, draw = judge.sampler(name, tmp_path / "out" / "model.pt", **how)
        images = draw(y)
        assert images.shape == (2, 1, 28, 28) and images.min() >= 0 and images.max() <= 1


def test_lines_of_code_leave_out_what_is_none(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""One.\n\nTwo.\n"""\nimport os  # three\n\n# four\ndef f(x):\n    """Five."""\n'
                    '    return (x +\n            """six\n            """)\n')
    assert compare.lines_of_code(path) == 5  # import, def, and three of the return


def test_an_unknown_chapter_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.main(["glow"])
    assert stop.value.code == 2 and "glow" in capsys.readouterr().err


def test_a_missing_run_is_made_and_leaves_its_log_time_and_memory(tmp_path, monkeypatch, capfd):
    (tmp_path / "made.py").write_text("import sys\nprint('step 1', sys.argv[1:])\n")
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    compare.run_chapter("made")
    made = json.loads((tmp_path / "out" / "made" / "run.json").read_text())
    assert (tmp_path / "out" / "made" / "log.txt").read_text() == "step 1 []\n"
    assert made["command"] == "python made.py" and 0 < made["seconds"] < 60
    assert made["peak memory, MB"] is None or 1 < made["peak memory, MB"] < 100  # its own: these tests hold far more
    (tmp_path / "made.py").write_text("raise SystemExit(2)\n")
    with pytest.raises(SystemExit, match="1"):
        compare.run_chapter("made")
    assert "python made.py failed: see out/made/log.txt" in capfd.readouterr().err
