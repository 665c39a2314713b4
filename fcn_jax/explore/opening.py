"""From a recipe or a folder to the splits of a dataset."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fcn_jax import recipes
from fcn_jax.config import Config, parse
from fcn_jax.data import value_range
from fcn_jax.data.datasets.recognize import recognize
from fcn_jax.data.source import Source
from fcn_jax.errors import ConfigError, DataError, PluginError, UnknownSplitError, did_you_mean
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Dataset
from fcn_jax.runtime.progress import Progress

_NO_SPLIT = "no-such-split"
"""A split that no dataset has: the error on it names those that exist."""


def settings(
    recipe_or_data: str, *, data: str | None = None, changes: Sequence[str] = ()
) -> Config:
    """The settings with which a dataset is looked at.

    Args:
        recipe_or_data: name of a shipped recipe, a recipe file that ends in `.toml`, or a folder
            with a dataset. A folder is read as the dataset whose layout it has, otherwise as
            `folder`; the other settings are those of the recipe of that name, or the defaults. A
            name of a recipe is never a folder; `./NAME` is.
        data: folder of the recipe's dataset.
        changes: settings as in `fcn_jax.recipes.override`.

    Raises:
        ConfigError: there is no such recipe or folder, or a setting is wrong.
    """
    folder = Path(recipe_or_data)
    if recipe_or_data in recipes.names() or recipe_or_data.endswith(".toml"):
        table = recipes.read_recipe(recipe_or_data)
    elif folder.is_dir():
        if data is not None:
            raise ConfigError(
                f"{recipe_or_data} is the folder of a dataset, and --data {data} names another; "
                "give one of them"
            )
        dataset, data = dataset_of(folder), recipe_or_data
        table = recipes.read_recipe(dataset) if dataset in recipes.names() else {}
        table = recipes.override(table, [f"data.dataset={registry.OWN_DISTRIBUTION}:{dataset}"])
    else:
        raise ConfigError(
            f"'{recipe_or_data}' is neither a recipe nor a folder with a dataset. "
            f"{did_you_mean(recipe_or_data, recipes.names())} "
            "The name of a recipe file must end in .toml."
        )
    root = [] if data is None else [f"data.root={json.dumps(data)}"]
    return parse(recipes.override(table, [*changes, *root]), recipe_or_data)


def dataset_of(root: Path) -> str:
    """The registered dataset whose layout a folder has; `folder` if nothing is known."""
    if all((root / name).is_dir() for name in ("images", "masks")):
        return "folder"
    return recognize(root) or "folder"


def open_splits(config: Config) -> tuple[dict[str, Source], dict[str, str]]:
    """Open all splits of a dataset, without a look at their masks.

    Images are scaled to 8 bits as in training (`fcn_jax.data.splits.open_splits`).

    Args:
        config: with the dataset, its folder and the splits that are trained and evaluated on.

    Returns:
        Sources by the name of their split; and the errors of splits that cannot be opened.

    Raises:
        DataError: none can be opened.
        PluginError: as in `fcn_jax.data.splits.open_splits`.
    """
    dataset = registry.default().dataset(config.data.dataset)
    root = Path(config.data.root) if config.data.root else None
    used = dict.fromkeys((config.data.train_split, config.data.val_split))
    sources: dict[str, Source] = {}
    errors: dict[str, DataError] = {}
    for name in dict.fromkeys([*used, *_available(dataset, root)]):
        try:
            sources[name] = open_split(dataset, root, name)
        except DataError as error:
            errors[name] = error
    if not sources:
        raise next(iter(errors.values()))
    return _with_range(config, sources), {name: str(error) for name, error in errors.items()}


def open_split(dataset: Dataset, root: Path | None, name: str) -> Source:
    """Open one split. Raises `DataError` or `PluginError`."""
    source = dataset.open(root, name)
    if not isinstance(source, Source):
        raise PluginError(
            f"dataset '{dataset.name}' opens split '{name}' as a {type(source).__name__}; it must "
            "be an fcn_jax.api.Source"
        )
    return source


def open_one(config: Config, split: str) -> Source:
    """Open one split as `open_splits` opens all. Raises `DataError` or `PluginError`."""
    dataset = registry.default().dataset(config.data.dataset)
    root = Path(config.data.root) if config.data.root else None
    return _with_range(config, {split: open_split(dataset, root, split)})[split]


def _available(dataset: Dataset, root: Path | None) -> tuple[str, ...]:
    """The splits of a dataset, if it tells them."""
    try:
        dataset.open(root, _NO_SPLIT)
    except UnknownSplitError as error:
        return error.available
    except DataError:
        pass
    return ()


def _with_range(config: Config, sources: dict[str, Source]) -> dict[str, Source]:
    chosen: value_range.Range | value_range.Assumed | None = config.data.value_range
    if chosen is None:
        files = [
            record.image
            for source in sources.values()
            if isinstance(source[0].image, Path)
            for record in source
        ]
        with Progress("reading bit depths", len(files)) as progress:
            # Images whose values fit no range are reported when they are decoded.
            chosen = value_range.assumed(files, progress=progress.update, skip_faulty=True)
    opened = {name: value_range.with_range(source, chosen) for name, source in sources.items()}
    note = getattr(chosen, "note", None)
    if note:
        for source in opened.values():
            said = f"{note}; data.value_range sets another range"
            source.notes = (*source.notes, said)
    return opened
