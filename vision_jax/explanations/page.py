"""Explanations as one HTML page, which needs no other file: images, predictions, and maps side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import vision_jax
from vision_jax.explain import Method
from vision_jax.explanations import faithfulness
from vision_jax.explanations.explainer import Explanation
from vision_jax.explanations.faithfulness import Faithfulness
from vision_jax.explanations.overlays import scale_of_colors
from vision_jax.report import drawing
from vision_jax.report.markup import Markup, document, element, image, join, number, report_style, table

_SIZE = 224  # pixels of a picture on the page, at most
# What a reader of the page is told of each method of `explain.METHODS`.
ABOUT: Mapping[str, str] = {
    "gradient": "how the score changes with each pixel (Simonyan et al. 2013, arXiv:1312.6034)",
    "saliency": "how much the score changes with each pixel, up or down (Simonyan et al. 2013, arXiv:1312.6034)",
    "gradient_x_input": "the gradient times the pixel (Shrikumar et al. 2016, arXiv:1605.01713)",
    "smoothgrad": "the gradient, averaged over noise (Smilkov et al. 2017, arXiv:1706.03825)",
    "integrated_gradients": (
        "what each pixel adds to the score on the way from an empty image (Sundararajan et al. 2017, arXiv:1703.01365)"
    ),
    "gradcam": "Grad-CAM: the features of a layer, weighted by gradients (Selvaraju et al. 2017, arXiv:1610.02391)",
    "gradcam_pp": "Grad-CAM++: the same, by gradients above zero (Chattopadhay et al. 2018, arXiv:1710.11063)",
    "rollout": "attention, multiplied over the layers; of every class alike (Abnar and Zuidema 2020, arXiv:2005.00928)",
    "occlusion": "what the score loses by a window over the pixel (Zeiler and Fergus 2014, arXiv:1311.2901)",
    "rise": "the probability of the class where the pixel is visible (Petsiuk et al. 2018, arXiv:1806.07421)",
}


def make_page(
    title: str,
    about: str,
    cards: Sequence[Markup],
    count: int,
    methods: Mapping[str, Method],
    found: Mapping[str, Faithfulness],
) -> str:
    """Returns the page.

    Args:
        title: of the page.
        about: a sentence on the model.
        cards: one for each image that is shown; see `card`.
        count: how many images there are.
        methods: by how they are written.
        found: how faithful each of them is, the best first; {}: it was not measured.
    """
    shown = f"the first {len(cards)} of {count:,} images" if len(cards) < count else _count(count, "image")
    body = [
        element("header", element("h1", title), element("p", f"{about} Here: {shown}.", class_="quiet")),
        element(
            "main",
            _section("methods", "Methods", [_methods(methods), legend(methods.values())]),
            *([_section("faithful", "Faithfulness", _faithfulness(found, list(methods)))] if found else []),
            _section("images", "Images", cards),
        ),
        element("footer", element("p", f"Made by vision_jax {vision_jax.__version__}.")),
    ]
    return document(title, report_style(), *body)


def card(
    place: int, explanation: Explanation, overlays: Mapping[str, np.ndarray], methods: Mapping[str, Method]
) -> Markup:
    """Returns an image, what is predicted, and the maps on it.

    Args:
        place: of the image among all, from 0.
        explanation: of it.
        overlays: by method, (height, width, 3) uint8.
        methods: by how they are written.
    """
    heading = element("h3", explanation.path)
    if explanation.error is not None:
        damage = element("p", f"damaged: {explanation.error}", class_="bad")
        return element("article", heading, damage, id=f"image{place}")
    target = explanation.target
    assert target is not None  # it has no error
    best = explanation.classes[0]
    said: list[object] = [
        "Predicted: ",
        element("strong", best.name),
        f" {best.probability:.1%}. Explained: ",
        element("strong", target.name),
        f", probability {target.probability:.1%}, logit {explanation.score:.2f}.",
    ]
    if explanation.label is not None:
        said = [*said, " Label: ", element("strong", explanation.label), "."]
    classes = element(
        "ul", *(element("li", f"{each.name} {each.probability:.1%}") for each in explanation.classes), class_="classes"
    )
    alt = f"What the model saw of {explanation.path}; predicted: {best.name}."
    pictures = [element("figure", image(explanation.image, alt, _SIZE), element("figcaption", classes))]
    for name, pixels in overlays.items():
        target_name = target.name if methods[name].of_class else "every class"
        pictures.append(map_figure(pixels, name, target_name, explanation))
    return element(
        "article", heading, element("p", *said), element("div", *pictures, class_="images maps"), id=f"image{place}"
    )


def map_figure(pixels: np.ndarray, method: str, target: str, explanation: Explanation | None = None) -> Markup:
    """Returns a map on its image, with its method, and the areas under its curves if they are known.

    Args:
        pixels: the overlay, (height, width, 3) uint8.
        method: as it is written.
        target: the class that is explained.
        explanation: that has the curves; None: there are none.
    """
    caption = [element("strong", method), f" for {target}"]
    if explanation is not None and method in explanation.curves:
        areas = explanation.curves[method].areas()
        caption.append(element("small", ", ".join(f"{kind} {value:.3f}" for kind, value in areas.items())))
    alt = f"{method} for {target}."
    return element("figure", image(pixels, alt, _SIZE), element("figcaption", *caption))


def legend(methods: Sequence[Method] | Any) -> Markup:
    """Returns what the colors of maps mean."""
    words = {
        False: ("not important", "important for the class"),
        True: ("against the class", "for the class"),
    }
    items = []
    for signed in sorted({method.signed for method in methods}):
        colors = image(scale_of_colors(signed).repeat(12, 0), "Colors from low to high values.", 256)
        low, high = words[signed]
        items.append(element("li", f"{low} ", colors, f" {high}"))
    return element("ul", *items, class_="key")


def _section(name: str, heading: str, parts: Sequence[Markup]) -> Markup:
    return element(
        "section", element("h2", heading, id=f"{name}-heading"), *parts, id=name, aria_labelledby=f"{name}-heading"
    )


def _methods(methods: Mapping[str, Method]) -> Markup:
    rows = []
    for name, method in methods.items():
        options = ", ".join(f"{option}={value}" for option, value in dataclasses.asdict(method).items())
        rows.append([element("code", name), ABOUT[method.name], options or "none"])
    return table("How the maps were computed", ["method", "what it is", "options"], rows)


def _faithfulness(found: Mapping[str, Faithfulness], methods: Sequence[str]) -> list[Markup]:
    """Returns the table and the curves, with a sentence on which method is the best."""
    best, *_ = found
    images = _count(found[best].images, "image")
    verdict = (
        "No method is better than pixels in random order."
        if best == faithfulness.RANDOM
        else [element("strong", best), " is the most faithful of these, by the difference."]
    )
    about = (
        " The faster the probability of the class falls as the pixels that a map ranks highest are deleted, and the "
        "faster it rises as they are inserted into the blurred image, the better the map; below are the areas under "
        f"these curves, means over {images}. A map that knows nothing reaches what pixels in random order do."
    )
    rows = [
        [name, *(number(x, f"{x:.4f}") for x in (each.deletion, each.insertion, each.overall))]
        for name, each in found.items()
    ]
    heading = ["method", "deletion, lower is better", "insertion, higher is better", "difference"]
    alt = "Curves of deletion and insertion, by method; the areas are in the table."
    drawn = drawing.svg(faithfulness.figure(found, methods), "curves", alt)
    return [
        element("p", join([verdict]), about),
        table("Areas under the curves", heading, rows),
        element("figure", drawn, class_="drawing large", tabindex=0),
    ]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
