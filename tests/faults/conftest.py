"""The mark that says which rows of docs/faults.md a test shows."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*rows): shows rows of the table of faults, docs/faults.md")
