"""The sections of a page on what checkpoints predict, and what they were trained on: classes, calibration, examples."""

from collections.abc import Sequence

from vision_jax.explanations.page import legend, map_figure
from vision_jax.report import drawing, figures
from vision_jax.report.classes import SCORES, ClassTable
from vision_jax.report.evaluation import Evaluation, Example
from vision_jax.report.markup import Markup, element, image, number, table
from vision_jax.report.samples import Sample

_CONFUSIONS = 15  # that are listed
_MOST_ROWS = 1000  # of the table of all classes
_COLORS_MEAN = (
    "Numbers are examples. Blue is correct and orange wrong; the darker, the larger the share of the label's examples "
    "(of orange, in relation to the largest one)."
)


def summary(evaluation: Evaluation) -> Markup:
    """Returns a sentence on what was evaluated, and its accuracy."""
    weights = "the moving average (EMA) of the weights" if evaluation.is_ema else "the weights (there is no EMA)"
    undefined = (
        f" {evaluation.undefined} of them have NaN among their logits: they count as wrong, without a prediction."
        if evaluation.undefined
        else ""
    )
    return element(
        "p",
        f"Step {evaluation.step}, {evaluation.choice}: {weights}. Top-1 accuracy ",
        element("strong", number(evaluation.accuracy, f"{evaluation.accuracy:.2%}")),
        f" of {evaluation.count} examples of the split ",
        element("code", evaluation.split),
        f".{undefined}",
    )


def averages(evaluation: Evaluation) -> Markup:
    """Returns the means of the scores over the classes."""
    rows = [
        [mean, *(number(scores[name], f"{scores[name]:.4f}") for name in SCORES)]
        for mean, scores in evaluation.averages.items()
    ]
    return table("Means over the classes", ["mean", "precision", "recall", "F1"], rows)


def classes(classes: ClassTable, name: str) -> list[Markup]:
    """Returns the confusion matrix, the scores of the classes, and the most frequent confusions.

    Args:
        classes: their table.
        name: unique in the page, for the figures.
    """
    confusions = classes.confusions(_CONFUSIONS)
    listed = "; ".join(f"{classes.names[i]} as {classes.names[j]}: {n}" for i, j, n in confusions[:5])
    alt = f"Confusion matrix. The most frequent confusions: {listed or 'none'}."
    matrix = drawing.svg(figures.confusion_matrix(classes), f"{name}-matrix", alt)
    ranked = classes.ranked()
    worst = ", ".join(f"{classes.names[i]}: F1 {classes.scores['f1'][i]:.3f}" for i in ranked[:5])
    bars = drawing.svg(
        figures.class_bars(classes), f"{name}-bars", f"Precision, recall and F1 by class. The worst: {worst}."
    )
    rows = [
        [
            classes.names[i],
            classes.names[j],
            n,
            number(n / max(1, classes.support[i]), f"{n / max(1, classes.support[i]):.1%}"),
        ]
        for i, j, n in confusions
    ]
    frequent = table("Wrong predictions", ["label", "prediction", "examples", "share of the label"], rows)
    left = [
        element("h4", "Confusion matrix"),
        element("p", _COLORS_MEAN, class_="quiet"),
        element("figure", matrix, class_="drawing large", tabindex=0),
        element("h4", "Most frequent confusions"),
        frequent if rows else element("p", "There are none."),
    ]
    right = [
        element("h4", "Precision, recall and F1"),
        element("figure", bars, class_="drawing large", tabindex=0),
    ]
    each = [
        [
            classes.names[i],
            int(classes.support[i]),
            *(number(float(classes.scores[s][i]), f"{classes.scores[s][i]:.4f}") for s in SCORES),
        ]
        for i in ranked[:_MOST_ROWS]
    ]
    caption = "Classes, the worst F1 first" + (f": {_MOST_ROWS} of {len(ranked)}" if len(ranked) > _MOST_ROWS else "")
    whole = table(caption, ["class", "examples", "precision", "recall", "F1"], each)
    right.append(element("details", element("summary", f"All {len(ranked)} classes"), whole))
    return [element("div", element("div", *left), element("div", *right), class_="columns")]


