"""The registry: reading entry points, loading descriptors, and errors of wrong plugins."""

import dataclasses
import json
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

from fcn_jax import cli
from fcn_jax.api import API_VERSION, Backbone
from fcn_jax.errors import ConfigError, PluginError
from fcn_jax.plugins import registry
from fcn_jax.plugins.options import validate
from fcn_jax.plugins.registry import Entry, Registry
from tests.helpers.installing import GOOD, Site


@dataclasses.dataclass(frozen=True)
class Nested:
    rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class Options:
    width: int = 64
    dropout: float = 0.5
    sizes: tuple[int, ...] = ()
    nested: Nested = Nested()

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1")


OPEN = Backbone(
    name="open", summary="", features=lambda *_: (), build=lambda *_: None, options=Options
)


def test_reads_metadata_without_importing_plugins(site):
    site.module("lazy_net", "raise RuntimeError('imported')")
    site.distribution(
        "my-nets", "1.2", backbones={"net": "lazy_net:NET"}, heads={"top": "lazy_net:TOP"}
    )
    found = site.registry()
    assert found.entries() == [
        Entry("backbones", "net", "my-nets", "1.2", "lazy_net:NET"),
        Entry("heads", "top", "my-nets", "1.2", "lazy_net:TOP"),
    ]
    assert found.entries("heads") == [Entry("heads", "top", "my-nets", "1.2", "lazy_net:TOP")]
    assert found.names("backbones") == ["net"]
    assert "lazy_net" not in sys.modules


def test_registry_does_not_import_jax():
    code = (
        "import sys, fcn_jax.plugins.registry; "
        "sys.exit(any(m in sys.modules for m in ('jax', 'flax', 'torch', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_loads_a_plugin_by_name_and_by_full_name(site):
    site.module("good_net", GOOD)
    site.distribution("My.Nets", "1.2", backbones={"net": "good_net:NET"})
    found = site.registry()
    assert found.backbone("net").summary == "a net"
    assert found.backbone("my-nets:net") is found.backbone("net")


def test_kinds_have_separate_names(site):
    site.module(
        "kinds",
        """
        from fcn_jax.api import Dataset, Head, Model, ModelSpec

        HEAD = Head(name="x", summary="", select=lambda *_: (), build=lambda *_: None)
        MODEL = Model(name="x", summary="", spec=ModelSpec("x", "x", 2))
        DATASET = Dataset(name="x", summary="", open=lambda *_: None)
        """,
    )
    site.distribution(
        "kinds",
        "1",
        heads={"x": "kinds:HEAD"},
        models={"x": "kinds:MODEL"},
        datasets={"x": "kinds:DATASET"},
    )
    found = site.registry()
    loaded = (found.head("x"), found.model("x"), found.dataset("x"))
    assert [type(descriptor).__name__ for descriptor in loaded] == ["Head", "Model", "Dataset"]
    with pytest.raises(ConfigError, match="no backbone is named 'x'"):
        found.backbone("x")


def test_suggests_the_nearest_known_name(site):
    site.distribution("nets", "1", backbones={"resnet18": "a:A", "vgg16": "a:B"})
    with pytest.raises(
        ConfigError,
        match=r"no backbone is named 'resnet81'\. Did you mean 'resnet18'\? "
        r"Available: resnet18, vgg16\.",
    ):
        site.registry().backbone("resnet81")
    with pytest.raises(
        ConfigError,
        match=r"'nets:resnet81': .*\. Did you mean 'nets:resnet18'\? "
        r"Available: nets:resnet18, nets:vgg16",
    ):
        site.registry().backbone("nets:resnet81")


@pytest.fixture
def reread():
    """Read the installed distributions again, for this test only."""
    for cached in (registry._installed, registry._registry):
        cached.cache_clear()
    yield
    for cached in (registry._installed, registry._registry):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "other-nets:vgg16",
            "other-nets is not installed: pip install other-nets. "
            "Available: My.Nets:resnet18, My.Nets:vgg11.",
        ),
        (
            "my-nets:vgg16",
            "My.Nets 1 registers backbones resnet18, vgg11; heads top. "
            "Did you mean 'My.Nets:vgg11'?",
        ),
        ("Off:vgg16", "FCN_JAX_DISABLE_PLUGINS disables Off. "),
        ("torn:vgg16", "torn is installed, but its entry points cannot be read: "),
        ("bare:vgg16", "bare is installed, but registers nothing for fcn-jax. "),
        (
            "https://example.org/a.whl:vgg16",
            "the part before ':' is not a valid name of a distribution. ",
        ),
        ("--pre other:vgg16", "the part before ':' is not a valid name of a distribution. "),
    ],
)
def test_unknown_full_name_explains_the_state_of_its_distribution(site, reread, name, complaint):
    site.distribution(
        "My.Nets", "1", backbones={"resnet18": "a:A", "vgg11": "a:C"}, heads={"top": "a:B"}
    )
    site.distribution("off", "1", backbones={"resnet18": "a:A"})
    site.distribution("bare", "1")
    found = site.registry("off")
    site.distribution("torn", "1", backbones={"other": "x:X"})
    (site.folder / "torn-1.dist-info" / "entry_points.txt").write_text(
        "[fcn_jax.backbones]\nno equals sign\n"
    )
    with pytest.raises(ConfigError) as caught:
        found.backbone(name)
    assert f"no backbone is named '{name}': {complaint}" in str(caught.value)


