"""From a recipe or a folder to the splits of a dataset."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fcn_jax import recipes
from fcn_jax.config import Config, parse
from fcn_jax.data import splits
from fcn_jax.data.datasets.recognize import recognize
from fcn_jax.data.labels.remap import Remap
from fcn_jax.data.multilabel import multilabel
from fcn_jax.data.source import Source
from fcn_jax.errors import ConfigError, DataError, UnknownSplitError, did_you_mean
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import Dataset
from fcn_jax.train import auto

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


@dataclasses.dataclass(frozen=True)
class Opened:
    """Splits of a dataset.

    Attributes:
        config: the settings, with the classes that were found if `data.classes` is "auto".
        sources: source by the name of its split.
        errors: why other splits cannot be opened, by their names.
        notes: assumptions, one line each.
    """

    config: Config
    sources: Mapping[str, Source]
    errors: Mapping[str, str]
    notes: tuple[str, ...]


def open_splits(config: Config, only: str | None = None) -> Opened:
    """Open splits of a dataset as training does, without a look at their masks.

    Args:
        config: the settings of a training.
        only: the split to open; by default those of the recipe and all others that the dataset
            tells of.

    Raises:
        DataError: no split can be opened.
        ConfigError, PluginError: as in `fcn_jax.data.splits.open_splits`.
    """
    dataset = registry.default().dataset(config.data.dataset)
    config, found = auto.find_classes(config, dataset)
    data, root = config.data, Path(config.data.root) if config.data.root else None
    names = [only] if only else [data.train_split, data.val_split, *_available(dataset, root)]
    sources: dict[str, Source] = {}
    errors: dict[str, DataError] = {}
    for name in dict.fromkeys(names):
        try:
            source = splits.open_source(
                dataset, root, name, classes=data.classes, remap=Remap.of(data)
            )
            if config.model.task == "multilabel":
                source = multilabel(source, dataset.name)
            sources[name] = source
        except DataError as error:
            errors[name] = error
    if not sources:
        raise next(iter(errors.values()))
    # Images whose values fit no range are reported when they are decoded.
    scaled, _, assumed = splits.scaled(
        sources,
        data.value_range,
        channels=config.model.in_channels,
        keep_stored=config.model.mean is not None,
        skip_faulty=True,
    )
    notes = [*found, *(note for source in scaled.values() for note in source.notes), *assumed]
    reasons = {name: str(error) for name, error in errors.items()}
    return Opened(config, scaled, reasons, tuple(dict.fromkeys(notes)))


def _available(dataset: Dataset, root: Path | None) -> tuple[str, ...]:
    """The splits of a dataset, if it tells them."""
    try:
        dataset.open(root, _NO_SPLIT)
    except UnknownSplitError as error:
        return error.available
    except DataError:
        pass
    return ()