def calibration(evaluation: Evaluation, name: str) -> list[Markup]:
    """Returns the reliability diagram, and the errors of calibration."""
    if not evaluation.errors:
        return [element("p", "No example has a prediction.")]
    errors, bins = evaluation.errors, evaluation.bins
    confidence = bins["confidence"].sum() / bins["count"].sum()
    alt = (
        f"Reliability diagram. ECE {errors['ece']:.4f}, MCE {errors['mce']:.4f}; "
        f"mean confidence {confidence:.2%}, accuracy {evaluation.accuracy:.2%}."
    )
    rows = [
        [title, number(errors[key], f"{errors[key]:.4f}")]
        for key, title in (("ece", "ECE"), ("mce", "MCE"), ("rms", "RMS"))
    ]
    rows.append(["mean confidence", number(float(confidence), f"{confidence:.2%}")])
    drawn = drawing.svg(figures.reliability(bins, errors["ece"]), f"{name}-reliability", alt)
    parts = [element("figure", drawn, class_="drawing"), table("Calibration", ["measure", "value"], rows)]
    return [element("div", *parts, class_="columns")]


def examples(shown: Sequence[Example], none: str, name: str = "") -> Markup:
    """Returns examples with their images; `none` is what to say if there are none.

    Those that are explained lead to `explained`, which has the same `name`.
    """
    if not shown:
        return element("p", none)
    figures_ = [_example(example, f"{name}-{place}") for place, example in enumerate(shown)]
    return element("div", *figures_, class_="images views" if any(each.maps for each in shown) else "images")


def _example(example: Example, anchor: str) -> Markup:
    right = example.is_correct
    alt = f"{'Correct' if right else 'Wrong'}: {example.label}, predicted as {example.prediction}."
    pictures = image(example.image, alt)
    link: list[Markup] = []
    if example.maps:
        first = example.maps[0]
        beside = image(first.overlay, f"{first.method} for {first.target or 'every class'}.")
        pictures = element("div", pictures, beside, class_="row")
        more = element("a", "explanation", href=f"#explained-{anchor}")
        link = [element("span", more, id=f"mistake-{anchor}")]
    caption = element(
        "figcaption",
        element("span", "correct: " if right else "wrong: ", class_="good" if right else "bad"),
        element("strong", example.prediction),
        f" {example.confidence:.1%}",
        *([] if right else [element("br"), "label: ", element("strong", example.label), f" {example.of_label:.1%}"]),
        element("small", example.description, *([" ", *link] if link else [])),
    )
    return element("figure", pictures, caption)


def explained(evaluation: Evaluation, name: str) -> list[Markup]:
    """Returns the mistakes with what the model has looked at, for the prediction and for the label.

    Args:
        evaluation: that has them.
        name: unique in the page; as for `examples`.
    """
    articles = []
    for place, example in enumerate(evaluation.mistakes):
        if not example.maps:
            continue
        anchor = f"{name}-{place}"
        heading = [
            element("strong", example.prediction),
            f" {example.confidence:.1%}, label ",
            element("strong", example.label),
            f" {example.of_label:.1%}: {example.description} ",
            element("a", "among the mistakes", href=f"#mistake-{anchor}"),
        ]
        alt = f"Wrong: {example.label}, predicted as {example.prediction}."
        pictures = [element("figure", image(example.image, alt), element("figcaption", "image"))]
        pictures += [map_figure(each.overlay, each.method, each.target or "every class") for each in example.maps]
        shown = element("div", *pictures, class_="images maps")
        articles.append(element("article", element("p", *heading), shown, id=f"explained-{anchor}"))
    if not articles:
        return []
    about = "What spoke for the class that was predicted, and what for the label."
    return [element("p", about, class_="quiet"), legend(evaluation.methods), *articles]


def samples(shown: Sequence[Sample]) -> Markup:
    """Returns examples of a training batch with their targets."""
    views = max(len(sample.images) for sample in shown)
    large = views > 1 or any(sample.side > 160 for sample in shown)
    return element("div", *map(_sample, shown), class_="images views" if large else "images")


def _sample(sample: Sample) -> Markup:
    target = ", ".join(f"{name} {share:.0%}" for name, share in sample.shares)
    alt = f"Training image, as augmented. Target: {target or 'none'}."
    pictures = [image(pixels, alt, sample.side) for pixels in sample.images]
    caption = [
        element(
            "figcaption", *(element("div", element("strong", name), f" {share:.1%}") for name, share in sample.shares)
        )
    ]
    return element("figure", element("div", *pictures, class_="row"), *(caption if sample.shares else []))