def test_empty_registry_asks_whether_the_package_is_installed():
    with pytest.raises(ConfigError, match="is fcn-jax installed"):
        Registry([]).backbone("resnet18")


def test_rejects_an_unknown_kind():
    with pytest.raises(ValueError, match="kind is 'backbone'; it must be one of backbones, heads"):
        Registry([]).names("backbone")


def test_broken_plugin_does_not_affect_others_and_keeps_its_exception(site):
    site.module("good_net", GOOD)
    site.module("broken_net", "import this_is_not_installed_anywhere")
    site.distribution("nets", "1", backbones={"net": "good_net:NET", "broken": "broken_net:NET"})
    found = site.registry()
    for _ in range(2):
        with pytest.raises(
            PluginError,
            match=r"backbone 'broken' of nets 1 \(broken_net:NET\) cannot be loaded: Module.*"
            r"\(broken_net\.py, line 1\)",
        ) as caught:
            found.backbone("broken")
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert found.backbone("net").name == "net"


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "def f(:", "X = 1"])
def test_any_exception_of_a_module_becomes_a_plugin_error(site, code):
    site.module("odd_net", code)
    site.distribution("nets", "1", backbones={"net": "odd_net:NET"})
    with pytest.raises(PluginError, match="cannot be loaded") as caught:
        site.registry().backbone("net")
    assert str(caught.value).count("odd_net.py") <= 1


def test_rejects_a_name_claimed_twice_and_names_both_distributions(site):
    site.module("good_net", GOOD)
    site.distribution("first", "1.0", backbones={"net": "good_net:NET"})
    site.distribution("second", "2.0", backbones={"net": "elsewhere:NET"})
    found = site.registry()
    assert found.names("backbones") == ["net"]
    with pytest.raises(
        PluginError,
        match=r"registered by first 1\.0 and second 2\.0: write 'first:net' or 'second:net'",
    ):
        found.backbone("net")
    assert found.backbone("first:net").name == "net"
    assert found.record("backbones", "second:net") == {
        "name": "net",
        "distribution": "second",
        "version": "2.0",
    }


def test_accepts_a_distribution_that_is_listed_twice(site, tmp_path_factory):
    site.module("good_net", GOOD)
    site.distribution("my-nets", "1.1", backbones={"net": "good_net:NET"})
    other = Site(tmp_path_factory.mktemp("other"))
    other.distribution("My_Nets", "1.0", backbones={"net": "old_net:NET"})
    found = Registry([*site.entries(), *other.entries()])
    assert found.backbone("net").name == "net"
    assert [entry.version for entry in found.entries()] == ["1.1"]


