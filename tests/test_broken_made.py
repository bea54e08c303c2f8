"""The things to break of made.py, broken: each edit is made on a copy, each promised symptom is measured."""
import torch
from broken import thing, trained

FLAGS = "--steps 300 --batch-size 64 --hidden 64 --lr 0.06"
LATE = "sum(values) / len(values), validate()", "sum(values[-50:]) / len(values[-50:]), validate()"  # of the last 50


def test_1_a_pixel_that_sees_itself_leaves_no_loss_and_samples_are_rubbish():
    edit = "degrees[0][:, None] > degrees[0])", "degrees[0][:, None] >= degrees[0])"
    assert "make the direct mask >= for >" in thing("made", 1)
    (_, whole, _, usual), (_, broken, _, run) = trained("made", LATE, flags=FLAGS), trained(
        "made", LATE, edit, flags=FLAGS)
    assert run["curve"][-1][1] < 30 and usual["curve"][-1][1] > 60
    read, y = [], torch.arange(100) % 10
    for model in (whole, broken):
        torch.manual_seed(0)
        x = model.sample(100, y)
        read.append((torch.stack([whole.log_prob(x, d) for d in range(10)]).argmax(0) == y).float().mean())
    assert read[0] > 0.8 and read[1] < 0.5  # the share of samples that the whole chapter reads as the class asked for


def test_2_thresholded_digits_train_far_below_validation():
    edit = "log_prob(binarise(x[i])", "log_prob((x[i] > 127).float()"
    assert "put (x[i] > 127).float() for binarise(x[i])" in thing("made", 2)
    (_, usual, usual_valid), (_, loss, valid) = (
        trained("made", LATE, *edits, flags=FLAGS)[3]["curve"][-1] for edits in ([], [edit]))
    assert usual > usual_valid - 4 and loss < valid - 8


def test_3_a_class_that_is_never_told_is_ignored_and_not_read():
    edit = "< 0.5, 10, y[i])", "< 1.1, 10, y[i])"
    assert "hide every class (0.5 to 1.1)" in thing("made", 3)
    read, same = [], []
    for edits in ([], [edit]):
        _, model, results, _ = trained("made", LATE, *edits, flags=FLAGS)
        read.append(results["test digits read by Bayes' rule"])
        samples = []
        for y in (1, 8):
            torch.manual_seed(0)
            samples.append(model.sample(20, y))
        same.append(torch.equal(*samples))
    assert read[0] > 0.5 and read[1] < 0.2
    assert same == [False, True]
