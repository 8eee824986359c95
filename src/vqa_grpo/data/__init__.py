"""Sources, checks, conversion and splits."""
