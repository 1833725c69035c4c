"""How the evaluation sets of ImageNet classifiers are scored.

A step on the devices keeps the best classes of each example (`top_classes`); the rest is counting, on the host.
"""

from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vision_jax.errors import DataError


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split()))


# Of the 1000 classes, in the order of their sorted WordNet ids, the 200 of ImageNet-A (Hendrycks et al. 2019,
# arXiv:1907.07174; eval.py of hendrycks/natural-adv-examples) and those of ImageNet-R (Hendrycks et al. 2020,
# arXiv:2006.16241; eval.py of hendrycks/imagenet-r). A label of these sets is a position in its list.
IMAGENET_A_CLASSES = _numbers(
    """
    6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105 107 108 110 113 124 125 130
    132 143 144 150 151 207 234 235 254 277 283 287 291 295 298 301 306 307 308 309 310 311 313 314 315 317 319
    323 324 326 327 330 334 335 336 347 361 363 372 378 386 397 400 401 402 404 407 411 416 417 420 425 428 430
    437 438 445 456 457 461 462 470 472 483 486 488 492 496 514 516 528 530 539 542 543 549 552 557 561 562 569
    572 573 575 579 589 606 607 609 614 626 627 640 641 642 643 658 668 677 682 684 687 701 704 719 736 746 749
    752 758 763 765 768 773 774 776 779 780 786 792 797 802 803 804 813 815 820 823 831 833 835 839 845 847 850
    859 862 870 879 880 888 890 897 900 907 913 924 932 933 934 937 943 945 947 951 954 956 957 959 971 972 980
    981 984 986 987 988
    """
)
IMAGENET_R_CLASSES = _numbers(
    """
    1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107 113 122 125 130 132 144 145
    147 148 150 151 155 160 161 162 163 171 172 178 187 195 199 203 207 208 219 231 232 234 235 242 245 247 250
    251 254 259 260 263 265 267 269 276 277 281 288 289 291 292 293 296 299 301 308 309 310 311 314 315 319 323
    327 330 334 335 337 338 340 341 344 347 353 355 361 362 365 366 367 368 372 388 390 393 397 401 407 413 414
    425 428 430 435 437 441 447 448 457 462 463 469 470 471 472 476 483 487 515 546 555 558 570 579 583 587 593
    594 596 609 613 617 621 629 637 657 658 701 717 724 763 768 774 776 779 780 787 805 812 815 820 824 833 847
    852 866 875 883 889 895 907 928 931 932 933 934 936 937 943 945 947 948 949 951 953 954 957 963 965 967 980
    981 983 988
    """
)

# Errors of AlexNet on ImageNet-C's corruptions, means over the five severities (hendrycks/robustness).
ALEXNET_ERRORS: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.92264,
    "defocus_blur": 0.81988,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.79836,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.71784,
    "jpeg_compression": 0.6065,
}
ALEXNET_CLEAN_ERROR = 0.435  # on the validation split (Hendrycks and Dietterich 2019)


def top_classes(logits: jax.Array, k: int = 5, *, among: Sequence[int] | None = None) -> jax.Array:
    """Returns the k best classes of each example, the best first; of equal logits, the first is the better one.

    Args:
        logits: (batch, classes).
        k: how many; fewer if there are not as many classes.
        among: the classes that compete, whose positions in this sequence are returned; None: all.

    Returns:
        (batch, k) int32; -1 for an example that has a NaN among its logits, which no class is.
    """
    if among is not None:
        logits = logits[:, np.asarray(among)]
    best = jax.lax.top_k(logits, min(k, logits.shape[-1]))[1]
    return jnp.where(jnp.isnan(logits).any(-1, keepdims=True), -1, best)


def confidence(logits: jax.Array, *, among: Sequence[int] | None = None) -> jax.Array:
    """Returns the probability of the best class of each example, (batch,) float32; arguments as for `top_classes`."""
    if among is not None:
        logits = logits[:, np.asarray(among)]
    return jax.nn.softmax(logits.astype(jnp.float32)).max(-1)


