"""Networks and pure tensor functions that the other packages are built from."""
