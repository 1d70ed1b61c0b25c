"""Dumps of measured schedules: where they lie (files) and what is in them (parsing)."""