def test_first_copy_of_a_distribution_hides_the_second(site, reread, tmp_path_factory, monkeypatch):
    other = Site(tmp_path_factory.mktemp("other"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(other.folder)])
    site.distribution("my-nets", "1.1", backbones={"net": "good_net:NET"})
    other.distribution("My_Nets", "1.0", backbones={"net": "old_net:NET", "dropped": "old_net:OLD"})
    site.distribution("bare", "2.0")
    (other.folder / "bare.egg-info").mkdir()
    (other.folder / "bare.egg-info" / "PKG-INFO").write_text("Name: bare\nVersion: 1.0\n")
    (other.folder / "bare.egg-info" / "entry_points.txt").write_text(
        "[fcn_jax.heads]\ngone = old_net:HEAD\n"
    )
    names = {entry.full_name for entry in registry.default().entries()}
    assert "my-nets:net" in names
    assert not [name for name in names if name.endswith((":dropped", ":gone"))]


def test_accepts_entries_made_by_hand(site):
    site.module("good_net", GOOD)
    site.distribution("my-nets", "1.0", backbones={"net": "old_net:NET", "other": "x:X"})
    found = Registry([Entry("backbones", "net", "My-Nets", "2.0", "good_net:NET"), *site.entries()])
    assert found.backbone("net").summary == "a net"
    assert [entry.full_name for entry in found.entries()] == ["My-Nets:net", "my-nets:other"]


def test_rejects_a_descriptor_of_another_type(site):
    site.module("odd_net", "NET = 3")
    site.distribution("nets", "1", backbones={"net": "odd_net:NET"})
    with pytest.raises(PluginError, match=r"is a int; it must be an fcn_jax\.api\.Backbone"):
        site.registry().backbone("net")


def test_rejects_a_descriptor_of_another_name(site):
    site.module("good_net", GOOD)
    site.distribution("nets", "1", backbones={"ten": "good_net:NET"})
    with pytest.raises(PluginError, match="calls itself 'net'"):
        site.registry().backbone("ten")


@pytest.mark.parametrize(
    ("version", "side"),
    [
        ((API_VERSION[0] + 1, 0), "upgrade fcn-jax"),
        ((API_VERSION[0], API_VERSION[1] + 1), "upgrade fcn-jax"),
        (
            (API_VERSION[0] - 1, 9),
            "upgrade nets. Its author must change it: delete the field `maskable`",
        ),
        ("1.0", "must be two integers"),
    ],
)
def test_rejects_another_version_of_the_contract_and_names_the_side_to_upgrade(site, version, side):
    site.module("good_net", GOOD.replace("name=", f"api_version={version!r}, name="))
    site.distribution("nets", "1", backbones={"net": "good_net:NET"})
    with pytest.raises(PluginError, match=side):
        site.registry().backbone("net")


@pytest.mark.parametrize(
    ("disable", "left"),
    [
        ("", {"fcn-jax", "a-b", "c"}),
        ("1", {"fcn-jax"}),
        ("all", {"fcn-jax"}),
        ("A.B", {"fcn-jax", "c"}),
        ("c, fcn_jax", {"a-b"}),
    ],
)
def test_disables_distributions(site, disable, left):
    for distribution in ("fcn-jax", "a-b", "c"):
        site.distribution(distribution, "1", backbones={f"net-{distribution}": "x:X"})
    found = site.registry(disable)
    assert {entry.distribution for entry in found.entries()} == left
    for off in {"fcn-jax", "a-b", "c"} - left:
        with pytest.raises(ConfigError, match=f"disabled: FCN_JAX_DISABLE_PLUGINS disables {off}"):
            found.backbone(f"net-{off}")


def test_disabling_one_distribution_resolves_a_conflict(site):
    site.module("good_net", GOOD)
    site.distribution("first", "1.0", backbones={"net": "good_net:NET"})
    site.distribution("second", "2.0", backbones={"net": "elsewhere:NET"})
    assert site.registry("second").backbone("net").name == "net"


