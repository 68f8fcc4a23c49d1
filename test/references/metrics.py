#!/usr/bin/env python3
"""Reference values of metrics, from torchmetrics. usage: metrics.py > metrics.json

Needs torch and torchmetrics; prints their versions into the result.
"""
import json
import warnings

import torch
import torchmetrics
from torchmetrics.functional import classification as tc
from torchmetrics.functional import regression as tr
from torchmetrics.functional.text import perplexity

warnings.filterwarnings("ignore")  # of classes without samples, which are here on purpose
BETA, TOP_K, THRESHOLDS = 0.5, 2, 20


def areas(scores, targets, classes, average, thresholds):
    """AUROC and average precision. torchmetrics has no micro ones: those are of all pairs of sample and class."""
    if average == "micro":
        pairs, flags = scores.flatten(), torch.nn.functional.one_hot(targets, classes).flatten()
        return tc.binary_auroc(pairs, flags, thresholds=thresholds), tc.binary_average_precision(pairs, flags, thresholds=thresholds)
    return (tc.multiclass_auroc(scores, targets, classes, average, thresholds),
            tc.multiclass_average_precision(scores, targets, classes, average, thresholds))


def classification(name, output, targets):
    classes = output.shape[1]
    scores = output.softmax(1)
    values = {}
    for average in ("macro", "micro", "weighted"):
        exact, binned = areas(scores, targets, classes, average, None), areas(scores, targets, classes, average, THRESHOLDS)
        values[average] = {
            "accuracy": tc.multiclass_accuracy(output, targets, classes, average),
            "top_k_accuracy": tc.multiclass_accuracy(output, targets, classes, average, top_k=TOP_K),
            "precision": tc.multiclass_precision(output, targets, classes, average),
            "recall": tc.multiclass_recall(output, targets, classes, average),
            "f_beta": tc.multiclass_fbeta_score(output, targets, BETA, classes, average),
            "auroc": exact[0], "average_precision": exact[1], "binned_auroc": binned[0], "binned_average_precision": binned[1],
        }
        values[average] = {metric: value.item() for metric, value in values[average].items()}
    # Classes without samples have no average precision, and torchmetrics leaves them out of the mean; but where class 0 is
    # the only one, it counts them as 0. torchbus leaves them out in that case, too.
    if not targets.any():
        del values["macro"]["average_precision"]
    return {"name": name, "output": output.tolist(), "targets": targets.tolist(), "values": values,
            "confusion_matrix": tc.multiclass_confusion_matrix(output, targets, classes).tolist()}


def regression(name, output, targets):
    mse = tr.mean_squared_error(output, targets)
    values = {"mean_absolute_error": tr.mean_absolute_error(output, targets).item(), "mean_squared_error": mse.item(),
              "root_mean_squared_error": tr.mean_squared_error(output, targets, squared=False).item()}
    if len(output) > 1:
        values["r2"] = tr.r2_score(output.double(), targets.double()).item()  # in float it loses digits where values are far from zero
    return {"name": name, "output": output.tolist(), "targets": targets.tolist(), "values": values}


def rounded(tensor, digits):
    """Short in JSON, and the same number in float and double."""
    return (tensor * 2**digits).round() / 2**digits


def classification_cases():
    generator = torch.Generator().manual_seed(7)
    random = rounded(torch.randn(37, 4, generator=generator) * 2, 6)
    yield "random", random, (random + torch.randn(37, 4, generator=generator) * 2).argmax(1)
    for seed, samples, classes in ((19, 50, 3), (23, 64, 7), (29, 11, 2)):
        generator.manual_seed(seed)
        output = rounded(torch.randn(samples, classes, generator=generator) * 2, 16)  # fine enough that no row has ties
        yield f"random, seed {seed}", output, (output + torch.randn(samples, classes, generator=generator) * 2).argmax(1)
    generator.manual_seed(31)
    present = torch.tensor([0, 1, 3])[torch.randint(3, (25,), generator=generator)]
    yield "class 2 without samples", rounded(torch.randn(25, 4, generator=generator), 6), present
    yield "class 0 only", rounded(torch.randn(9, 3, generator=generator), 6), torch.zeros(9, dtype=torch.int64)
    yield "one class only", rounded(torch.randn(9, 3, generator=generator), 6), torch.full((9,), 1)
    # Rows of a few kinds, so that scores are equal between samples, but never within one: there top-k is ambiguous.
    kinds = torch.tensor([[2.0, 1.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.25, 1.5], [1.0, 0.5, 0.25]])
    yield "ties", kinds[torch.randint(4, (30,), generator=generator)], torch.randint(3, (30,), generator=generator)
    yield "one sample, right", torch.tensor([[0.5, 2.0, -1.0]]), torch.tensor([1])
    yield "one sample, wrong", torch.tensor([[0.5, 2.0, -1.0]]), torch.tensor([2])
    yield "nobody is called 1", torch.tensor([[2.0, 0.0], [1.0, 0.5], [3.0, 2.5]]), torch.tensor([0, 1, 1])


def regression_cases():
    generator = torch.Generator().manual_seed(11)
    targets = rounded(torch.randn(29, generator=generator), 6)
    yield "random", targets + rounded(torch.randn(29, generator=generator), 6), targets
    for seed in (19, 23, 29):
        generator.manual_seed(seed)
        shifted = rounded(torch.randn(12 + seed, generator=generator) * 3 + 100, 4)  # far from zero: R2 must not lose digits
        yield f"random, seed {seed}", shifted + rounded(torch.randn(12 + seed, generator=generator), 4), shifted
    wide = rounded(torch.randn(17, 3, generator=generator), 6)
    yield "three columns", wide * 0.5, wide
    yield "equal targets", torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 2.0])
    yield "exact", targets[:5], targets[:5]
    yield "one sample", torch.tensor([1.5]), torch.tensor([1.0])


def segmentation():
    generator = torch.Generator().manual_seed(13)
    output = rounded(torch.randn(3, 4, 5, 6, generator=generator), 4)
    targets = torch.randint(3, (3, 5, 6), generator=generator)  # class 3 has no pixels
    ignored = targets.clone()
    ignored[torch.rand(3, 5, 6, generator=generator) < 0.2] = 255
    result = {"output": output.tolist(), "targets": targets.tolist(), "targets_with_255": ignored.tolist()}
    result["mean_iou"] = tc.multiclass_jaccard_index(output, targets, 4).item()
    result["mean_iou_without_255"] = tc.multiclass_jaccard_index(output, ignored, 4, ignore_index=255).item()
    return result


def tokens():
    generator = torch.Generator().manual_seed(17)
    output = rounded(torch.randn(4, 6, 5, generator=generator) * 2, 6)
    targets = torch.randint(5, (4, 6), generator=generator)
    padded = targets.clone()
    padded[1, 4:] = padded[3, 2:] = -100
    result = {"output": output.tolist(), "targets": targets.tolist(), "padded": padded.tolist()}
    result["perplexity"] = perplexity(output.double(), targets).item()
    result["perplexity_without_padding"] = perplexity(output.double(), padded, ignore_index=-100).item()
    return result


print(json.dumps({
    "versions": {"torch": torch.__version__, "torchmetrics": torchmetrics.__version__},
    "beta": BETA, "top_k": TOP_K, "thresholds": THRESHOLDS,
    "classification": [classification(*case) for case in classification_cases()],
    "regression": [regression(*case) for case in regression_cases()],
    "segmentation": segmentation(), "tokens": tokens(),
}))
