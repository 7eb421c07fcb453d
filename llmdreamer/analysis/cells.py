"""Names what a run is a sample of: all it was configured with, but the seed and the bookkeeping."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd

from llmdreamer.config.identity import has_prefix, keys_without_effect

KNOBS = ("backbone", "posterior", "size", "pretrained", "peft", "replay_ratio")
"""The axes of the question. A comparison changes one of them."""

PARAM = "params."
TAG = "tags."
RECIPE = PARAM + "recipe"
"""Name of the training constants. It comes first among what arms differ in: many values follow from it."""

# What a sweep's cells are told apart by, beside what is learned: how often a run was looked at. How actions
# are taken in evaluations changes what is compared.
_MEASURED = ("eval.every", "eval.episodes", "eval.final_episodes")
# Copies of knobs, and the environment, which is the stratum.
_COPIES = re.compile(
    r"^(algo\.replay_ratio|algo\.world_model\.(posterior|hf_model\.(peft|from_pretrained))|env\.id"
    r"|backbone\.name|size)$"
)
_NO_EFFECT = "-"


LONGEST = 60
"""Letters of a label that still stand beside a line."""


def label_arms(runs: pd.DataFrame) -> pd.Series:
    """Name each run's arm: as `describe`, or, where that is too long for a picture, by its knobs and
    a number: `scratch replay_ratio=1.0 [2]`."""
    whole = describe(runs)
    labels = whole.copy()
    others = [name for name in runs if name.startswith(PARAM) and name != RECIPE]
    knobs = describe(runs.drop(columns=others))
    for _, group in whole.groupby(runs["arm"].astype(str), sort=False):
        if group.str.len().max() > LONGEST:
            numbers, _ = pd.factorize(group)  # in order of appearance: the oldest is 1
            labels[group.index] = knobs[group.index] + [f" [{number + 1}]" for number in numbers]
    return labels


def describe(runs: pd.DataFrame) -> pd.Series:
    """What each run is a sample of: its tag `arm`, and whatever differs among the runs of that arm.

    Two runs have one description only if they differ in nothing but seed, environment and
    bookkeeping: runs of different learning rates are never averaged. A parameter goes by the
    last part of its name, and by the whole where two that vary would share it.
    """
    runs = _effective(runs)
    labels = runs["arm"].astype(str).copy()
    for arm, group in runs.groupby("arm", sort=False):
        parts = pd.Series("", index=group.index)
        columns = [column.removeprefix(PARAM) for column in _varying(group)]
        last = Counter(_last(name) for name in columns)
        for name in columns:
            value = group[name if name in KNOBS else PARAM + name]
            # A run may lack a parameter, such as an option of another environment. A NaN would make
            # the whole label NaN, and the run would belong to no arm.
            value = value.astype(object).where(value.notna(), "unset").astype(str)
            short = _last(name) if last[_last(name)] == 1 else name
            parts += " " + (value if name in ("backbone", "size") else short + "=" + value)
        labels[group.index] = str(arm) + parts
    return labels


def _effective(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs, with a dash where a parameter has no effect in the run: as in a sweep's cells."""
    names = [name for name in runs if name.startswith(PARAM)]
    rows = runs[names].rename(columns=lambda name: name.removeprefix(PARAM)).to_dict("records")
    dropped = pd.Series(
        [keys_without_effect({k: v for k, v in row.items() if pd.notna(v)}) for row in rows],
        index=runs.index,
        dtype=object,
    )
    runs = runs.copy()
    for prefixes in set(dropped):
        idle = [name for name in names if has_prefix(name.removeprefix(PARAM), prefixes)]
        runs[idle] = runs[idle].mask(dropped == prefixes, _NO_EFFECT)
    return runs


def _varying(runs: pd.DataFrame) -> list[str]:
    """Columns in which runs of the same environment differ: knobs, then the recipe, then other parameters."""
    columns = [knob for knob in KNOBS if knob in runs]
    params = [name for name in runs if name.startswith(PARAM) and _is_configuration(name)]
    columns += sorted(params, key=lambda name: (name != RECIPE, name))
    groups = runs.groupby("env", sort=False)
    return [name for name in columns if (groups[name].nunique(dropna=False) > 1).any()]


def differences(runs: pd.DataFrame, arm: str, other: str) -> list[str]:
    """What two arms differ in beside the knobs, as `algo.optimizer.lr (0.001, 0.0004)`.

    Widths that follow from the size of the model are not counted where the size differs, nor what has
    an effect in one of the arms only: a knob has said so.
    """
    runs = _effective(runs)
    pair = [runs[runs["label"] == name] for name in (arm, other)]
    sizes = [set(side["size"]) for side in pair]
    found = []
    for column in _varying(pd.concat(pair)):
        if column in KNOBS or (sizes[0] != sizes[1] and _WIDTH.search(column)):
            continue
        values = [sorted(side[column].dropna().unique()) for side in pair]
        if values[0] != values[1] and [_NO_EFFECT] not in values:
            shown = ["/".join(map(str, side)) or "none" for side in values]
            found.append(f"{column.removeprefix(PARAM)} ({shown[0]}, {shown[1]})")
    if len(found) > MOST_TOLD:
        found[MOST_TOLD:] = [f"{len(found) - MOST_TOLD} other parameters"]
    return found


MOST_TOLD = 8
"""Differences that are named one by one: runs of two versions of this software differ in many."""


_WIDTH = re.compile(
    r"dense_units|mlp_layers|cnn_depth|hidden_size|stochastic_size|discrete_size|state_size"
)


def one_knob_apart(runs: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(knob, label, other label) for each two arms that differ in exactly one knob.

    The first label is the one with the larger value, `true`, the language model, or DreamerV3's own
    posterior; what is shown is first minus other.
    """
    settings = {
        str(label): tuple(str(group[knob].iloc[0]) for knob in KNOBS)
        for label, group in runs.groupby("label", sort=False)
    }
    pairs = []
    labels = list(settings)
    for i, label in enumerate(labels):
        for other in labels[i + 1 :]:
            apart = [k for k in range(len(KNOBS)) if settings[label][k] != settings[other][k]]
            if len(apart) == 1:
                knob = KNOBS[apart[0]]
                first, second = sorted(
                    (label, other), key=lambda name: _rank(knob, settings[name][apart[0]])
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
    return not (has_prefix(name, _MEASURED) or _COPIES.match(name))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
