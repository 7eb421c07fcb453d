"""Files about the project that tools read agree with the package."""

import os
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llmdreamer

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_constraints_satisfy_the_bounds_of_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    tests = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
    needed = [Requirement(line) for line in PROJECT["dependencies"]]
    needed += [requirement for requirement in tests if requirement.name != "llmdreamer"]
    wrong = [
        str(requirement)
        for requirement in needed
        if not requirement.specifier.contains(
            versions.get(canonicalize_name(requirement.name), "0"), prereleases=True
        )
    ]
    assert wrong == []


def test_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == llmdreamer.__version__


def test_workflow_runs_scripts_that_exist():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    scripts = [re.fullmatch(r"bash (\S+)", command)[1] for command in commands]
    assert scripts == [".ci/run", ".ci/wheel", ".ci/lowest"]
    assert all((ROOT / script).is_file() for script in scripts)


def test_dockerfile_copies_what_the_wheel_is_built_from():
    copied = set(re.findall(r"^COPY (.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    sources = {word for line in copied for word in line.split()}
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    wheel = hatch["build"]["targets"]["wheel"]
    needed = {*wheel["packages"], *wheel["force-include"], "pyproject.toml", PROJECT["readme"]}
    assert needed | {*PROJECT["license-files"]} <= sources
    kept = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in sources} <= set(kept)
