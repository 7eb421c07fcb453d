"""Groups runs into arms: runs of one arm differ only in seed, environment and bookkeeping options."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from llmdreamer.config.identity import has_prefix, keys_without_effect

KNOBS = ("backbone", "posterior", "size", "pretrained", "peft", "replay_ratio")
"""Options that arms are compared by. A comparison changes one of them."""

PARAM = "params."
TAG = "tags."
RECIPE = PARAM + "recipe"
"""Name of a set of training constants. It comes first in a label, because many values follow from it."""

# These distinguish the cells of a sweep, but only change how often a run is evaluated, so they do not
# distinguish arms. `eval.greedy` does: it changes what is compared.
_EVALUATION_FREQUENCY = ("eval.every", "eval.episodes", "eval.final_episodes")
# Parameters that repeat a knob, and the environment, which is the stratum.
_COPIES = re.compile(
    r"^(algo\.replay_ratio|algo\.world_model\.(posterior|hf_model\.(peft|from_pretrained))|env\.id"
    r"|backbone\.name|size)$"
)
_NO_EFFECT = "-"
_TYPED_NAMES = {"size": "model"}
"""Knobs that a command line calls by another name."""

MAX_LABEL_LENGTH = 60
"""Longest label that fits beside a line of a figure."""
MAX_DIFFERENCES = 8
"""Number of differences that are listed one by one."""
MAX_NUMBER_LENGTH = 7
"""Characters of a number that a label shows in full."""
_WIDTH = re.compile(
    r"dense_units|mlp_layers|cnn_depth|hidden_size|stochastic_size|discrete_size|state_size"
)


def label_arms(runs: pd.DataFrame) -> pd.Series:
    """Return the label of each run's arm.

    The label is the result of `describe`. If that is too long for a figure, it has only the options that
    tell the runs apart; if that is too long as well, it is the knobs and a number, as in
    `scratch replay_ratio=1.0 [2]`.
    """
    descriptions, short = describe(runs), describe(runs, with_typed=False)
    others = [name for name in runs if name.startswith(PARAM) and name != RECIPE]
    knobs = describe(runs.drop(columns=others))
    labels = descriptions.copy()
    for _, group in descriptions.groupby(runs["arm"].astype(str), sort=False):
        if group.str.len().max() <= MAX_LABEL_LENGTH:
            continue
        labels[group.index] = short[group.index]
        if short[group.index].str.len().max() > MAX_LABEL_LENGTH:
            numbers, _ = pd.factorize(group)  # in order of appearance: the oldest is 1
            labels[group.index] = knobs[group.index] + [f" [{number + 1}]" for number in numbers]
    return labels


def describe(runs: pd.DataFrame, with_typed: bool = True) -> pd.Series:
    """Return each run's tag `arm`, followed by the options that name its difference within that arm.

    An option names a difference if somebody typed it, or if no option before it determines it: runs of
    `model=S` are not named by the widths that the model sets. Two runs have the same description only if
    they differ in nothing but seed, environment and bookkeeping options, so runs of different learning
    rates are never averaged. A parameter is named by the last part of its key, or by the whole key if two
    named parameters share that part.

    Args:
        with_typed: False names a typed option only if no option before it determines it, too.
    """
    runs = _effective(runs)
    labels = runs["arm"].astype(str).copy()
    for arm, group in runs.groupby("arm", sort=False):
        suffixes = pd.Series("", index=group.index)
        columns = [column.removeprefix(PARAM) for column in _naming(group, with_typed)]
        last = Counter(_last(name) for name in columns)
        for name in columns:
            short = _last(name) if last[_last(name)] == 1 else name
            values = _short_values(group[name if name in KNOBS else PARAM + name])
            suffixes += f" {_TYPED_NAMES.get(short, short)}=" + values
        labels[group.index] = str(arm) + suffixes
    return labels


def _naming(runs: pd.DataFrame, with_typed: bool) -> list[str]:
    """Return the columns that name the differences of runs: typed ones, and those they do not determine."""
    columns = _varying(runs)
    typed = _typed_keys(runs) if with_typed else set()
    chosen = [name for name in columns if name.removeprefix(PARAM) in typed]
    for name in columns:
        if name not in chosen and not _determined(runs, name, chosen):
            chosen.append(name)
    return [name for name in columns if name in chosen]


def _determined(runs: pd.DataFrame, column: str, others: list[str]) -> bool:
    """Return True if runs that agree in `others` agree in `column`."""
    groups = runs.groupby(others, dropna=False) if others else runs
    return bool((groups[column].nunique(dropna=False) == 1).all() if others else False)


def _typed_keys(runs: pd.DataFrame) -> set[str]:
    """Return the keys that somebody typed, or a sweep set, for any of the runs; `model` sets `size`."""
    keys: set[str] = set()
    for text in runs.get(TAG + "overrides", pd.Series(dtype=object)).dropna().unique():
        keys |= {word.partition("=")[0].lstrip("+~") for word in str(text).split() if "=" in word}
    return keys | {knob for knob, name in _TYPED_NAMES.items() if name in keys}


def _short_values(values: pd.Series) -> pd.Series:
    """Return values as text; numbers are cut to three digits if they remain different.

    A missing value must not make the whole label NaN: the run would belong to no arm.
    """
    texts = values.astype(object).where(values.notna(), "unset").astype(str)
    rounded = texts.map(_rounded)
    return rounded if rounded.nunique() == texts.nunique() else texts


def _rounded(text: str) -> str:
    if len(text) <= MAX_NUMBER_LENGTH or not re.fullmatch(r"-?[0-9.]+(e[-+]?\d+)?", text):
        return text
    return f"{float(text):.3g}"


def _effective(runs: pd.DataFrame) -> pd.DataFrame:
    """Replace by a dash each parameter that has no effect in its run, as for the cells of a sweep."""
    names = [name for name in runs if name.startswith(PARAM)]
    params = runs[names].rename(columns=lambda name: name.removeprefix(PARAM)).to_dict("records")
    dropped = pd.Series(
        [
            keys_without_effect({k: v for k, v in values.items() if pd.notna(v)})
            for values in params
        ],
        index=runs.index,
        dtype=object,
    )
    runs = runs.copy()
    for prefixes in set(dropped):
        unused = [name for name in names if has_prefix(name.removeprefix(PARAM), prefixes)]
        runs[unused] = runs[unused].mask(dropped == prefixes, _NO_EFFECT)
    return runs


def _varying(runs: pd.DataFrame) -> list[str]:
    """Return the columns in which runs of one environment differ: knobs, recipe, other parameters."""
    columns = [knob for knob in KNOBS if knob in runs]
    params = [name for name in runs if name.startswith(PARAM) and _is_configuration(name)]
    columns += sorted(params, key=lambda name: (name != RECIPE, name))
    groups = runs.groupby("env", sort=False)
    return [name for name in columns if (groups[name].nunique(dropna=False) > 1).any()]


def differences(runs: pd.DataFrame, arm: str, other: str) -> list[str]:
    """Return what two arms differ in beside the knobs, as in `algo.optimizer.lr (0.001, 0.0004)`.

    If the sizes differ, the widths that follow from the size are left out. So are parameters that have
    an effect in only one of the arms, because they follow from a knob. If the recipes differ, the values
    that nobody typed are those of the recipes, and are counted.
    """
    runs = _effective(runs)
    pair = [runs[runs["label"] == name] for name in (arm, other)]
    both = pd.concat(pair)
    sizes = [set(side["size"]) for side in pair]
    columns, typed = _varying(both), _typed_keys(both)
    result, of_recipe = [], 0
    for column in columns:
        if column in KNOBS or (sizes[0] != sizes[1] and _WIDTH.search(column)):
            continue
        values = [sorted(side[column].dropna().unique()) for side in pair]
        if values[0] == values[1] or [_NO_EFFECT] in values:
            continue
        name = column.removeprefix(PARAM)
        if RECIPE in columns and column != RECIPE and name not in typed:
            of_recipe += 1
            continue
        shown = ["/".join(map(str, side)) or "none" for side in values]
        result.append(f"{name} ({shown[0]}, {shown[1]})")
    if len(result) > MAX_DIFFERENCES:
        result[MAX_DIFFERENCES:] = [f"{len(result) - MAX_DIFFERENCES} other parameters"]
    if of_recipe:
        result.append(f"{of_recipe} value{'s' * (of_recipe > 1)} of the recipe")
    return result


def one_knob_apart(runs: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Return (knob, label, other label) for each pair of arms that differ in exactly one knob.

    Differences are shown as first minus other. The first arm has the larger value, `true`, the language
    model, or DreamerV3's posterior.
    """
    settings = {
        str(label): tuple(str(group[knob].iloc[0]) for knob in KNOBS)
        for label, group in runs.groupby("label", sort=False)
    }
    pairs = []
    labels = list(settings)
    for i, label in enumerate(labels):
        for other in labels[i + 1 :]:
            differing = [k for k in range(len(KNOBS)) if settings[label][k] != settings[other][k]]
            if len(differing) == 1:
                knob = KNOBS[differing[0]]
                first, second = sorted(
                    (label, other), key=lambda name: _rank(knob, settings[name][differing[0]])
                )[::-1]
                pairs.append((knob, first, second))
    return sorted(pairs, key=lambda pair: (KNOBS.index(pair[0]), pair[1:]))


def _rank(knob: str, value: str) -> tuple[float, str]:
    if knob == "size":
        return (("XS", "S", "M", "L").index(value) if value in ("XS", "S", "M", "L") else -1, value)
    if knob == "backbone":
        return (0 if value == "gru" else 1, value)
    if knob == "posterior":
        return (float(value == "coupled"), value)
    try:
        return (float(value), value)
    except ValueError:
        return (float(value == "true"), value)


def _is_configuration(column: str) -> bool:
    name = column.removeprefix(PARAM)
    return not (has_prefix(name, _EVALUATION_FREQUENCY) or _COPIES.match(name))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
