"""Names of images and masks: their endings, and the rules by which one follows from the other."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
"""File name endings of images, in lower case."""

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".npy")
"""File name endings of masks, in lower case: formats that are or can be lossless."""

NAMED_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
"""All endings of images and masks, in lower case."""

_SEPARATORS = "_-. "
_IMAGE_WORD = (
    "(?:leftimg8bit|images?|imgs?|im|frames?|photos?|pictures?|pics?|rgb|sat|satellite|colou?r"
    "|input|original|orig|raw|x)"
)
_IMAGE_PREFIX = re.compile(rf"{_IMAGE_WORD}(?:[_\-. ]+|(?=\d))")
_IMAGE_SUFFIX = re.compile(rf"(?:[_\-. ]+|(?<=\d)){_IMAGE_WORD}$")
_MASK_WORDS = (
    "(?:masks?|labels?|labelids|labeltrainids|lbls?|lab|gts?|ground_?truth|gtfine|truth|seg"
    "|segmentations?|annotations?|annots?|anns?|anno|targets?|y|l|m)"
)
_MASK_WORD = re.compile(rf"[_\-. ]*{_MASK_WORDS}[_\-. ]*")
_MASK_OF = re.compile(rf"(?P<stem>.+?)[_\-. ]+{_MASK_WORDS}|{_MASK_WORDS}[_\-. ]+(?P<other>.+)")


def ending(name: str) -> str:
    """The ending of a file's name, in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def stem(name: str) -> str:
    """A name without its ending, if that is an image's."""
    return os.path.splitext(name)[0] if ending(name) in NAMED_SUFFIXES else name


def composed(name: str) -> str:
    """A name in composed Unicode form."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A name in composed Unicode form and lower case."""
    return composed(name).casefold()


def loose(name: str) -> str:
    """A folded name without padding zeros and with one kind of separator."""
    return re.sub(r"(?<!\d)0+(?=\d)", "", re.sub(r"[_\-. ]+", "_", folded(name)))


def base(key: str) -> str:
    """The part of a name after its folders."""
    return key.rpartition("/")[2]


def folders(key: str) -> tuple[str, ...]:
    """The folders in a name."""
    return tuple(key.split("/")[:-1])


def path_parts(text: str) -> list[str]:
    """The parts of a path with slashes or backslashes."""
    return [part for part in text.replace("\\", "/").split("/") if part not in ("", ".")]


def image_of(mask: str) -> str | None:
    """The folded name of the image of `a_mask` or `mask_a`; None if it is not such a name."""
    match = _MASK_OF.fullmatch(mask)
    return match and (match["stem"] or match["other"])


def common_prefix(names: Iterable[str]) -> str:
    """The common beginning of all names, without the first digits of a number."""
    prefix = os.path.commonprefix([base(name) for name in names])  # noqa: RUF071
    return prefix.rstrip("0123456789")


class Affixes(NamedTuple):
    """A rule for masks' names: cut a prefix and a suffix off the image's name, and add others."""

    cut_prefix: str = ""
    cut_suffix: str = ""
    prefix: str = ""
    suffix: str = ""

    def mask_of(self, name: str) -> str | None:
        """The mask's name; None if the image's name does not have the affixes to cut."""
        if not (name.startswith(self.cut_prefix) and name.endswith(self.cut_suffix)):
            return None
        core = name[len(self.cut_prefix) : len(name) - len(self.cut_suffix)]
        return f"{self.prefix}{core}{self.suffix}" if core else None

    def phrase(self, image: str, mask: str) -> str:
        """A phrase such as "end in `_mask` instead of `_sat`".

        Args:
            image: the name of an image, whose upper and lower case the phrase has.
            mask: the name of its mask.
        """
        image, mask = composed(base(image)), composed(base(mask))
        written = Affixes(
            image[: len(self.cut_prefix)],
            image[len(image) - len(self.cut_suffix) :],
            mask[: len(self.prefix)],
            mask[len(mask) - len(self.suffix) :],
        )
        if Affixes(*map(str.casefold, written)) != self:
            written = self
        said = []
        for verb, cut, added in (
            ("begin with", written.cut_prefix, written.prefix),
            ("end in", written.cut_suffix, written.suffix),
        ):
            if added:
                said.append(f"{verb} `{added}`{cut and f' instead of `{cut}`'}")
            elif cut:
                said.append(f"lack `{cut}`")
        return " and ".join(said)


class MaskNames:
    """Masks by the last part of their names, in one spelling."""

    def __init__(self, masks: Iterable[str], form: Callable[[str], str]) -> None:
        """Index names of masks in the spelling that `form` gives: `folded` or `loose`."""
        self._form = form
        self._known: dict[str, list[str]] = {}
        for key in masks:
            self._known.setdefault(form(base(key)), []).append(key)

    def find(self, image: str, rule: Affixes) -> str | None:
        """The mask of an image by a rule.

        It lies in the image's folder, or is the only one in a folder above or below it.
        """
        name = rule.mask_of(self._form(base(image)))
        keys = self._known.get(name, []) if name is not None else []
        own = folders(image)
        keys = [key for key in keys if folders(key) == own] or [
            k for k in keys if set(own) <= set(folders(k)) or set(folders(k)) <= set(own)
        ]
        return keys[0] if len(keys) == 1 else None

    def rules(self, images: Sequence[str]) -> list[Affixes]:
        """The rules by which one of the first images has a mask; the rule without affixes first."""
        found = {Affixes()}
        for image in images[:3]:
            name = self._form(base(image))
            prefix, suffix = _IMAGE_PREFIX.match(name), _IMAGE_SUFFIX.search(name)
            for start in {0, prefix.end() if prefix else 0}:
                for end in {len(name), suffix.start() if suffix else len(name)}:
                    core = name[start:end]
                    if core:
                        found |= {
                            Affixes(name[:start], name[end:], before, after)
                            for mask in self._known
                            for before, after in _around(core, mask)
                        }
        return sorted(found)


def _around(core: str, mask: str) -> Iterable[tuple[str, str]]:
    """The affixes around each place of an image's name in a mask's, if they are separate words."""
    at = mask.find(core)
    while at >= 0:
        before, after = mask[:at], mask[at + len(core) :]
        if all(
            not text or text[edge] in _SEPARATORS or _MASK_WORD.fullmatch(text)
            for text, edge in ((before, -1), (after, 0))
        ):
            yield before, after
        at = mask.find(core, at + 1)
