"""Dumps of measured schedules: where they lie (files), what lies beside them (companions), what is in them (parsing)."""
