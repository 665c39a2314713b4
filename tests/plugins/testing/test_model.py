"""check_model: correct models pass, and each broken promise is found."""

import dataclasses
import re

import pytest

from fcn_jax.api import Model, ModelSpec, Weights
from fcn_jax.testing import check_model


def whole(num_classes=3, **fields):
    names = {field.name for field in dataclasses.fields(ModelSpec)}
    settings = {name: value for name, value in fields.items() if name in names}
    return Model(
        **{
            "name": "whole",
            "summary": "for tests",
            "spec": ModelSpec(**{"num_classes": num_classes, **settings}),
            **{name: value for name, value in fields.items() if name not in names},
        }
    )


def test_accepts_a_correct_model():
    check_model("fcn32s_resnet18")
    check_model(whole(aux_head="fcn", output_stride=16))


GOOD_WEIGHTS = Weights("https://example.org/net-0123abcd.pth", "0123abcd")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (
            whole(backbone="resnet81"),
            "its parts do not make a model: no backbone is named 'resnet81'. Did you mean",
        ),
        (whole(head="fcn31s"), "no head is named 'fcn31s'"),
        (whole(head_options={"depth": 3}), "unknown key 'depth'"),
        (whole(output_stride=7), "no output stride 7; it offers 32, 16, 8"),
        (whole(aux_head="fcn", aux_feature="layer9"), "aux_feature is 'layer9'"),
        (whole(num_classes=0), "num_classes is 0; it must be from 1 to 255"),
        (whole(name="dist:whole"), "must be one word without a colon"),
        (whole(summary="two\nlines"), "the summary must be one line"),
        (whole(api_version=(3, 0)), "api_version"),
        (
            whole(weights={"V1": dataclasses.replace(GOOD_WEIGHTS, sha256="0123")}),
            "at least 8 leading hexadecimal digits",
        ),
        (
            whole(weights={"V1": dataclasses.replace(GOOD_WEIGHTS, url="net.pth")}),
            "must be the address of a .pth or .safetensors",
        ),
        (whole(weights={"v1.pth": GOOD_WEIGHTS}), "looks like a file"),
    ],
)
def test_rejects_a_broken_promise(broken, complaint):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_model(broken)


@pytest.mark.needs_torch
def test_rejects_a_reference_with_other_tensors():
    import torch

    with pytest.raises(AssertionError, match="against its PyTorch reference: "):
        check_model(
            whole(
                reference_model=lambda num_classes, aux: torch.nn.Sequential(
                    torch.nn.Conv2d(3, num_classes, 1)
                )
            )
        )
