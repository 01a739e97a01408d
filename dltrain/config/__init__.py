"""What the user wrote: YAML text to a valid `Config`, without torch."""
