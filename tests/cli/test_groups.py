"""Test that an override of a group which names no single option is refused in terms of that group."""

import pytest
from refusals import refused

from llmdreamer.cli.groups import group_options
from llmdreamer.cli.main import refuse_misused_flags
from llmdreamer.config import GROUPS
from llmdreamer.utils.errors import ConfigError


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("form", ["{}=[XS]", "{}=[a,b]", "{}=null", "{}=3", "+{}=x", "++{}=x"])
def test_group_without_one_named_option_is_refused_by_name(group, form):
    typed = form.format(group)
    named = group if typed.startswith("+") else ", ".join(group_options(group))
    with refused(ConfigError, typed, named):
        refuse_misused_flags([typed])


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in ("exp", "sweeps")])
def test_group_that_is_left_out_is_refused_with_its_options(group):
    with refused(ConfigError, f"~{group}", ", ".join(group_options(group))):
        refuse_misused_flags([f"~{group}"])


@pytest.mark.parametrize(
    "typed", ["model={}", "recipe={a:1}", "hydra/launcher=[x]", "~hydra/launcher", "~hydra/sweeper"]
)
def test_override_that_hydra_explains_badly_is_refused_by_name(typed):
    with refused(ConfigError, typed):
        refuse_misused_flags([typed])


@pytest.mark.parametrize("typed", ["model='XS'", "algo={horizon:5}", "~exp", "recipe=default/XS"])
def test_valid_override_of_a_group_passes(typed):
    refuse_misused_flags([typed])


@pytest.mark.parametrize("typed", ["model=S,M", "env=glob(*)", "model=choice('S','M')"])
def test_list_of_options_passes_in_a_sweep(typed):
    refuse_misused_flags(["-m", typed])
