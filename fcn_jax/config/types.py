"""Types of settings that the sections of a recipe share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import core_schema


def _number(value: Any) -> Any:
    """Reject values that Pydantic would convert: true to 1, and "8" to 8."""
    if isinstance(value, bool | str):
        raise ValueError("expected a number, without quotes")
    return value


def _axis_size(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("expected an integer of at least 1, or -1 for the remaining devices")
    return value


def _path(value: Any) -> Any:
    if isinstance(value, str) and (not value.strip() or "\0" in value):
        raise ValueError("expected the path of a file or folder; leave the setting out for none")
    return value


class OrAuto:
    """Mark of a setting that may also be "auto", which `fcn_jax.train.auto` replaces by a value.

    The static type of the setting is that of the value.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """The schema of the value, or the string "auto"."""
        return core_schema.no_info_wrap_validator_function(
            lambda value, validate: value if value == AUTO else validate(value),
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """The JSON schema of the value, or "auto"."""
        return {"anyOf": [handler(schema), {"enum": [AUTO]}]}


AUTO = "auto"
NUMBER = BeforeValidator(_number)
Number = Annotated[float, NUMBER]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), NUMBER]
Positive = Annotated[float, Field(gt=0.0), NUMBER]
NotNegative = Annotated[float, Field(ge=0.0), NUMBER]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0), NUMBER]
Share = Annotated[float, Field(gt=0.0, lt=1.0), NUMBER]
AtLeastOne = Annotated[float, Field(ge=1.0), NUMBER]
Count = Annotated[int, Field(ge=1), NUMBER]
CountOrZero = Annotated[int, Field(ge=0), NUMBER]
StepCount = Annotated[int, Field(ge=0, lt=2**31), NUMBER]
AxisSize = Annotated[int, NUMBER, AfterValidator(_axis_size)]
Seed = Annotated[int, Field(ge=0, lt=2**32), NUMBER]
Flag = Annotated[bool, Field(strict=True)]
AnyPath = Annotated[str, BeforeValidator(_path)]


class Section(BaseModel):
    """A table of settings."""

    # The docstring under a setting is its description.
    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def short(value: Any) -> str:
    """A value as it is shown in messages: at most 160 characters of its `repr`."""
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:160]}..."
