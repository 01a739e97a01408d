"""Settings of the sources for models that write text: pairs of texts for translation, running text to go on with."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component
from dltrain.config.schema.data_arrays import OnBadSample
from dltrain.config.schema.data_text import TABLE_SPLIT_COLUMN, TOKENIZER, Tokenizer


class Pairs(Component):
    """Pairs of texts, such as sentences and their translations: a table, or two files of lines."""

    builds: ClassVar[str] = "dltrain.data.sources.pairs:Pairs"
    type: Literal["pairs"]
    path: str = Field(
        min_length=1,
        description="a CSV, TSV, JSON lines or Parquet file with both texts; with target_path the source texts, "
        "one a line",
    )
    target_path: str | None = Field(
        None, min_length=1, description="file of the target texts, one a line; null: path is a table"
    )
    source_column: str | None = Field(
        None, min_length=1, description="column of the table with the texts to translate; null: 'source'"
    )
    target_column: str | None = Field(
        None, min_length=1, description="column of the table with their translations; null: 'target'"
    )
    split_column: str | None = Field(
        None,
        min_length=1,
        description=TABLE_SPLIT_COLUMN,
    )
    tokenizer: Tokenizer = Field(Tokenizer(), description=TOKENIZER)
    shared_vocabulary: bool = Field(
        True, description="one vocabulary for both sides, which suits languages with one alphabet; else one for each"
    )
    max_length: int = Field(256, ge=2, description="most tokens of a text, with the one that ends it")
    on_bad_sample: OnBadSample = Field(
        "error", description="pairs that are too long or lack a text: an error that names them, or left out"
    )


class Corpus(Component):
    """Running text for a language model: one text file, or a folder of them."""

    builds: ClassVar[str] = "dltrain.data.sources.corpus:Corpus"
    type: Literal["corpus"]
    path: str = Field(min_length=1, description="a text file, or a folder of text files, read in the order of names")
    tokenizer: Tokenizer = Field(Tokenizer(), description=TOKENIZER)
    block: int = Field(
        128, ge=1, description="tokens of a training sample, of which each is predicted from those before it"
    )
    endings: list[Annotated[str, Field(min_length=1)]] | None = Field(
        None,
        min_length=1,
        description="how names of text files end in a folder, such as [txt, md]; null: txt",
    )


ALL: tuple[type[Component], ...] = (Pairs, Corpus)
