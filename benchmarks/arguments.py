"""Command-line arguments that several benchmarks share."""

from __future__ import annotations

import argparse
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser that adds the default of an option to its help text."""

    def __init__(self, name: str, doc: str) -> None:
        """Create a parser.

        Args:
            name: name of the module.
            doc: docstring of the module, whose first line is the description.
        """
        super().__init__(prog=f"python -m {name}", description=doc.splitlines()[0])

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument as `argparse.ArgumentParser.add_argument` does."""
        default = options.get("default")
        if default not in (None, [], "", argparse.SUPPRESS):
            text = " ".join(map(str, default)) if isinstance(default, tuple) else default
            options["help"] += f" (default: {text})"
        return super().add_argument(*names, **options)

    def add_size(self, text: str = "image size in pixels") -> None:
        """Add `--size` with a help text."""
        self.add_argument(
            "--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"), help=text
        )

    def add_setting(self, *, batch: int, dtype: str = "float32") -> None:
        """Add `--batch`, `--size` and `--dtype` with these defaults."""
        self.add_argument("--batch", type=int, default=batch, help="images in a batch")
        self.add_size()
        self.add_argument(
            "--dtype", choices=("float32", "bfloat16"), default=dtype, help="compute dtype"
        )

    def add_head_and_device(self) -> None:
        """Add `--head` and `--device`. Requires PyTorch."""
        import torch

        self.add_argument("--head", default="fcn32s", help="registered head of a backbone")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.add_argument("--device", choices=("cpu", "cuda"), default=device, help="device")

    def add_recipe(self, *, optional: bool = False) -> None:
        """Add a recipe, which may be optional, `--data` and `--set`."""
        number = {"nargs": "?"} if optional else {}
        self.add_argument("recipe", help="name of a recipe, or a TOML file", **number)
        self.add_argument("--data", help="folder of the dataset")
        self.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="change a setting; may be repeated",
        )
