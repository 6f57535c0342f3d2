"""pyproject.toml is the one list of dependencies; environment.yml and requirements.lock keep in step with it."""

import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FIXED = "jupyterlab jupytext papermill torch transformer-lens datasets scikit-learn plotly ipywidgets numpy"


def locked() -> dict[str, str]:
    lines = [
        line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines() if line[:1] not in "#"
    ]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def listed() -> list[Requirement]:
    everything = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    return [Requirement(line) for line in everything]


def test_every_dependency_is_locked_at_a_version_it_allows():
    pins = locked()
    for requirement in listed():
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(pin), f"{requirement} does not allow the locked {pin}"


def test_torch_is_pinned_without_a_build_suffix():
    assert locked()["torch"] == "2.13.0"


def test_packages_fixed_by_the_project_are_listed():
    assert set(FIXED.split()) <= {requirement.name for requirement in listed()}


def test_every_dependency_says_what_it_is_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(r'^ {4}"[^"]+",(.*)$', text.split("[project.scripts]")[0], flags=re.M)
    assert len(lists) == len(PROJECT["dependencies"]) + sum(map(len, PROJECT["optional-dependencies"].values()))
    assert all(re.search(r"#\s+\w+", rest) for rest in lists)


def test_environment_defers_to_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["channels"] == ["conda-forge"]
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-e .[dev]"]}]