def test_default_registry_follows_the_environment(monkeypatch):
    monkeypatch.setenv(registry.DISABLE_VARIABLE, "all")
    assert {entry.distribution for entry in registry.default().entries()} <= {"fcn-jax"}
    assert registry.default() is registry.default()


def test_reports_a_misspelled_entry_point_group(site, reread):
    site.distribution("typo", "1", backbone={"net": "x:X"})
    assert registry.faults()["typo"] == (
        "its entry-point group 'fcn_jax.backbone' is unknown, so 'net' is not registered. Did you "
        "mean 'fcn_jax.backbones'? Available: fcn_jax.backbones, fcn_jax.datasets, fcn_jax.heads, "
        "fcn_jax.losses, fcn_jax.models."
    )


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (GOOD.replace('name="net"', 'name="net", maskable=True'), "delete the field `maskable`"),
        (
            'from fcn_jax.api import Model; NET = Model(name="net", summary="", backbone="x")',
            r"give the parts of a Model as `spec=ModelSpec\(...\)`",
        ),
        ("from fcn_jax.api import require_no_offset", "heads are refused .* `handles_offset=True`"),
    ],
)
def test_explains_how_to_change_a_plugin_of_version_1(site, code, advice):
    site.module("old_net", code)
    site.distribution("nets", "1", backbones={"net": "old_net:NET"})
    with pytest.raises(
        PluginError, match=f"version 2.0 of the plugin contract changed this.*{advice}"
    ):
        site.registry().backbone("net")


def test_names_the_last_line_of_the_plugins_own_code(site):
    site.module(
        "deep_net", "import json\n\ndef read(text):\n    return json.loads(text)\n\nread('{')"
    )
    site.distribution("nets", "1", backbones={"net": "deep_net:NET"})
    with pytest.raises(PluginError, match=r"\(deep_net\.py, line 4, in read\)$"):
        site.registry().backbone("net")


def test_record_can_be_written_as_json(site):
    site.distribution("nets", "1.5", backbones={"net": "x:X"})
    record = site.registry().record("backbones", "net")
    assert json.loads(json.dumps(record)) == {
        "name": "net",
        "distribution": "nets",
        "version": "1.5",
    }


def test_builds_options_from_a_table():
    table = {"width": 8, "dropout": 0, "sizes": [1, 2], "nested": {"rate": 1.5}}
    assert validate(OPEN, table) == Options(8, 0.0, (1, 2), Nested(1.5))
    assert type(validate(OPEN, {})) is Options


def test_lists_all_problems_of_a_table():
    table = {"widht": 1, "dropout": "half", "sizes": 3, "nested": {"rat": 1}}
    with pytest.raises(ConfigError) as caught:
        validate(OPEN, table)
    message = str(caught.value)
    assert message.startswith("the options of backbone 'open' are wrong: ")
    assert (
        "unknown key 'widht'. Did you mean 'width'? Available: dropout, nested, sizes, width"
        in message
    )
    assert "'dropout' is 'half'; input should be a valid number" in message
    assert "'sizes' is 3" in message
    assert "unknown key 'nested.rat'" in message


@pytest.mark.parametrize(
    "table", [{"width": "8"}, {"width": True}, {"width": 8.5}, {"width": None}]
)
def test_rejects_an_option_of_another_type(table):
    with pytest.raises(ConfigError, match="'width'"):
        validate(OPEN, table)


def test_reports_the_check_of_an_options_class():
    with pytest.raises(ConfigError, match="width is 0; it must be at least 1"):
        validate(OPEN, {"width": 0})


def test_reports_a_name_claimed_twice_before_it_is_used(site):
    site.distribution("first", "1.0", backbones={"net": "a:NET", "own": "a:OWN"})
    site.distribution("second", "2.0", backbones={"net": "b:NET"})
    found = site.registry()
    conflicts = {entry.full_name: found.conflict(entry) for entry in found.entries()}
    assert conflicts["first:own"] is None
    assert "also claimed by second 2.0: write 'first:net' for this one" in conflicts["first:net"]
    assert "also claimed by first 1.0" in conflicts["second:net"]


