"""Settings of the transformers.

What the data decide (input_shape, vocab_size, max_length, shared_vocabulary, out_features) is no setting. `takes` says
which inputs a model is for, in the words of `dltrain.network`.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from dltrain.config.schema.base import Component


class TransformerComponent(Component):
    """What all transformers have."""

    dim: int = Field(128, ge=2, description="width of a token, a multiple of num_heads")
    num_heads: int = Field(4, ge=1, description="attention heads, which share the width")
    feed_forward: float = Field(4.0, gt=0, description="width of the feed-forward layers, in multiples of dim")
    gated: bool = Field(
        False, description="gate the feed-forward layers (GEGLU, Shazeer 2020), two thirds as wide for equal size"
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="rate of dropout of the tokens and after each branch")
    positions: Literal["rotary", "learned", "none"] = Field(
        "rotary", description="how tokens know their place; learned: none beyond the longest length of the data"
    )
    norm: Literal["layer", "rms"] = Field("layer", description="normalisation before each branch and at the end")

    @model_validator(mode="after")
    def _whole_heads(self) -> Self:
        width, rest = divmod(self.dim, self.num_heads)
        if rest:
            raise ValueError(f"dim must be a multiple of num_heads; {self.dim} is none of {self.num_heads}")
        if self.positions == "rotary" and width % 2:
            raise ValueError(
                f"positions: rotary needs dim / num_heads to be even; {self.dim} / {self.num_heads} is {width}"
            )
        return self


class Transformer(TransformerComponent):
    """Transformer encoder for classification and regression of text, spectrograms and series."""

    builds: ClassVar[str] = "dltrain.models.transformer:Transformer"
    takes: ClassVar[tuple[str, ...]] = ("texts", "series", "images")
    type: Literal["transformer"]
    depth: int = Field(4, ge=1, description="number of blocks")
    pool: Literal["mean", "max", "first"] = Field("mean", description="what the head sees of the tokens")
    patch: int = Field(
        1, ge=1, description="steps of a series, or columns of an image, that make one token; for waveforms hundreds"
    )


class CausalTransformer(TransformerComponent):
    """Causal transformer, a language model (Radford et al. 2019)."""

    builds: ClassVar[str] = "dltrain.models.causal_transformer:CausalTransformer"
    takes: ClassVar[tuple[str, ...]] = ("a corpus",)
    type: Literal["causal_transformer"]
    depth: int = Field(4, ge=1, description="number of blocks")
    tied: bool = Field(True, description="score tokens by their embeddings (Press & Wolf 2017)")


class EncoderDecoder(TransformerComponent):
    """Transformer that reads one text and writes another (Vaswani et al. 2017)."""

    builds: ClassVar[str] = "dltrain.models.encoder_decoder:EncoderDecoder"
    takes: ClassVar[tuple[str, ...]] = ("pairs of texts",)
    type: Literal["encoder_decoder"]
    encoder_depth: int = Field(3, ge=1, description="number of blocks that read the source")
    decoder_depth: int = Field(3, ge=1, description="number of blocks that write the target")
    tied: bool = Field(True, description="score tokens by their embeddings (Press & Wolf 2017)")


ALL: tuple[type[Component], ...] = (Transformer, CausalTransformer, EncoderDecoder)
