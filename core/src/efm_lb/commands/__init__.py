"""The commands for people. None of this is imported by a hook run."""
