"""Settings of the models of texts without attention; vocab_size and out_features come from the data."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from dltrain.config.schema.base import Component
from dltrain.config.schema.models import Size


class BagOfEmbeddings(Component):
    """Mean of token embeddings, linear or with hidden layers; fast, and strong where single words tell (Joulin et al.
    2016, https://arxiv.org/abs/1607.01759).
    """

    builds: ClassVar[str] = "dltrain.models.bag_of_embeddings:BagOfEmbeddings"
    takes: ClassVar[tuple[str, ...]] = ("texts",)
    type: Literal["bag_of_embeddings"]
    embedding_dim: Size = Field(128, description="width of the embedding of each token")
    hidden: list[Size] = Field([], description="widths of hidden layers after the mean; none: a linear model of it")
    dropout: float = Field(0.0, ge=0, lt=1, description="rate of dropout of the mean and after each hidden layer")


class TextConvNet(Component):
    """Convolutions of several widths over token embeddings, maximum over the text (Kim 2014,
    https://arxiv.org/abs/1408.5882).
    """

    builds: ClassVar[str] = "dltrain.models.text_convnet:TextConvNet"
    takes: ClassVar[tuple[str, ...]] = ("texts",)
    type: Literal["text_convnet"]
    embedding_dim: Size = Field(128, description="width of the embedding of each token")
    channels: Size = Field(100, description="features of each kernel size")
    kernel_sizes: list[Size] = Field(
        [3, 4, 5], min_length=1, description="widths of the convolutions, in tokens; each sees that many neighbours"
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="rate of dropout before the head")


ALL: tuple[type[Component], ...] = (BagOfEmbeddings, TextConvNet)
