"""Settings of the table source: CSV and Parquet files."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component
from dltrain.config.schema.data_arrays import Scale


class Table(Component):
    """CSV or Parquet file: numbers, categories and dates; one or several target columns."""

    builds: ClassVar[str] = "dltrain.data.sources.table:Table"
    type: Literal["table"]
    path: str = Field(min_length=1, description="file, relative to the config; CSV may be gzipped")
    target: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="column to predict, or a list of columns for several numbers or 0/1 labels",
    )
    columns: dict[str, Literal["numeric", "category", "date", "ignore"]] | None = Field(
        None, description="kinds of columns that are guessed wrong: {age: numeric, name: ignore}"
    )
    categories: Literal["embedding", "onehot"] = Field(
        "embedding", description="how the model gets categories: as numbers to embed, or as 0/1 features"
    )
    scale: Scale = Field(
        "standard",
        description="numbers to mean 0 and deviation 1 or to 0..1 (on the training split)",
    )
    missing: Literal["error", "drop", "mean", "median", "indicator"] = Field(
        "error",
        description="missing values: refuse, drop the row, fill, or fill and add a 0/1 feature",
    )
    missing_values: list[str] = Field(
        ["nan", "NaN"], description="texts that mean a missing value, besides the empty cell"
    )
    delimiter: str | None = Field(
        None,
        min_length=1,
        max_length=1,
        description="what separates CSV cells; null: a comma, or a tab in .tsv files",
    )
    split_column: str | None = Field(None, description="column that says train, val or test of each row; not a feature")


ALL: tuple[type[Component], ...] = (Table,)
