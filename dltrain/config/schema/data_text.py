"""Settings of the source of labelled texts, and of the tokenizers that all sources of text share."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component, Settings
from dltrain.config.schema.data_arrays import OnBadSample

TOKENIZER = "what turns text into token ids"
TABLE_SPLIT_COLUMN = "column of the table with train, val or test; null: none, the section split decides"


class Tokenizer(Settings):
    """What turns text into token ids; it learns its vocabulary from the training split."""

    kind: Literal["byte", "character", "word", "bpe"] = Field(
        "bpe",
        description="tokens: bytes, characters, words and punctuation, or pieces of words by byte-pair encoding",
    )
    vocab_size: Annotated[int, Field(ge=5, le=1_000_000)] | None = Field(
        None,
        description="most tokens, with the four special ones; null: 8000, and for bytes always 260",
    )
    lowercase: bool = Field(False, description="read all text as lowercase")


class Text(Component):
    """Texts with a class, labels or numbers each: a table with a column of text, or a folder for each class."""

    builds: ClassVar[str] = "dltrain.data.sources.text:Text"
    type: Literal["text"]
    path: str = Field(
        min_length=1,
        description="a CSV, JSON lines or Parquet file; or a folder with a folder of .txt files for each class, "
        "perhaps in train/, val/, test/",
    )
    column: str | None = Field(None, min_length=1, description="column of the table with the text; null: 'text'")
    target: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="column of the table with the target, or a list of several; null: 'label'",
    )
    split_column: str | None = Field(
        None,
        min_length=1,
        description=TABLE_SPLIT_COLUMN,
    )
    tokenizer: Tokenizer = Field(Tokenizer(), description=TOKENIZER)
    max_length: int = Field(512, ge=1, description="most tokens of a text; what goes beyond is cut off")
    on_bad_sample: OnBadSample = Field(
        "error", description="texts that are empty or cannot be read: an error that names them, or left out"
    )


ALL: tuple[type[Component], ...] = (Text,)
