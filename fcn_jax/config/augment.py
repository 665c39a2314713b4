"""The section `augment` of a recipe: a table for each further random transform of an image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from fcn_jax.config.types import NUMBER, Count, Fraction, Section, Share


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("expected [low, high] with low <= high")
    return pair


_ORDERED = AfterValidator(_ordered)
_Factor = Annotated[float, Field(ge=0.0, le=10.0), NUMBER]
_Pixels = Annotated[int, Field(ge=1, le=2**15), NUMBER]
_Tries = Annotated[int, Field(ge=1, le=100), NUMBER]
_Quality = Annotated[int, Field(ge=1, le=100), NUMBER]
_Part = Annotated[float, Field(gt=0.0, le=1.0), NUMBER]
_Sigma = Annotated[float, Field(gt=0.0, le=100.0), NUMBER]


class ResizeConfig(Section):
    """Resize to a random shorter side."""

    shorter_side: Annotated[tuple[_Pixels, _Pixels], _ORDERED]
    """Range of the shorter side after the resize, in pixels. Replaces data.scale_range."""


class RotateConfig(Section):
    """Rotate about the center of the crop."""

    degrees: Annotated[float, Field(gt=0.0, le=180.0), NUMBER] = 10.0
    """Largest angle, in both directions."""
    probability: Fraction = 0.5
    """Probability that an image is rotated."""


class CropConfig(Section):
    """Choose the crop by its classes."""

    max_class_share: Share = 0.75
    """Largest share of one class in the pixels of the crop that are not ignored."""
    tries: _Tries = 10
    """Crops that are tried. If none fits, the one with the smallest share is taken."""


class VerticalFlipConfig(Section):
    """Flip top to bottom."""

    probability: Fraction = 0.5
    """Probability that an image is flipped."""


class PhotometricConfig(Section):
    """Change brightness, contrast, saturation and hue, each with probability 1/2."""

    brightness_delta: Annotated[float, Field(ge=0.0, le=255.0), NUMBER] = 32.0
    """Largest number that is added to all values, 0 to 255."""
    contrast_range: Annotated[tuple[_Factor, _Factor], _ORDERED] = (0.5, 1.5)
    """Range of the factor of all values."""
    saturation_range: Annotated[tuple[_Factor, _Factor], _ORDERED] = (0.5, 1.5)
    """Range of the factor of the saturation."""
    hue_delta: Annotated[int, Field(ge=0, le=90), NUMBER] = 18
    """Largest change of the hue, in steps of 2 degrees, as OpenCV counts."""


class BlurConfig(Section):
    """Gaussian blur."""

    sigma: Annotated[tuple[_Sigma, _Sigma], _ORDERED] = (0.1, 2.0)
    """Range of the standard deviation, in pixels."""
    probability: Fraction = 0.5
    """Probability that an image is blurred."""


class JpegConfig(Section):
    """Compress as JPEG."""

    quality: Annotated[tuple[_Quality, _Quality], _ORDERED] = (30, 95)
    """Range of the quality, 1 to 100."""
    probability: Fraction = 0.5
    """Probability that an image is compressed."""


class CutoutConfig(Section):
    """Blacken rectangles."""

    holes: Count = 1
    """Number of rectangles."""
    size: Annotated[tuple[_Part, _Part], _ORDERED] = (0.1, 0.3)
    """Range of the height and width of a rectangle, as parts of the crop's."""
    labels: Literal["ignore", "keep"] = "ignore"
    """Labels in the rectangles: ignored, or kept."""
    probability: Fraction = 0.5
    """Probability that an image gets rectangles."""


def _pipeline(value: Any) -> Any:
    """Replace the path of a serialized pipeline by the pipeline, so that a run records it."""
    if value is None:
        return None
    if isinstance(value, str):
        value = _read(Path(value))
    elif not isinstance(value, Mapping):
        raise ValueError("expected the path of a file that albumentations.save wrote")
    if not isinstance(value, Mapping) or not isinstance(value.get("transform"), Mapping):
        raise ValueError("not a file that albumentations.save wrote (it has no table 'transform')")
    return value


def _read(path: Path) -> Any:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError("expected a file whose name ends in .json, .yaml or .yml")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text file in UTF-8 ({error})") from error
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
    try:
        import yaml
    except ImportError as error:
        raise ValueError(
            "YAML needs the package PyYAML; install fcn-jax[albumentations], or save as JSON"
        ) from error
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


class AugmentConfig(Section):
    """Further random transforms of training images. A table switches a transform on."""

    resize: ResizeConfig | None = None
    """Resize to a random shorter side."""
    rotate: RotateConfig | None = None
    """Rotate about the center of the crop."""
    crop: CropConfig | None = None
    """Choose the crop by its classes."""
    vertical_flip: VerticalFlipConfig | None = None
    """Flip top to bottom."""
    photometric: PhotometricConfig | None = None
    """Change brightness, contrast, saturation and hue as mmsegmentation does."""
    blur: BlurConfig | None = None
    """Gaussian blur."""
    jpeg: JpegConfig | None = None
    """Compress as JPEG."""
    cutout: CutoutConfig | None = None
    """Blacken rectangles."""
    albumentations: Annotated[dict[str, Any] | None, BeforeValidator(_pipeline)] = None
    """Path of a pipeline that albumentations.save wrote. It replaces all other transforms except
    the crop.
    """


AUGMENT_TABLES: Mapping[str, type[Section]] = {
    "resize": ResizeConfig,
    "rotate": RotateConfig,
    "crop": CropConfig,
    "vertical_flip": VerticalFlipConfig,
    "photometric": PhotometricConfig,
    "blur": BlurConfig,
    "jpeg": JpegConfig,
    "cutout": CutoutConfig,
}
"""The tables of `AugmentConfig` by name."""