def test_broken_metadata_of_a_distribution_does_not_affect_others(site, reread):
    site.module("good_net", GOOD)
    site.distribution("nets", "1", backbones={"net": "good_net:NET"})
    site.distribution("torn", "1", backbones={"other": "x:X"})
    (site.folder / "torn-1.dist-info" / "entry_points.txt").write_text(
        "[fcn_jax.backbones]\nno equals sign\n"
    )
    site.distribution("nameless", "1", backbones={"third": "x:X"})
    (site.folder / "nameless-1.dist-info" / "METADATA").unlink()
    found = registry.default()
    assert found.backbone("net").name == "net"
    assert found.find("backbones", "third").distribution in ("nameless", "nameless-1", "unknown")
    assert list(registry.faults()) == ["torn"]
    assert "its entry points cannot be read" in registry.faults()["torn"]


def test_finds_distributions_in_a_zip_file_and_their_faults(tmp_path, reread, monkeypatch):
    site = Site(tmp_path / "site")
    site.folder.mkdir()
    for name in ("nets", "torn", "nameless"):
        site.distribution(name, "1", backbones={f"{name}_net": "x:X"})
    (site.folder / "torn-1.dist-info" / "entry_points.txt").write_text(
        "[fcn_jax.backbones]\nno equals sign\n"
    )
    (site.folder / "nameless-1.dist-info" / "METADATA").unlink()
    monkeypatch.syspath_prepend(shutil.make_archive(str(tmp_path / "nets"), "zip", site.folder))
    found = registry.default()
    assert found.find("backbones", "nets_net").full_name == "nets:nets_net"
    assert found.find("backbones", "nameless_net").name == "nameless_net"
    assert list(registry.faults()) == ["torn"]
    assert "resnet18" in found.names("backbones")


def test_reads_the_metadata_of_each_distribution_once(site, monkeypatch):
    for number in range(40):
        entries = {f"net{number}_{i}": "x:X" for i in range(10)}
        site.distribution(f"nets{number}", "1", backbones=entries, heads=entries)
    read = []
    original = metadata.PathDistribution.read_text

    def read_text(self, name):
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(metadata.PathDistribution, "read_text", read_text)
    found = site.registry()
    assert len(found.entries()) == 800
    assert read.count("METADATA") == 40