def accuracy(best: np.ndarray, labels: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Returns the shares of examples whose label is the best class, and among the best ones: top1, top5, and count.

    Args:
        best: (examples, 5) integers; see `top_classes`.
        labels: (examples,) integers, in the numbering of `best`.
    """
    return multi_label_accuracy(best, [[label] for label in labels])


def multi_label_accuracy(best: np.ndarray, labels: Sequence[Collection[int]]) -> dict[str, float]:
    """Returns the accuracy where each example may have several labels, any of which is correct, or none.

    As in ReaL (Beyer et al. 2020, arXiv:2006.07159) and ImageNet-Hard, examples without labels are left out.

    Args:
        best: (examples, 5) integers; see `top_classes`.
        labels: the labels of each example, in the same order.

    Returns:
        top1, top5: shares of the examples that have labels.
        count: the number of these.

    Raises:
        DataError: if the numbers of examples differ, or none has a label.
    """
    if len(best) != len(labels):
        raise DataError(f"There are predictions of {len(best)} examples, and labels of {len(labels)}: they must match.")
    hits = [[int(one) in given for one in row] for row, given in zip(best, labels, strict=True) if len(given)]
    if not hits:
        raise DataError(f"None of {len(labels)} examples has a label: nothing is left to be measured.")
    return {
        "top1": sum(row[0] for row in hits) / len(hits),
        "top5": sum(any(row[:5]) for row in hits) / len(hits),
        "count": len(hits),
    }


def imagenet_v2_classes(folders: Sequence[str]) -> list[int]:
    """Returns the class of each folder of ImageNet-V2 (Recht et al. 2019, arXiv:1902.10811): its name as a number.

    The names are `0` to `999` without zeros in front, so their order as strings, 0, 1, 10, 100, …, is not that of the
    classes.

    Raises:
        DataError: for a name that is no such number.
    """
    for name in folders:
        if not (name.isascii() and name.isdigit() and str(int(name)) == name and int(name) < 1000):
            raise DataError(
                f"{name!r} is no class of ImageNet-V2, whose folders are called 0 to 999: check the folder."
            )
    return [int(name) for name in folders]


def mapped_classes(best: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the best classes of each example as classes of a set whose classes are groups of the model's.

    So ObjectNet's challenge maps predictions (abarbu/objectnet-template-pytorch): all classes of the model compete, and
    one that is in no group is wrong, but takes its place among the best. Two of the best may be of the same group.

    Args:
        best: (examples, k) integers; see `top_classes`.
        groups: for each class of the set, which of the model's classes belong to it; no two have one in common.

    Returns:
        (examples, k) int32; -1 for what is in no group.
    """
    size = 1 + max(int(best.max(initial=0)), *(number for group in groups for number in group))
    group_of = np.full(size + 1, -1, np.int32)  # the last one is for -1, which no class is
    for label, group in enumerate(groups):
        group_of[list(group)] = label
    return group_of[best]


def corruption_errors(
    errors: Mapping[str, Sequence[float]],
    clean_error: float | None,
    *,
    baseline: Mapping[str, float] = ALEXNET_ERRORS,
    baseline_clean_error: float = ALEXNET_CLEAN_ERROR,
) -> dict[str, float]:
    """Returns the measures of ImageNet-C (Hendrycks and Dietterich 2019, arXiv:1903.12261), in percent but the last.

    With the mean errors e[c] over the severities of corruption c, b[c] of the baseline, AlexNet, and the errors
    without corruption, e0 and b0:

    ce/c = 100 e[c] / b[c], relative_ce/c = 100 (e[c] - e0) / (b[c] - b0)

    Args:
        errors: by corruption, the error at each severity, from 0 to 1.
        clean_error: on the images without corruption; None: it is unknown, and there are no relative measures.
        baseline, baseline_clean_error: the errors of the baseline.

    Returns:
        ce/NAME, relative_ce/NAME: of each corruption of the baseline.
        mce, relative_mce: their means.
        error: the mean of e[c], from 0 to 1.

    Raises:
        DataError: if the corruptions are not those of the baseline.
    """
    if errors.keys() != baseline.keys():
        missing, others = sorted(baseline.keys() - errors.keys()), sorted(errors.keys() - baseline.keys())
        raise DataError(
            f"mCE is a mean over {len(baseline)} corruptions: {missing} are missing, and {others} are not among them."
        )
    means = {name: float(np.mean(errors[name])) for name in baseline}
    ce = {name: 100 * means[name] / baseline[name] for name in baseline}
    found = {
        **{f"ce/{name}": value for name, value in ce.items()},
        "mce": float(np.mean(list(ce.values()))),
        "error": float(np.mean(list(means.values()))),
    }
    if clean_error is None:
        return found
    relative = {name: 100 * (means[name] - clean_error) / (baseline[name] - baseline_clean_error) for name in baseline}
    return {
        **found,
        **{f"relative_ce/{name}": value for name, value in relative.items()},
        "relative_mce": float(np.mean(list(relative.values()))),
    }
