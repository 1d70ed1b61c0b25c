"""All that imports Halide: programs, autoschedulers, execution, and what lowered code does."""
