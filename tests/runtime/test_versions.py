from importlib import metadata

from fcn_jax.runtime import json_text, versions


def test_package_versions_are_none_for_missing_packages():
    found = versions.package_versions(["numpy", "no-such-package"])
    assert found == {"numpy": metadata.version("numpy"), "no-such-package": None}


def test_environment_names_python_packages_and_devices():
    found = versions.environment()
    assert found["python"].startswith("3.")
    assert found["packages"]["jax"] == metadata.version("jax")
    assert found["devices"][0].startswith("cpu: ")
    json_text.dumps(found)
