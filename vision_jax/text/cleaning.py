"""What is done to a text before it is cut into tokens: the rules of CLIP and of SigLIP."""

import html
import string
from typing import Any

from vision_jax.errors import ConfigError

_NO_PUNCTUATION = str.maketrans({"_": " ", **{sign: "" for sign in string.punctuation if sign != "_"}})


def clean_for_clip(text: str) -> str:
    """Returns a text as OpenAI's CLIP cleans it (openai/CLIP, `clip/simple_tokenizer.py`).

    Wrongly decoded characters are repaired by ftfy, which also straightens quotes; HTML's names of characters are
    replaced twice, white space becomes single spaces, and letters small ones.

    Raises:
        ConfigError: if ftfy is not installed.
    """
    return " ".join(html.unescape(html.unescape(_ftfy().fix_text(text))).split()).lower()


def clean_for_siglip(text: str) -> str:
    """Returns a text as big_vision's models of images and words have it: without ASCII punctuation, in small letters.

    An underscore becomes a space, and white space single spaces.
    """
    return " ".join(text.translate(_NO_PUNCTUATION).lower().split())


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise ConfigError("CLIP's texts are cleaned by ftfy: pip install 'vision_jax[clip]'.") from error
    return ftfy
