"""The FunnyBirds protocol against a second one written image by image, its ends of the scale, and a small run."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from scipy import stats
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
import assets
import funnybirds
from birds import data, measure, models, protocol, training
from birds.protocol import Answers, Importances
from judge.methods import METHODS, NotApplicable

KINDS = range(5)


class MadeUp(data.Birds):
    """Classes and labels without pictures."""

    def __init__(self, images=60, classes=50, seed=1):
        rng = np.random.default_rng(seed)
        every = np.array(list(itertools.product(range(3), repeat=5)))
        self.variants = rng.choice(every, classes, replace=False)
        self.labels = rng.integers(0, classes, images)
        self.backgrounds = rng.integers(1, data.BACKGROUNDS + 1, images)

    def __len__(self):
        return len(self.labels)


@pytest.fixture(scope="module")
def made_up():
    """Birds, answers that lean on the parts, and importances that are partly right."""
    birds, rng = MadeUp(), np.random.default_rng(1)
    n, classes = len(birds), len(birds.variants)
    same = birds.shared(birds.labels[:, None], np.arange(classes))  # [N, classes, 5]
    left = 1 - (np.arange(32)[:, None] >> np.arange(5) & 1)
    weight = rng.uniform(0, 2, (n, 1, 5))
    subsets = np.einsum("nck,mk->nmc", same * weight, left) + rng.normal(0, 0.4, (n, 32, classes))
    backgrounds = subsets[:, :1] + rng.normal(0, 0.3, (n, data.BACKGROUNDS, classes))
    backgrounds[np.arange(data.BACKGROUNDS) >= birds.backgrounds[:, None]] = np.nan
    answers = Answers(subsets.astype(np.float32), backgrounds.astype(np.float32))
    true = protocol.oracle(birds, answers)
    noisy = Importances(
        true.parts + rng.normal(0, 1, true.parts.shape),
        (true.backgrounds + rng.normal(0, 0.2, true.backgrounds.shape)) * (true.backgrounds != 0),
        true.total + rng.normal(0, 1, true.total.shape),
    )
    return birds, answers, noisy


@pytest.fixture
def real(shared):
    shared("assets", "funnybirds", "test.npz")
    shared("assets", "models", "funnybirds_resnet18_slim_fp16.pth")
    return data.Birds(5)


# A second implementation: sets of part numbers, one image and one threshold at a time ---------------------------------


def sufficient_sets(birds, c):
    others = [v for i, v in enumerate(birds.variants) if i != c]
    subsets = [set(s) for size in range(1, 6) for s in itertools.combinations(KINDS, size)]
    alone = [s for s in subsets if not any(all(v[k] == birds.variants[c][k] for k in s) for v in others)]
    return [s for s in alone if not any(smaller < s for smaller in alone)]


def called(imp, i, q, t, backgrounds=False):
    least = imp.total[i, q] * t
    found = {k for k in KINDS if imp.parts[i, q, k] > least}
    return found | {100 + j for j in range(data.BACKGROUNDS) if backgrounds and imp.backgrounds[i, q, j] > least}


def completeness_of(birds, answers, imp, i, t):
    """CSDC, PC, DC and D of one image at one threshold; None where it does not count."""
    logits, y = answers.subsets[i], birds.labels[i]
    predicted = logits[0].argmax()
    csdc = None
    if predicted == y:
        csdc = max(len(s & called(imp, i, 0, t)) / len(s) for s in sufficient_sets(birds, y))
    chosen = called(imp, i, 1, t)
    without = logits[sum(1 << k for k in chosen)].argmax()
    alone = logits[sum(1 << k for k in set(KINDS) - chosen)].argmax()
    after = {k: logits[1 << k, y] for k in KINDS}
    after |= {100 + j: answers.backgrounds[i, j, y] for j in range(birds.backgrounds[i])}
    idle = {k for k, v in after.items() if abs(logits[0, y] - v) < 0.05 * abs(logits[0, y]) or v > logits[0, y]}
    d = 1 - len(called(imp, i, 0, t, True) & idle) / len(idle) if idle else None
    return csdc, float(alone == predicted), float(without != predicted), d


def test_completeness_is_that_of_the_plain_implementation(made_up):
    birds, answers, imp = made_up
    metrics = protocol.per_image(birds, answers, imp)
    left_out = 0
    for i in range(len(birds)):
        for t in (0, 7, 40, 79):
            expected = completeness_of(birds, answers, imp, i, protocol.THRESHOLDS[t])
            found = [metrics[name][i, t] for name in ("csdc", "preservation", "deletion", "distractibility")]
            np.testing.assert_allclose(found, [np.nan if e is None else e for e in expected], atol=1e-12)
            left_out += expected[0] is None
    assert 0 < left_out < 4 * len(birds)  # both kinds of image were met


def test_target_sensitivity_is_that_of_the_plain_implementation(made_up):
    birds, answers, imp = made_up
    found, bits = protocol.target_sensitivity(birds, answers, imp), 1 << np.arange(5)
    for i, y in enumerate(birds.labels):
        a, b = birds.contrasts[y]
        of_a, of_b = (birds.variants[c] == birds.variants[y] for c in (a, b))
        assert of_a.sum() == of_b.sum() == 2
        assert not (of_a & of_b).any()
        gone_a, gone_b = answers.subsets[i, of_a @ bits], answers.subsets[i, of_b @ bits]
        if gone_a[a] < gone_b[a] and gone_b[b] < gone_a[b]:
            right_a = imp.parts[i, 2, of_a].sum() > imp.parts[i, 3, of_a].sum()
            right_b = imp.parts[i, 3, of_b].sum() > imp.parts[i, 2, of_b].sum()
            assert found[i] == (int(right_a) + int(right_b)) / 2
        else:
            assert np.isnan(found[i])
    assert 5 < np.isfinite(found).sum() < len(birds)


def test_single_deletion_is_spearmans_rank_correlation(made_up):
    birds, answers, imp = made_up
    found = protocol.single_deletion(birds, answers, imp)
    for i, y in enumerate(birds.labels):
        drops = [answers.subsets[i, 0, y] - answers.subsets[i, 1 << k, y] for k in KINDS]
        assert found[i] == pytest.approx(0.5 + 0.5 * stats.spearmanr(drops, imp.parts[i, 0]).statistic)
    ties, constant = np.array([[1.0, 2, 2, 0, 3]]), np.ones((1, 5))
    expected = stats.spearmanr(ties[0], [0, 0, 1, 2, 5]).statistic
    assert protocol.spearman(ties, np.array([[0.0, 0, 1, 2, 5]]))[0] == pytest.approx(expected)
    assert np.isnan(protocol.spearman(ties, constant)[0])


def test_the_part_sets_that_tell_a_class_apart(made_up):
    birds, *_ = made_up
    for c in range(len(birds.variants)):
        assert [set(np.flatnonzero(s)) for s in birds.sufficient[c]] == sufficient_sets(birds, c)


def test_dimensions_and_threshold(made_up):
    birds, answers, imp = made_up
    metrics = protocol.per_image(birds, answers, imp)
    found = {k: v[0] for k, v in protocol.scores(metrics, np.ones((1, len(birds)))).items()}
    at = {k: np.nanmean(metrics[k], axis=0) for k in ("csdc", "preservation", "deletion", "distractibility")}
    curve = ((at["csdc"] + at["preservation"] + at["deletion"]) / 3 + at["distractibility"]) / 2
    assert found["completeness"] == pytest.approx(curve.max())
    assert found["threshold"] == protocol.THRESHOLDS[curve.argmax()]
    assert found["csdc"] == pytest.approx(at["csdc"][curve.argmax()])
    assert found["correctness"] == pytest.approx(np.nanmean(metrics["single_deletion"]))
    assert found["contrastivity"] == pytest.approx(np.nanmean(metrics["target_sensitivity"]))
    assert found["mean"] == pytest.approx(sum(found[k] for k in protocol.DIMENSIONS[:3]) / 3)


def test_bootstrap_resamples_images(made_up):
    birds, answers, imp = made_up
    metrics = protocol.per_image(birds, answers, imp)
    weights = protocol.resamples(len(birds), times=20)
    assert (weights.sum(1) == len(birds)).all()
    found = protocol.scores(metrics, weights)["correctness"]
    rows = [np.repeat(metrics["single_deletion"], w.astype(int)) for w in weights]
    np.testing.assert_allclose(found, [np.nanmean(r) for r in rows])
    low, high = funnybirds.with_intervals(lambda w: protocol.scores(metrics, w), len(birds))["correctness"][1:]
    assert low < np.nanmean(metrics["single_deletion"]) < high


def test_the_ends_of_the_scale(made_up):
    birds, answers, imp = made_up
    ones = np.ones((1, len(birds)))
    top = protocol.scores(protocol.per_image(birds, answers, protocol.oracle(birds, answers)), ones)
    rng = np.random.default_rng(2)
    noise = Importances(*(rng.normal(size=v.shape) for v in (imp.parts, imp.backgrounds, imp.total)))
    bottom = protocol.scores(protocol.per_image(birds, answers, noise), ones)
    middle = protocol.scores(protocol.per_image(birds, answers, imp), ones)
    assert top["single_deletion"] == 1
    assert top["mean"] > middle["mean"] > bottom["mean"]
    assert abs(bottom["single_deletion"] - 0.5) < 0.15


def test_background_independence(made_up):
    birds, answers, _ = made_up
    drops = [
        (answers.subsets[i, 0, y] - answers.backgrounds[i, :b, y]) / abs(answers.subsets[i, 0, y])
        for i, (y, b) in enumerate(zip(birds.labels, birds.backgrounds, strict=True))
    ]
    found = protocol.of_model(birds, answers, np.ones((1, len(birds))))
    assert found["background_independence"] == pytest.approx(1 - np.mean(np.concatenate(drops) >= 0.05))
    assert 0.5 < found["background_independence"] < 1


# On the rendered birds ------------------------------------------------------------------------------------------------


def test_held_out_birds_are_others(real):
    seen, held_out = data.Birds(250), data.Birds(250, held_out=True)
    assert (np.bincount(held_out.labels) == 5).all()
    both = np.concatenate([seen.images, held_out.images])
    assert len(np.unique(both.reshape(500, -1), axis=0)) == 500
    assert seen.name != held_out.name  # of the files that are kept


def test_masks_and_interventions(real):
    reader = assets.module_at(assets.ASSETS / "funnybirds" / "funnybirds.py")
    birds = reader.TestSet()
    assert (np.bincount(data.Birds(100).labels) == 2).all()
    i = 3
    row = int(np.flatnonzero((birds.images == real.images[i]).all(axis=(1, 2, 3)))[0])
    pictures = real.interventions(i)
    np.testing.assert_array_equal(pictures[0], real.images[i])
    np.testing.assert_array_equal(pictures[0b01001], birds.remove(row, ["beak", "tail"]))
    np.testing.assert_array_equal(pictures[32 + 1], birds.remove_background(row, 1))
    masks = real.masks[i].toarray().reshape(-1, 128, 128)
    for k, kind in enumerate(reader.KINDS):
        pool = torch.nn.MaxPool2d(5, 1, 2)
        grown = sum(pool(torch.from_numpy(birds.part_maps[row] == p)[None].float())[0] for p in reader.PART_IDS[kind])
        np.testing.assert_array_equal(masks[k], grown)
    assert masks[5:].any(axis=(1, 2)).sum() == len(np.unique(birds.part_maps[row][birds.part_maps[row] >= 16]))


def test_importances_are_sums_within_the_masks(real):
    asked = []

    def attribute(x, target):
        asked.extend(target.tolist())
        return x * (1 + target[:, None, None, None])

    classes = np.array([[0, 0, 1, 2], [3, 3, 3, 3], [5, 4, 5, 5], [1, 2, 3, 4], [9, 9, 9, 9]])
    found = measure.importances(attribute, real, classes, "cpu", batch=3)
    assert sorted(asked) == sorted(c for row in classes for c in set(row))  # nothing twice
    x = models.preprocess(real.images).sum(1).double().numpy()
    for i, q in ((0, 2), (2, 1), (3, 3)):
        masks = real.masks[i].toarray().reshape(-1, 128, 128)
        np.testing.assert_allclose(found.parts[i, q], (masks[:5] * x[i]).sum((1, 2)) * (1 + classes[i, q]), rtol=1e-4)
        np.testing.assert_allclose(found.backgrounds[i, q], (masks[5:] * x[i]).sum((1, 2)) * (1 + classes[i, q]), 1e-3)
        assert found.total[i, q] == pytest.approx(x[i].sum() * (1 + classes[i, q]), rel=1e-4)


def test_a_run_is_resumed_and_shown(real, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "CACHE", tmp_path)
    monkeypatch.setattr(models, "CACHE", tmp_path)
    out = tmp_path / "out.json"
    app = typer.Typer()
    app.command()(funnybirds.main)

    def run(*more):
        result = CliRunner().invoke(app, ["--model", "resnet18", "--images", "5", "--out", str(out), *more])
        assert result.exit_code == 0, result.output
        return result.output

    run("--method", "oracle")
    methods = ("--method", "oracle", "--method", "random", "--method", "captum InputXGradient")
    monkeypatch.setattr(protocol, "oracle", None)  # a second oracle would fail
    monkeypatch.setattr(measure, "_logits", None)  # and so would a second pass over the interventions
    shown = run(*methods)
    entry = json.loads(out.read_text())["models"]["resnet18"]
    assert entry["methods"]["oracle"]["single_deletion"] == [1, 1, 1]
    assert set(entry["methods"]) == {"oracle", "random", "captum InputXGradient"}
    means = {name: row["mean"][0] for name, row in entry["methods"].items()}
    places = [shown.index(f"│ {name}") for name in sorted(means, key=lambda n: -means[n])]
    assert places == sorted(places)
    assert run("--show").count("│ oracle") == 1
    before = out.read_text()
    run(*methods[2:], "--rescore")
    assert out.read_text() == before  # the scores of kept importances are the scores


@pytest.mark.parametrize("name", ["resnet18", "vgg"])
def test_captums_lrp_runs_on_the_classifiers(name):
    """Both have an nn.Flatten, for which it has no rule. On ReLU networks its epsilon rule is input x gradient."""
    pytest.importorskip("captum")
    model, x, target = models.ARCHITECTURES[name](8).eval(), torch.randn(2, 3, 128, 128), torch.tensor([1, 4])
    lrp, wanted = (METHODS[f"captum {kind}"].make(model)(x, target) for kind in ("LRP", "InputXGradient"))
    torch.testing.assert_close(lrp, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_captums_lrp_is_not_for_a_transformer():
    pytest.importorskip("captum")
    with pytest.raises(NotApplicable, match=r"Captum's LRP has no rule for GELU, .*layer_norm, scaled_dot_product"):
        METHODS["captum LRP"].make(models.vit().eval())


# Training -------------------------------------------------------------------------------------------------------------


def test_removed_parts_leave_several_classes_possible():
    variants = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]])
    y = training.possible(variants, np.array([0, 0, 0, 2]), np.array([0, 0b10000, 0b11111, 0b00001]))
    np.testing.assert_allclose(y, [[1, 0, 0], [0.5, 0.5, 0], [1 / 3] * 3, [0.5, 0, 0.5]], rtol=1e-6)


def test_batch_norms_fold_without_a_change():
    normed = models.vgg(width=4, norm=True)
    for module in normed.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight), torch.nn.init.normal_(module.bias)
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 128, 128)
    folded = models.folded(normed.eval())
    plain = models.vgg(width=4)
    plain.load_state_dict(folded.state_dict())
    torch.testing.assert_close(plain(x), normed(x), rtol=1e-4, atol=1e-4)


def test_augmented_images_are_moved_and_mirrored():
    x = torch.zeros(64, 1, 32, 32)
    x[:, :, 16, 8:12] = torch.arange(1.0, 5)
    moved = training.augmented(x, torch.Generator().manual_seed(0))
    rows, columns = moved.amax(3)[:, 0].argmax(1), moved.amax(2)[:, 0].argmax(1)
    assert (rows - 16).abs().max() == (columns - torch.tensor([[11], [20]])).abs().amin(0).max() == training.SHIFT
    mirrored = moved[torch.arange(64), 0, rows, columns + 1] == 3  # the ramp goes down to the right
    assert 16 < mirrored.sum() < 48
    assert ((columns - torch.where(mirrored, 20, 11)).abs() <= training.SHIFT).all()


def test_training_learns_and_goes_on_where_it_was_stopped(shared, tmp_path):
    shared("assets", "funnybirds", "train.npz")
    data_set = training.TrainingSet.load(images=128)
    losses, kept = [], tmp_path / "partial"

    def stop(epoch, loss, accuracy):
        losses.append(loss)
        if epoch == 2 and len(losses) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train("vgg", 4, 3, data_set, bf16=False, checkpoint=kept, report=stop)
    model, about = training.train("vgg", 4, 3, data_set, bf16=False, checkpoint=kept, report=stop)
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert about["training_images"] == 128
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    straight, _ = training.train("vgg", 4, 3, data_set, bf16=False)
    for resumed, other in zip(model.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(resumed, other)


# The committed result -------------------------------------------------------------------------------------------------


def test_the_committed_table_has_the_ends_of_its_scale():
    """An oracle map scores at the top of single deletion, noise scores 0.5: shown in the result."""
    for name, entry in json.loads(funnybirds.RESULTS.read_text())["models"].items():
        scored = {m: row["single_deletion"] for m, row in entry["methods"].items() if "mean" in row}
        assert scored["oracle"][0] == 1 == max(row[0] for row in scored.values()), name
        assert scored["random"][1] - 0.03 < 0.5 < scored["random"][2] + 0.03, name
