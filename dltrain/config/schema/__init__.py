"""The manual of the config format: a pydantic class for every section and component."""
