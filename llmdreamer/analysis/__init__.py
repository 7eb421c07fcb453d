"""From recorded runs to statistics and figures: what the notebooks and the report are made of."""
