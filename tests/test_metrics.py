"""Confusion matrix and scores against counts taken the slow, direct way."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from liteseg.data import CITYSCAPES_CATEGORIES, CITYSCAPES_CLASSES, CITYSCAPES_TRAIN_TO_LABEL
from liteseg.metrics import ConfusionMatrix, mean_of_present

# labelIds 0..33 of Cityscapes: category, and whether the evaluation ignores the label
LABELS = {
    **dict.fromkeys(range(0, 7), ("void", True)),
    7: ("flat", False),
    8: ("flat", False),
    9: ("flat", True),
    10: ("flat", True),
    11: ("construction", False),
    12: ("construction", False),
    13: ("construction", False),
    14: ("construction", True),
    15: ("construction", True),
    16: ("construction", True),
    17: ("object", False),
    18: ("object", True),
    19: ("object", False),
    20: ("object", False),
    21: ("nature", False),
    22: ("nature", False),
    23: ("sky", False),
    24: ("human", False),
    25: ("human", False),
    26: ("vehicle", False),
    27: ("vehicle", False),
    28: ("vehicle", False),
    29: ("vehicle", True),
    30: ("vehicle", True),
    31: ("vehicle", False),
    32: ("vehicle", False),
    33: ("vehicle", False),
}
EVALUATED = [label for label, (_, ignored) in LABELS.items() if not ignored]


def direct_scores(prediction: np.ndarray, truth: np.ndarray) -> tuple[list[float], dict[str, float], float]:
    """Class IoU, category IoU and mean from label ids, by the wording of the Cityscapes evaluation, pixel by pixel."""
    pairs = list(zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True))
    scored = [(p, t) for p, t in pairs if not LABELS[t][1]]

    def iou(hit, true, guessed) -> float:
        tp = sum(hit(p, t) for p, t in scored)
        fn = sum(true(t) and not hit(p, t) for p, t in scored)
        fp = sum(guessed(p) and not true(t) for p, t in scored)
        return tp / (tp + fn + fp) if tp + fn + fp else math.nan

    classes = [iou(lambda p, t, c=c: p == t == c, lambda t, c=c: t == c, lambda p, c=c: p == c) for c in EVALUATED]

    def inside(label: int, category: str) -> bool:
        return LABELS[label] == (category, False)

    names = [name for name in dict.fromkeys(category for category, _ in LABELS.values()) if name != "void"]
    categories = {
        n: iou(
            lambda p, t, n=n: inside(p, n) and inside(t, n), lambda t, n=n: inside(t, n), lambda p, n=n: inside(p, n)
        )
        for n in names
    }
    present = [v for v in classes if not math.isnan(v)]
    return classes, categories, sum(present) / len(present)


def to_train_ids(label_ids: np.ndarray) -> np.ndarray:
    table = np.full(256, 255, dtype=np.uint8)
    table[list(CITYSCAPES_TRAIN_TO_LABEL)] = np.arange(19)
    return table[label_ids]


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_direct_evaluation_of_label_ids(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # several pictures, some labels never occur, void ids occur in truth and in predictions
    allowed = rng.choice(34, size=20, replace=False)
    truth = rng.choice(allowed, size=(3, 24, 30))
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice(allowed, size=truth.shape))
    classes, categories, mean = direct_scores(prediction, truth)
    cm = ConfusionMatrix(19)
    for p, t in zip(prediction, truth, strict=True):
        cm.update(to_train_ids(p), to_train_ids(t))
    np.testing.assert_allclose(cm.class_iou(), classes, rtol=1e-12)
    assert cm.mean_iou() == pytest.approx(mean, rel=1e-12)
    ours = cm.category_iou(CITYSCAPES_CATEGORIES)
    assert list(ours) == list(categories)
    np.testing.assert_allclose(list(ours.values()), list(categories.values()), rtol=1e-12)
    scored = ~np.isin(truth, [label for label, (_, ignored) in LABELS.items() if ignored])
    assert cm.pixel_accuracy() == pytest.approx((prediction == truth)[scored].mean(), rel=1e-12)


def test_rows_are_truth_and_void_is_dropped() -> None:
    cm = ConfusionMatrix(3)
    cm.update(np.array([[1, 1, 2], [0, 2, 2]]), np.array([[0, 1, 255], [0, 2, 255]]))
    assert cm.matrix.dtype == np.int64
    assert cm.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert cm.pixels == 4


def test_void_predicted_on_a_labelled_pixel_is_missed() -> None:
    cm = ConfusionMatrix(2)
    cm.update([0, 255, 1], [0, 0, 1])
    assert cm.missed.tolist() == [1, 0]
    assert cm.class_iou().tolist() == [0.5, 1.0]
    assert cm.pixel_accuracy() == pytest.approx(2 / 3)
    assert cm.category_iou({"a": [0], "b": [1]}) == {"a": 0.5, "b": 1.0}


def test_confusion_inside_a_category_is_a_hit() -> None:
    cm = ConfusionMatrix(3)
    cm.update([1, 0, 2], [0, 1, 2])
    assert cm.class_iou().tolist() == [0.0, 0.0, 1.0]
    assert cm.category_iou({"both": [0, 1], "other": [2]}) == {"both": 1.0, "other": 1.0}


def test_absent_class_is_nan_or_zero() -> None:
    cm = ConfusionMatrix(4)
    # class 2 is only predicted, so it is present; class 3 occurs nowhere
    cm.update([0, 1, 2], [0, 1, 1])
    np.testing.assert_equal(cm.class_iou(), [1.0, 0.5, 0.0, np.nan])
    assert cm.mean_iou() == pytest.approx(0.5)
    assert cm.class_iou(absent="zero").tolist() == [1.0, 0.5, 0.0, 0.0]
    assert cm.mean_iou(absent="zero") == pytest.approx(1.5 / 4)
    with pytest.raises(ValueError, match='absent: expected "nan" or "zero"'):
        cm.mean_iou(absent="skip")


def test_empty_matrix_has_nan_scores_without_warnings() -> None:
    cm = ConfusionMatrix(3)
    cm.update(np.full((2, 2), 1), np.full((2, 2), 255))
    assert math.isnan(cm.mean_iou()) and math.isnan(cm.pixel_accuracy())
    assert all(math.isnan(v) for v in cm.category_iou({"a": [0, 1], "b": [2]}).values())


@pytest.mark.parametrize("kind", ["numpy uint8", "numpy int64", "torch uint8", "torch int64", "torch int32 strided"])
def test_input_kinds_give_the_same_counts(kind: str) -> None:
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 19, (2, 33, 47), dtype=np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    expected = np.zeros((19, 19), dtype=np.int64)
    np.add.at(expected, (truth[truth != 255], prediction[truth != 255]), 1)
    given = {
        "numpy uint8": lambda a: a,
        "numpy int64": lambda a: a.astype(np.int64),
        "torch uint8": torch.from_numpy,
        "torch int64": lambda a: torch.from_numpy(a.astype(np.int64)),
        "torch int32 strided": lambda a: torch.from_numpy(np.repeat(a.astype(np.int32), 2, axis=1))[:, ::2],
    }[kind]
    cm = ConfusionMatrix(19)
    cm.update(given(prediction), given(truth))
    assert np.array_equal(cm.matrix, expected)


def test_merge_equals_one_matrix_over_everything() -> None:
    rng = np.random.default_rng(1)
    parts = rng.integers(0, 5, (2, 2, 40))
    whole, left, right = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(parts[0], parts[1])
    left.update(parts[0, 0], parts[1, 0])
    right.update(parts[0, 1], parts[1, 1])
    left.merge(right)
    assert np.array_equal(left.matrix, whole.matrix)
    left.reset()
    assert left.pixels == 0
    with pytest.raises(ValueError, match="merge: other"):
        left.merge(ConfusionMatrix(6))


@pytest.mark.parametrize(
    ("prediction", "target", "error", "words"),
    [
        ([0, 7, 9], [0, 1, 1], ValueError, r"prediction: expected ids 0..2 or 255 \(void\), got 7, 9"),
        ([0, 1, 1], [0, -1, 33], ValueError, r"target: expected ids 0..2 or 255 \(void\), got -1, 33"),
        ([0, 1], [0, 1, 1], ValueError, r"prediction: expected the target's shape \(3,\), got \(2,\)"),
        ([0.0, 1.0], [0, 1], TypeError, "prediction: expected an integer array, got float64"),
        ([0, 1], [True, False], TypeError, "target: expected an integer array, got bool"),
    ],
)
def test_bad_ids_and_shapes_are_named_and_nothing_is_counted(prediction, target, error, words) -> None:
    cm = ConfusionMatrix(3)
    with pytest.raises(error, match=words):
        cm.update(np.array(prediction), np.array(target))
    assert cm.pixels == 0


@pytest.mark.parametrize("arguments", [(0,), (19, 3)])
def test_bad_construction(arguments) -> None:
    with pytest.raises(ValueError, match="ConfusionMatrix: (num_classes|ignore_index)"):
        ConfusionMatrix(*arguments)


@pytest.mark.parametrize("categories", [{"a": [0, 3]}, {"a": [0], "b": [0]}, {"a": [1, 1]}])
def test_bad_categories(categories) -> None:
    with pytest.raises(ValueError, match=r"categories\['[ab]'\]: expected ids 0..2"):
        ConfusionMatrix(3).category_iou(categories)


def test_to_dict_is_json_with_null_for_absent_classes() -> None:
    cm = ConfusionMatrix(19)
    cm.update([0, 0, 10], [0, 1, 10])
    values = json.loads(json.dumps(cm.to_dict(CITYSCAPES_CLASSES, CITYSCAPES_CATEGORIES), allow_nan=False))
    assert values["class_iou"]["road"] == 0.5 and values["class_iou"]["bus"] is None
    assert values["category_iou"]["flat"] == 1.0 and values["category_iou"]["human"] is None
    assert values["mean_category_iou"] == 1.0
    assert np.array_equal(np.array(values["matrix"]), cm.matrix)
    with pytest.raises(ValueError, match="class_names: expected 19 names, got 2"):
        cm.to_dict(["a", "b"])


def test_mean_of_present() -> None:
    assert mean_of_present([1.0, math.nan, 0.5]) == 0.75
    assert math.isnan(mean_of_present([math.nan]))


@pytest.mark.parametrize("missing", [(), (2,), (0, 4)], ids=str)
def test_equals_torchmetrics(missing: tuple[int, ...]) -> None:
    classification = pytest.importorskip("torchmetrics.classification", reason="comes with liteseg[train]")
    present = [label for label in range(5) if label not in missing]
    theirs = {
        average: classification.MulticlassJaccardIndex(5, average=average, ignore_index=255)
        for average in ("none", "macro")
    }
    accuracy = classification.MulticlassAccuracy(5, average="micro", ignore_index=255)
    matrix = ConfusionMatrix(5)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        prediction, truth = (rng.choice(present, (2, 13, 17)).astype(np.uint8) for _ in range(2))
        truth[rng.random(truth.shape) < 0.2] = 255
        matrix.update(prediction, truth)
        for metric in (*theirs.values(), accuracy):
            metric.update(torch.from_numpy(prediction).long(), torch.from_numpy(truth).long())
    # of classes that occur nowhere theirs says 0, and leaves them out of the mean as well
    assert np.allclose(matrix.class_iou("zero"), theirs["none"].compute().numpy(), rtol=1e-6)
    assert matrix.mean_iou() == pytest.approx(theirs["macro"].compute().item(), rel=1e-6)
    assert matrix.pixel_accuracy() == pytest.approx(accuracy.compute().item(), rel=1e-6)
