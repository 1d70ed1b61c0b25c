"""The search for the fastest schedule of one program."""
