"""Samplers of OptunaHub: consent, names, and a package from a local copy of the registry.

Nothing is downloaded: `optunahub` is replaced by its function that loads from a folder.
"""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import pytest
from refusals import refused

from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.sweep.studies import hub
from llmdreamer.sweep.studies.samplers import check_sampler, make_sampler
from llmdreamer.utils.errors import ConfigError

ONE = """
import optuna
class LowestSampler(optuna.samplers.RandomSampler):
    def __init__(self, seed=None, margin=0.0):
        super().__init__(seed)
        self.seed, self.margin = seed, margin
"""
TWO = ONE + "class OtherSampler(LowestSampler):\n    pass\n"
BROKEN = "raise ImportError('the package needs torchcma')\n"
UNSEEDED = """
import optuna
class UnseededSampler(optuna.samplers.RandomSampler):
    def __init__(self):
        super().__init__()
"""


def load_local_module(package, *, registry_root):
    """Load as optunahub 0.5 does."""
    name = f"optunahub_registry.package.{package.replace('/', '.')}"
    path = f"{registry_root}/{package}/__init__.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Install a fake optunahub, and return a registry whose packages leave a mark when they run."""
    for name, code in {"one": ONE, "two": TWO, "broken": BROKEN, "unseeded": UNSEEDED}.items():
        folder = tmp_path / "samplers" / name
        folder.mkdir(parents=True)
        mark = f"open({str(tmp_path / 'mark')!r}, 'w').close()\n"
        (folder / "__init__.py").write_text(mark + code)
    module = ModuleType("optunahub")
    module.__spec__ = importlib.util.spec_from_loader("optunahub", loader=None)
    module.load_local_module = load_local_module
    monkeypatch.setitem(sys.modules, "optunahub", module)
    hub.hub_sampler.cache_clear()
    yield tmp_path
    hub.hub_sampler.cache_clear()


def plan_of(sampler, registry, trust=("optunahub",), **options):
    settings = SweeperSettings(sampler=sampler, sampler_options=options, hub_folder=str(registry))
    return SimpleNamespace(settings=settings, seeds=[0], base=SimpleNamespace(trust=[*trust]))


def test_sampler_of_a_package_is_made_with_its_options_and_the_seed(registry):
    samplers = [make_sampler(plan_of("hub:one", registry, margin=0.5), n) for n in (0, 1)]
    assert [type(sampler).__name__ for sampler in samplers] == ["LowestSampler"] * 2
    assert [sampler.margin for sampler in samplers] == [0.5, 0.5]
    assert samplers[0].seed != samplers[1].seed


def test_sampler_without_a_seed_is_made(registry):
    assert type(make_sampler(plan_of("hub:unseeded", registry), 0)).__name__ == "UnseededSampler"


@pytest.mark.parametrize("trust", [(), ("other",), ("optunahub.x",)])
def test_code_of_the_hub_does_not_run_without_consent(registry, trust):
    with refused(ConfigError, "hub:one", "trust=[optunahub]"):
        check_sampler(plan_of("hub:one", registry, trust), {})
    assert not (registry / "mark").exists()


@pytest.mark.parametrize(
    ("sampler", "parts"),
    [
        ("hub:none", ["hub:none"]),
        ("hub:broken", ["torchcma"]),
        ("hub:two", ["2 samplers"]),
        ("hub:../one", ["a-z"]),
        ("hub:", ["a-z"]),
    ],
)
def test_package_without_one_sampler_is_refused(registry, sampler, parts):
    with refused(ConfigError, f"hydra.sweeper.sampler={sampler}", *parts):
        check_sampler(plan_of(sampler, registry), {})


def test_option_that_the_sampler_lacks_is_refused(registry):
    with refused(ConfigError, "sampler_options.margn", "'margin'"):
        check_sampler(plan_of("hub:one", registry, margn=1), {})


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optunahub", None)
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with refused(ConfigError, "hub:one", "pip install optunahub"):
        check_sampler(plan_of("hub:one", tmp_path), {})


def test_reference_of_the_registry_is_passed_on(registry, monkeypatch):
    requests = []

    def load_module(package, *, ref):
        requests.append((package, ref))
        return load_local_module(package, registry_root=registry)

    monkeypatch.setattr(sys.modules["optunahub"], "load_module", load_module, raising=False)
    plan = plan_of("hub:one", registry)
    plan.settings.hub_folder, plan.settings.hub_ref = None, "0a1b2c"
    make_sampler(plan, 0)
    assert requests == [("samplers/one", "0a1b2c")]
