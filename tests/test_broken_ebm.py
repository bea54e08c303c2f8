"""The things to break of ebm.py, broken: chains that never age, energies that drift, too much tremble."""
from broken import thing, trained

FLAGS = "--steps 80 --batch-size 16 --channels 8 --lr 2e-3 --replay 64 --sample-steps 5"


def balance(run):
    """Mean E(x, y) of validation digits and of the chains in the buffer, at the end."""
    return run["balance"][-1]


def test_1_chains_that_never_age_are_told_from_digits_at_sight():
    new = "replay.keep(j, torch.rand_like(chain))"
    assert new in thing("ebm", 1)
    _, _, _, broken = trained("ebm", ("replay.keep(j, chain)", new), flags=FLAGS)
    _, _, _, whole = trained("ebm", flags=FLAGS)
    assert min(loss for _, loss, _ in broken["curve"]) < 0 < 0.8 < min(loss for _, loss, _ in whole["curve"])


def test_2_energies_without_size_drift_away_from_0():
    assert "--size 0:" in thing("ebm", 2)
    _, _, _, broken = trained("ebm", flags=FLAGS + " --size 0")
    _, _, _, whole = trained("ebm", flags=FLAGS)
    assert min(abs(e) for e in balance(broken)) > 3.5 > 2 > max(abs(e) for e in balance(whole))


def test_3_too_much_tremble_leaves_grain_and_parts_the_energies():
    new = "noise=0.1"
    assert new in thing("ebm", 3)
    _, _, _, broken = trained("ebm", ("rate=1.0, noise=0.005, limit", f"rate=1.0, {new}, limit"), flags=FLAGS)
    _, _, _, whole = trained("ebm", flags=FLAGS)
    chains = [run["state"]["replay"]["chains"] / 255 for run in (broken, whole)]
    grain = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in chains]  # from each pixel to the next
    assert grain[0] > 1.5 * grain[1]
    gap = [abs(real - chain) for real, chain in map(balance, (broken, whole))]
    assert gap[0] > 1.5 > 0.9 > gap[1]
