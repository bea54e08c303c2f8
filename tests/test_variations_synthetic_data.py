"""synthetic_data: what classifiers are fed, how samples are kept, and the sums of the opening."""

import json

import pytest
import torch
import torch.nn.functional as F
from chapters import checkpoint, data_folder, digits, main, short_run, touch

from variations import synthetic_data as page


def arguments(tmp_path, more=""):
    flags = f"--out {tmp_path / 'out'} --runs {tmp_path} --device cpu {more}"
    return page.parse_flags(flags.split())


def numbered(first, count):
    """Images with one pixel of ink, their number; their classes are these numbers, too."""
    x = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    x[:, 0, 14, 14] = torch.arange(first, first + count)
    return x, torch.arange(first, first + count)


def test_training_on_samples_ends_in_bayes_rule_of_the_model_and_unseen_images_teach_nothing():
    p_x_given_y = torch.tensor([[0.9, 0.1, 0, 0], [0, 0.3, 0.7, 0]])  # the table of the opening
    joint = 0.5 * p_x_given_y
    logits = torch.zeros(4, 2, requires_grad=True)  # of q(y | x), one row an image
    for _ in range(4000):
        rows = F.cross_entropy(
            logits.repeat_interleave(2, 0), torch.arange(2).repeat(4), reduction="none"
        )
        loss = (rows.view(4, 2) * joint.T).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    q = logits.softmax(1)[:, 1].tolist()
    assert q == pytest.approx([0, 0.75, 1, 0.5], abs=2e-3)
    assert loss.item() == pytest.approx(0.2 * 0.5623, abs=2e-3)
    assert gradient[3].abs().sum() == 0


def test_of_two_parts_each_is_half_of_a_batch_with_its_own_labels():
    real, samples = numbered(0, 3), numbered(100, 50)
    images, labels = page.draw_batch([(*real, 0), (*samples, 0)], 64)
    assert images.shape == (64, 1, 28, 28) and images.max() <= 1
    assert (labels[:32] < 3).all() and (labels[32:] >= 100).all()
    assert (255 * images[:, 0, 14, 14]).round().tolist() == labels.tolist()


def test_moved_digits_keep_their_ink_and_move_by_two_pixels_at_most():
    x, y = numbered(1, 5)
    seen = set()
    for seed in range(150):
        torch.manual_seed(seed)
        images, labels = page.draw_batch([(x, y, 2)], 4)
        torch.testing.assert_close(255 * images.flatten(1).sum(1), labels.float())
        seen |= {tuple(place) for place in images[:, 0].nonzero()[:, 1:].tolist()}
    assert seen == {(row, column) for row in range(12, 17) for column in range(12, 17)}


def test_the_arms_of_a_repeat_share_their_few_digits_and_another_repeat_has_others(tmp_path):
    args = arguments(tmp_path, "--digits 20 --samples 40 --vae-steps 1")
    x, y = torch.randint(256, (500, 1, 28, 28), dtype=torch.uint8), torch.arange(500) % 10
    labels = torch.arange(40) % 10
    drawn = torch.zeros(40, 1, 28, 28, dtype=torch.uint8)
    arms = page.arms_of(0, args, x, y, {"gan": drawn}, labels)
    few = arms["few: 0"][0][0]
    assert len(few) == 20 and arms["many: 0"][0][0].shape == (40, 1, 28, 28)
    assert torch.equal(arms["many: 0"][0][0][:20], few) and arms["all: 0"][0][0] is x
    for name in ("few, moved: 0", "few + gan: 0", "few + own vae: 0"):
        assert torch.equal(arms[name][0][0], few)
    assert [parts[-1][2] for parts in arms.values()] == [0, 2, 0, 0, 0, 0, 0, 0]
    assert torch.equal(arms["few + gan: 0"][1][0], drawn)
    other = page.arms_of(1, args, x, y, {}, labels)["few: 1"][0][0]
    assert not torch.equal(other, few)


def test_the_own_vae_draws_what_it_was_given(tmp_path):
    x = torch.zeros(20, 1, 28, 28, dtype=torch.uint8)
    x[:, :, :14] = 255  # ink above, paper below
    y = torch.zeros(20, dtype=torch.long)
    torch.manual_seed(0)
    args = arguments(tmp_path, "--vae-steps 120 --classes 1")
    images = page.own_samples(x, y, y[:3], args)
    assert images.dtype == torch.uint8
    assert images[:, :, :14].float().mean() > 200 and images[:, :, 14:].float().mean() < 50


def test_classifiers_learn_and_labels_of_samples_are_balanced(monkeypatch):
    counts = []

    def spy(repeat, args, x, y, samples, labels):
        counts.append(labels.bincount().tolist())
        return arms_of(repeat, args, x, y, samples, labels)

    arms_of = page.arms_of
    monkeypatch.setattr(page, "arms_of", spy)
    flags = "--models --steps 40 --digits 20 --samples 200 --repeats 1 --vae-steps 9 --lr 5e-3"
    model, _ = short_run(page, flags)
    _, _, x, y = digits()
    errors = {name: (net(x / 255).argmax(1) != y).float().mean() for name, net in model.items()}
    assert counts == [[20] * 10]
    assert errors["all: 0"] < 0.1 and errors["few, moved: 0"] < 0.5


def test_samples_are_drawn_once_a_run_and_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(data_folder(tmp_path / "data")))
    monkeypatch.setattr(page.Run, "picture", touch)
    main("vae", tmp_path / "vae")
    flags = "--stand-in never --models vae gan --steps 2 --vae-steps 2 --digits 20 --samples 20 "
    flags += f"--repeats 2 --device cpu --runs {tmp_path} --out {tmp_path / 'out'}"
    flags = flags.split()
    page.main(flags)
    printed = capsys.readouterr().out
    assert "no gan of these data: run `python gan.py`" in printed and "drawing" in printed
    results = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert "test error, few + vae: 1" in results and "test error, few + gan: 0" not in results
    page.main([*flags, "--resume"])
    assert "drawing" not in capsys.readouterr().out
    args, y = page.parse_flags(flags), torch.arange(20) % 10
    source = checkpoint(tmp_path / "vae")["source"]
    again = page.chapter_samples("vae", args, y, source)
    kept = torch.load(tmp_path / "out" / "samples.pt", weights_only=True)
    assert torch.equal(again, *kept.values()) and again.dtype == torch.uint8
    saved = checkpoint(tmp_path / "vae")
    saved["model"]["decoder.last.bias"] += 9  # another run, which draws darker
    torch.save(saved, tmp_path / "vae" / "model.pt")
    assert (page.chapter_samples("vae", args, y, source) > again).all()
    with pytest.raises(OSError, match="other data"):
        page.chapter_samples("vae", args, y, "other digits")