def test_list_shows_broken_plugins_and_exits_with_1(site, monkeypatch, capsys):
    site.module("good_net", GOOD)
    site.module("slow_net", "import time; time.sleep(600)")
    site.module("odd_net", "NET = 3")
    site.distribution(
        "nets",
        "1.5",
        backbones={"net": "good_net:NET", "slow": "slow_net:NET", "odd": "odd_net:NET"},
    )
    site.distribution("others", "2", backbones={"net": "good_net:NET"})
    monkeypatch.setattr(registry, "default", site.registry)
    monkeypatch.setattr(registry, "faults", lambda: {"torn": "its entry points cannot be read"})
    assert cli.main(["plugins", "list"]) == 0
    shown = capsys.readouterr().out
    assert "BROKEN: the name is also claimed by others 2" in shown
    assert "good_net" not in sys.modules
    assert cli.main(["plugins", "list", "--check", "--timeout", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        "slow" in line and "nets 1.5  BROKEN: timed out after 3 s at import" in line
        for line in lines
    )
    assert any(
        "odd" in line and "is a int; it must be an fcn_jax.api.Backbone" in line for line in lines
    )
    assert lines[-1] == "torn  BROKEN: its entry points cannot be read"


def test_list_exits_with_0_if_all_plugins_load(site, monkeypatch, capsys):
    site.module("good_net", GOOD)
    site.distribution("nets", "1.5", backbones={"net": "good_net:NET"})
    monkeypatch.setattr(registry, "default", site.registry)
    monkeypatch.setattr(registry, "faults", dict)
    assert cli.main(["plugins", "list", "--check"]) == 0
    assert capsys.readouterr().out == "backbones  net  nets 1.5  ok\n"


@pytest.fixture
def claimed_twice(site, monkeypatch):
    """A second distribution that registers the default backbone, head and dataset."""
    installed = registry.default().entries()
    site.distribution(
        "acme-nets",
        "2.0",
        backbones={"resnet18": "acme:NET"},
        heads={"fcn32s": "acme:TOP"},
        datasets={"shapes": "acme:DATA"},
    )
    plugins = Registry([*installed, *site.entries()])
    monkeypatch.setattr(registry, "default", lambda: plugins)
    return plugins


def test_own_name_prefers_the_plugin_of_the_same_distribution(claimed_twice):
    assert claimed_twice.own_name("backbones", "resnet18", "fcn-jax") == "fcn-jax:resnet18"
    assert claimed_twice.own_name("backbones", "resnet18", "Acme_Nets") == "acme-nets:resnet18"
    assert (
        claimed_twice.own_name("backbones", "resnet50", "acme-nets") == "resnet50"
    )  # registered by one alone
    assert (
        claimed_twice.own_name("backbones", "resnet50", "acme-nets", strict=True)
        == "acme-nets:resnet50"
    )
    assert (
        claimed_twice.own_name("backbones", "fcn-jax:resnet18", "acme-nets", strict=True)
        == "fcn-jax:resnet18"
    )
    with pytest.raises(PluginError, match="write 'acme-nets:resnet18' or 'fcn-jax:resnet18'"):
        claimed_twice.backbone("resnet18")  # a name that a user types stays ambiguous


def test_recipes_models_and_checkpoints_keep_their_plugins_if_another_distribution_claims_the_names(
    claimed_twice,
):
    from fcn_jax import checkpoint, config, recipes
    from fcn_jax.api import ModelSpec
    from fcn_jax.models.spec import registered_spec

    for parsed in (config.parse({}), config.parse(recipes.read_recipe("shapes"))):
        assert parsed.model.backbone == "fcn-jax:resnet18"
        assert parsed.model.head == "fcn-jax:fcn32s"
        assert parsed.data.dataset == "fcn-jax:shapes"
    typed = config.parse(
        recipes.override(recipes.read_recipe("shapes"), ["model.backbone=resnet18"])
    )
    assert typed.model.backbone == "resnet18"

    assert (
        registered_spec("fcn32s_resnet18").backbone,
        registered_spec("fcn32s_resnet18").head,
    ) == (
        "fcn-jax:resnet18",
        "fcn-jax:fcn32s",
    )

    record = {"name": "resnet18", "distribution": "fcn-jax", "version": "0.1"}
    table = checkpoint.Spec(ModelSpec("resnet18", None, 2), None, {"backbone": record}).to_dict()
    assert checkpoint.Spec.from_dict(table).model.backbone == "fcn-jax:resnet18"
    table["plugins"]["backbone"] = {**record, "distribution": "acme-nets"}
    assert checkpoint.Spec.from_dict(table).model.backbone == "acme-nets:resnet18"


def test_checkpoint_names_the_distribution_that_it_needs(tmp_path):
    import jax.numpy as jnp

    from fcn_jax import checkpoint
    from fcn_jax.api import ModelSpec
    from fcn_jax.errors import CheckpointError

    record = {"name": "resnet18", "distribution": "acme-nets", "version": "2.0"}
    spec = checkpoint.Spec(ModelSpec("resnet18", "fcn32s", 2), None, {"backbone": record})
    checkpoint.save_model(tmp_path / "model", spec, {"a": jnp.zeros(3)})
    with pytest.raises(
        CheckpointError,
        match=r"its backbone 'resnet18' is of acme-nets 2\.0.*acme-nets is not installed",
    ):
        checkpoint.load_model(tmp_path / "model")
