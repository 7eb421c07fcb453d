"""Options for `hydra.searchpath=[pkg://llmdreamer_example.conf]`."""
