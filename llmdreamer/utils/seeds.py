"""Offsets between the random seeds of one run, so that its parts share no episode and no draw."""

from enum import IntEnum


class SeedOffset(IntEnum):
    """Each is added to the run's seed, except PROCESS, which is multiplied by the rank first."""

    EVALUATION = 1_000_003  # evaluation episodes, on top of SELECTION or FINAL
    SELECTION = 250_007  # episodes by which the best policy is selected
    FINAL = 500_009  # episodes after the selection
    OPEN_LOOP = 2_000_003  # episodes of open-loop evaluation
    PROCESS = 7_000_003
