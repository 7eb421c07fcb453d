"""Config options; add them with `hydra.searchpath=[pkg://llmdreamer_example.conf]`."""
