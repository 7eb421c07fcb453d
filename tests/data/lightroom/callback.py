"""A callback of Hydra's in a package of somebody else's."""

from hydra.experimental.callback import Callback


class Listener(Callback):
    """Hears all, does nothing."""
