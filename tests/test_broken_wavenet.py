"""The things to break of wavenet.py, broken: an edit on a copy each, each promised symptom is measured."""
import functools
import tempfile
import wave
from pathlib import Path

import numpy as np
import torch
from broken import chapter, thing, trained


@functools.cache
def flags():
    """Of a short run on a buzz: 12 samples up, 12 down, from a random start, each of them loud or soft."""
    folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
    for i in range(200):
        up = (np.arange(400) + rng.integers(24)) % 24 < 12
        x = (rng.choice([3000, 30000], 400) * np.where(up, 1, -1)).astype("<i2")
        with wave.open(str(folder / f"{i}.wav"), "wb") as f:
            f.setparams((1, 2, 8000, 0, "NONE", ""))
            f.writeframes(x.tobytes())
    return (f"--audio {folder.as_posix()} --steps 300 --batch-size 4 --channels 16 --layers 5 "
            "--duration 0.05 --lr 0.01")


def pitch(model):
    """How many of the samples of its sounds are on the side where those of 24 samples ago were."""
    torch.manual_seed(0)
    up = model.sample(20, 10, None, 400) > 0
    return (up[:, 24:] == up[:, :-24]).float().mean().item()


def test_1_a_sample_that_sees_itself_leaves_no_loss_and_silence():
    old, new = "self.embed(F.pad(x[:, :-1], (1, 0), value=256))", "self.embed(x)"
    assert f"put {new} for {old}" in thing("wavenet", 1)
    edit = f"self.input({old})", f"self.input({new})"
    bits, repeats = [], []
    for edits in ([], [edit]):
        _, model, _, run = trained("wavenet", *edits, flags=flags())
        bits.append(run["curve"][-1]["validation"])
        torch.manual_seed(0)
        x = model.sample(20, 10, None, 400)
        repeats.append((x[:, 1:] == x[:, :-1]).float().mean())
    assert bits[1] < 0.2 and bits[0] > 0.9  # loud or soft is 1 bit
    assert repeats[1] > 0.98 and repeats[0] < 0.7


def test_2_dilations_of_one_shrink_the_receptive_field_and_raise_the_loss():
    edit = "Layer(C, 2**i)", "Layer(C, 1)"
    assert f"put {edit[1]}: the receptive field shrinks to 12 samples" in thing("wavenet", 2)
    whole, model, _, run = trained("wavenet", flags=flags())
    module, broken, _, worse = trained("wavenet", edit, flags=flags())
    assert [1 + sum(layer.dilation for layer in m.WaveNet().layers) for m in (whole, module)] == [2048, 12]
    assert worse["curve"][-1]["validation"] > run["curve"][-1]["validation"] + 0.1
    assert pitch(model) > 0.9 and pitch(broken) < 0.75


def test_3_empty_queues_let_the_sound_fall_apart_at_the_same_loss(tmp_path):
    edit = "queue[:, t % layer.dilation] = h[:, 0]\n", "\n"
    assert f"In `sample`, drop the line {edit[0].strip()}" in thing("wavenet", 3)
    _, model, _, run = trained("wavenet", flags=flags())
    torch.save(run, tmp_path / "model.pt")
    broken = chapter("wavenet", edit).load(tmp_path / "model.pt")
    x = torch.randint(256, (2, 100))
    assert torch.equal(broken.log_prob(x), model.log_prob(x))
    assert pitch(model) > 0.9 and 1 - pitch(broken) > 4 * (1 - pitch(model))
