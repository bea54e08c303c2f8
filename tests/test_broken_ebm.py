"""The things to break of ebm.py, broken: chains that stay young, energies that drift, too much noise."""
import torch
from broken import thing, trained

FLAGS = "--steps 80 --batch-size 16 --channels 8 --lr 2e-3 --buffer 64 --sample-steps 5"


def energies(run):
    """Mean E(x, y) of validation digits and of the chains in the buffer, at the end."""
    return run["curve"][-1]["energies"]


def test_1_chains_that_never_grow_older_are_told_apart_from_digits_at_sight():
    new = "buffer.x[j] = torch.randint_like(buffer.x[j], 256)"
    assert new in thing("ebm", 1)
    _, _, _, broken = trained("ebm", ("buffer.x[j] = (255 * chain).round().byte()", new), flags=FLAGS)
    _, _, _, whole = trained("ebm", flags=FLAGS)
    loss = [min(p["training"] for p in run["curve"]) for run in (broken, whole)]
    assert loss[0] < 0 < loss[1]
    gap = [e[1] - e[0] for e in map(energies, (broken, whole))]
    assert gap[0] > 5 and abs(gap[1]) < 2.5


def test_2_without_the_penalty_energies_drift_away_from_0():
    assert "Set --energy-penalty 0: the energies drift away from 0" in thing("ebm", 2)
    _, _, _, broken = trained("ebm", flags=FLAGS + " --energy-penalty 0")
    _, _, _, whole = trained("ebm", flags=FLAGS)
    assert min(abs(e) for e in energies(broken)) > 4 > 2.5 > max(abs(e) for e in energies(whole))


def test_3_with_too_much_noise_samples_drown_in_grain():
    new = "noise=0.1"
    assert f"In `langevin`, set {new}" in thing("ebm", 3)
    grain = []
    for edits in ([("noise=0.005, known", new + ", known")], []):
        _, model, _, _ = trained("ebm", *edits, flags=FLAGS)
        torch.manual_seed(0)
        model.sample_steps = 100
        x = model.sample(20, torch.arange(20) % 10)
        grain.append((x[..., 1:] - x[..., :-1]).abs().mean().item())  # from each pixel to the next
    assert grain[0] > 1.5 * grain[1]
