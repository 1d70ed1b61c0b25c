"""How good predictions are: metrics, rivals, intervals, and the report."""
