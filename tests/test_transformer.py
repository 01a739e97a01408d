import copy
import math

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import nn

from dltrain.config.schema import models_transformer as schema
from dltrain.errors import ConfigError, DataError
from dltrain.models import attention
from dltrain.models.causal_transformer import CausalTransformer
from dltrain.models.encoder_decoder import EncoderDecoder
from dltrain.models.transformer import Transformer

VOCAB, TARGET_VOCAB = 20, 15
SMALL = {"dim": 16, "num_heads": 2, "dropout": 0.0}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def encoder(**settings):
    return Transformer(3, (9,), VOCAB, 12, **(SMALL | {"depth": 2} | settings))


def series(shape=(3, 10), **settings):
    return Transformer(3, shape, **(SMALL | {"depth": 2} | settings))


def language_model(**settings):
    return CausalTransformer(VOCAB, 12, **(SMALL | {"depth": 2} | settings))


def translator(**settings):
    return EncoderDecoder(TARGET_VOCAB, VOCAB, 12, **(SMALL | {"encoder_depth": 1, "decoder_depth": 2} | settings))


def tokens(num=4, length=9, vocab=TARGET_VOCAB):
    return torch.randint(1, vocab, (num, length))


MODELS = {
    "text": (encoder, lambda: (tokens(),)),
    "series": (series, lambda: (torch.randn(4, 3, 10),)),
    "image": (lambda **settings: series((1, 8, 10), **settings), lambda: (torch.randn(4, 1, 8, 10),)),
    "causal": (language_model, lambda: (tokens(),)),
    "pairs": (translator, lambda: (tokens(), tokens(length=5))),
}


@pytest.fixture(params=MODELS)
def model_and_inputs(request):
    make, inputs = MODELS[request.param]
    return make().eval(), inputs()


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param][0]


def num_parameters(module):
    return sum(p.numel() for p in module.parameters())


def close(a, b, atol=1e-5):
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=atol)


# ---- attention


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal):
    ours, theirs = attention.Attention(24, 4, 0.5, causal), nn.MultiheadAttention(24, 4, batch_first=True)
    nn.init.normal_(ours.queries_keys_values.bias)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.queries_keys_values.weight, ours.queries_keys_values.bias
    theirs.out_proj.weight, theirs.out_proj.bias = ours.output.weight, ours.output.bias
    x, ids = torch.randn(5, 7, 24), torch.tensor([[1] * n + [0] * (7 - n) for n in (7, 1, 3, 6, 2)])
    mask = attention.token_mask(ids)
    if causal:
        later = torch.ones(7, 7, dtype=torch.bool).triu(1)
        assert close(ours(x), theirs(x, x, x, attn_mask=later, need_weights=False)[0], 1e-6)
    else:
        expected = theirs(x, x, x, key_padding_mask=~mask, need_weights=False)[0]
        assert close(ours(x, mask=mask[:, None, None]), expected, 1e-6)


def test_cross_attention_is_torchs():
    ours, theirs = attention.CrossAttention(24, 4, 0.5), nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.in_proj_weight = nn.Parameter(torch.cat([ours.queries.weight, ours.keys_values.weight]))
    theirs.out_proj.weight = ours.output.weight
    x, encoded = torch.randn(3, 5, 24), torch.randn(3, 7, 24)
    mask = attention.token_mask(torch.tensor([[1] * n + [0] * (7 - n) for n in (7, 1, 3)]))
    expected = theirs(x, encoded, encoded, key_padding_mask=~mask, need_weights=False)[0]
    assert close(ours(x, ours.look_up(encoded), mask[:, None, None]), expected, 1e-6)


def test_rotary_products_depend_on_the_distance_alone():
    positions = attention.Positions("rotary", 32, 2, None)
    _, rotation = positions(torch.zeros(1, 50, 32))
    query, key = torch.randn(1, 1, 1, 2, 16), torch.randn(1, 1, 1, 2, 16)
    queries, keys = (attention.rotate(x.expand(1, 50, 1, 2, 16), rotation)[0, :, 0] for x in (query, key))
    products = torch.einsum("ihd,jhd->hij", queries, keys)
    for distance in (-30, -1, 0, 7):
        diagonal = products.diagonal(distance, dim1=1, dim2=2)
        assert close(diagonal, diagonal[:, :1].expand_as(diagonal), 1e-4)
    assert not close(products[:, 0, 5], products[:, 0, 6], 1e-2)
    assert close(queries.norm(dim=2), query[0, 0].norm(dim=2).expand(50, 2))


def test_rotary_turns_pairs_by_the_papers_angles():
    _, rotation = attention.Positions("rotary", 8, 2, None)(torch.zeros(1, 4, 8))
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 1, 4).expand(1, 4, 1, 1, 4)
    turned = attention.rotate(x, rotation)[0, 3, 0, 0]
    pairs = torch.complex(x[0, 0, 0, 0, :2], x[0, 0, 0, 0, 2:]) * torch.exp(3j * torch.tensor([1.0, 10000**-0.5]))
    assert close(turned, torch.cat([pairs.real, pairs.imag]))


def test_rotation_goes_on_where_it_began():
    positions = attention.Positions("rotary", 8, 2, None)
    _, whole = positions(torch.zeros(1, 9, 8))
    _, rest = positions(torch.zeros(1, 4, 8), start=5)
    assert all(torch.equal(a[5:], b) for a, b in zip(whole, rest, strict=True))


def test_feed_forward_is_gelu_between_two_layers_or_gated():
    x = torch.randn(2, 3, 24)
    plain = attention.FeedForward(24, 4.0, False, 0.1)
    assert close(plain(x), plain.output(F.gelu(plain.input(x))), 1e-6)
    gated = attention.FeedForward(24, 4.0, True, 0.1)
    first, second = gated.input.weight.chunk(2)
    assert close(gated(x), gated.output((x @ first.T) * F.gelu(x @ second.T)), 1e-6)
    assert gated.output.in_features == 64
    assert abs(num_parameters(gated) / num_parameters(plain) - 1) < 0.01


def test_branches_start_small_so_that_their_sum_does_not_grow():
    model = CausalTransformer(500, dim=256, depth=8)
    block = model.decoder.blocks[3]
    for layer, std in (
        (block.attention.queries_keys_values, 0.02),
        (block.feed_forward.input, 0.02),
        (block.attention.output, 0.02 / 4),
        (block.feed_forward.output, 0.02 / 4),
        (model.embedding, 0.02),
    ):
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.05)
    assert all(not p.any() for name, p in model.named_parameters() if name.endswith("bias"))
    crossing = translator(dim=256).decoder.blocks[0].cross.output.weight.detach()
    assert float(crossing.std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.05)


# ---- what all models keep


def test_outputs_have_the_shape_that_the_data_ask_for():
    assert encoder()(tokens()).shape == (4, 3)
    assert series()(torch.randn(4, 3, 10)).shape == (4, 3)
    assert series((1, 8, 10))(torch.randn(4, 1, 8, 10)).shape == (4, 3)
    assert series((2, 100), patch=16)(torch.randn(4, 2, 100)).shape == (4, 3)
    assert language_model()(tokens()).shape == (4, 9, VOCAB)
    assert translator()(tokens(length=9), tokens(length=5)).shape == (4, 5, TARGET_VOCAB)


@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "rms", "gated": True},
        {"positions": "learned", "feed_forward": 0.5},
        {"positions": "none", "num_heads": 1},
        {"dropout": 0.5},
    ],
)
def test_every_setting_gives_gradients_everywhere(make, settings):
    model = make(**settings)
    inputs = next(inputs for other, inputs in MODELS.values() if other is make)()
    model(*inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_dropout_acts_in_training_only(make):
    model = make(dropout=0.3)
    inputs = next(inputs for other, inputs in MODELS.values() if other is make)()
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


def test_a_sample_does_not_depend_on_its_batch(model_and_inputs):
    model, inputs = model_and_inputs
    whole = model(*inputs)
    assert close(torch.cat([model(*(x[i : i + 1] for x in inputs)) for i in range(4)]), whole)


def test_more_padding_changes_nothing():
    ids, target = tokens(), tokens(length=5)
    ids[:, 6:], target[1, 3:] = 0, 0
    for pool in ("mean", "max", "first"):
        model = encoder(pool=pool).eval()
        assert close(model(F.pad(ids, (0, 3))), model(ids), 1e-6)
        assert close(model(ids[:, :6]), model(ids), 1e-6)
    model = translator().eval()
    padded = model(F.pad(ids, (0, 3)), F.pad(target, (0, 4)))
    assert close(padded[:, :5], model(ids, target), 1e-6)
    model = language_model().eval()
    assert close(model(F.pad(ids, (0, 3)))[:, :9], model(ids), 1e-6)


def test_an_empty_text_gives_finite_outputs_and_gradients(make):
    inputs = next(inputs for other, inputs in MODELS.values() if other is make)()
    inputs = tuple(torch.zeros_like(x) for x in inputs)
    model = make()
    model(*inputs).sum().backward()
    assert model(*inputs).isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_order_of_tokens_matters_unless_positions_are_none():
    for positions in ("rotary", "learned", "none"):
        model = encoder(positions=positions).eval()
        nn.init.normal_(model.encoder.blocks[0].attention.queries_keys_values.weight, std=0.5)
        ids = tokens()
        assert close(model(ids), model(ids.flip(1)), 1e-6) == (positions == "none")


def test_weights_can_be_saved_loaded_and_copied(model_and_inputs):
    model, inputs = model_and_inputs
    twin = copy.deepcopy(model)
    weights = load(save(model.state_dict()))  # refuses tensors that share memory
    for p in twin.parameters():
        nn.init.ones_(p)
    assert not close(twin(*inputs), model(*inputs))
    twin.load_state_dict(weights)
    assert torch.equal(twin(*inputs), model(*inputs))


def test_bfloat16_is_near_float32(model_and_inputs):
    model, inputs = model_and_inputs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*inputs)
    assert close(output.float(), model(*inputs), 0.02)


@pytest.mark.slow
def test_compilation_changes_nothing(model_and_inputs):
    model, inputs = model_and_inputs
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert close(compiled(*inputs), model(*inputs))


def test_learned_positions_end_with_an_error_of_the_data():
    message = (
        "a sequence of 13 tokens is longer than the 12 learned positions of the model; shorten it, or train with "
        "positions: rotary"
    )
    for model in (encoder(positions="learned"), language_model(positions="learned")):
        model(tokens(length=12))
        with pytest.raises(DataError) as error:
            model(tokens(length=13))
        assert str(error.value) == message
    with pytest.raises(DataError):
        translator(positions="learned")(tokens(length=3), tokens(length=13))
    assert language_model()(tokens(length=30)).shape == (4, 30, VOCAB)


# ---- number of parameters


def block_size(dim, hidden, cross=False):
    attention_size = 4 * dim * dim + 4 * dim
    norms = (3 if cross else 2) * 2 * dim
    return (2 if cross else 1) * attention_size + norms + 2 * dim * hidden + hidden + dim


def test_parameters_are_as_many_as_the_formula_says():
    d, block = 16, block_size(16, 64)
    assert num_parameters(encoder()) == VOCAB * d + 2 * block + 2 * d + 3 * d + 3
    assert num_parameters(encoder(positions="learned")) == num_parameters(encoder()) + 12 * d
    assert num_parameters(series((5, 100), patch=7)) == (5 * 7 + 1) * d + 2 * block + 2 * d + 3 * d + 3
    assert num_parameters(language_model()) == VOCAB * d + 2 * block + 2 * d
    assert num_parameters(language_model(tied=False)) == num_parameters(language_model()) + VOCAB * d
    blocks = block + 2 * block_size(16, 64, cross=True) + 2 * 2 * d
    assert num_parameters(translator()) == (VOCAB + TARGET_VOCAB) * d + blocks
    assert num_parameters(translator(tied=False)) == (VOCAB + 2 * TARGET_VOCAB) * d + blocks
    shared = EncoderDecoder(VOCAB, VOCAB, shared_vocabulary=True, encoder_depth=1, decoder_depth=2, **SMALL)
    assert num_parameters(shared) == VOCAB * d + blocks


# ---- the encoder


def test_pooling_takes_the_mean_the_maximum_or_the_first():
    ids, x = tokens(), torch.randn(4, 3, 10)
    for make, inputs in ((encoder, ids), (series, x)):
        for pool, reduce in (
            ("mean", lambda e: e.mean(1)),
            ("max", lambda e: e.amax(1)),
            ("first", lambda e: e[:, 0]),
        ):
            model = make(pool=pool).eval()
            assert close(model(inputs), model.head(reduce(model.encoder(model.tokens(inputs)))), 1e-6)


def test_patches_are_a_convolution_of_their_size_and_stride():
    model = series((3, 10), patch=4)
    convolution = nn.Conv1d(3, 16, 4, stride=4)
    convolution.weight = nn.Parameter(model.tokens.linear.weight.view(16, 3, 4))
    convolution.bias = model.tokens.linear.bias
    x = torch.randn(4, 3, 10)
    assert close(model.tokens(x), convolution(F.pad(x, (0, 2))).transpose(1, 2), 1e-6)


def test_a_frame_of_a_spectrogram_is_a_token():
    model, x = series((1, 8, 10)), torch.randn(4, 1, 8, 10)
    assert close(model.tokens(x)[:, 3], model.tokens.linear(x[:, 0, :, 3]), 1e-6)


def test_a_series_of_one_number_keeps_its_size():
    model = series((1, 6)).eval()
    assert not close(model(torch.full((1, 1, 6), 1.0)), model(torch.full((1, 1, 6), 3.0)), 1e-4)


# ---- decoders


@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
def test_no_token_sees_a_later_one(positions):
    ids = tokens()
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % TARGET_VOCAB
    model = language_model(positions=positions).eval()
    assert torch.equal(model(ids)[:, :5], model(changed)[:, :5])
    assert not close(model(ids)[:, 5:], model(changed)[:, 5:])
    model, source = translator(positions=positions).eval(), tokens()
    assert torch.equal(model(source, ids)[:, :5], model(source, changed)[:, :5])
    assert not close(model(source, ids)[:, 5:], model(source, changed)[:, 5:])


@pytest.mark.parametrize("sizes", [(1,) * 9, (4, 1, 1, 3), (9,)])
@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
def test_step_by_step_is_the_whole_at_once(sizes, positions):
    ids, source = tokens(), tokens(length=7)
    source[1, 3:] = 0
    ends = torch.tensor(sizes).cumsum(0) - 1
    for model, sources in ((language_model, ()), (translator, (source,))):
        model = model(positions=positions).eval()
        whole = model(*sources, ids)
        with torch.no_grad():
            cache = model.start(*sources)
            steps = [model.step(part, cache) for part in ids.split(sizes, dim=1)]
        assert cache.length == 9
        assert close(torch.stack(steps, 1), whole[:, ends])


def test_a_long_text_outgrows_the_first_buffer_of_the_cache():
    model, ids = language_model().eval(), tokens(2, 150)
    with torch.no_grad():
        cache = model.start()
        steps = [model.step(ids[:, i : i + 1], cache) for i in range(150)]
    assert close(torch.stack(steps, 1), model(ids))


def test_a_cache_keeps_the_chosen_rows_in_order():
    rows, ids, source = torch.tensor([2, 0, 2]), tokens(), tokens(length=7)
    source[1, 3:] = 0
    for model, sources in ((language_model().eval(), ()), (translator().eval(), (source,))):
        whole = model(*(x[rows] for x in sources), torch.cat([ids[rows], ids[rows, :1]], dim=1))
        with torch.no_grad():
            cache = model.start(*sources)
            model.step(ids, cache)
            cache.select(rows)
            assert close(model.step(ids[rows, :1], cache), whole[:, -1])


def test_tied_scores_are_products_with_the_embeddings():
    model = language_model().eval()
    ids = tokens()
    assert close(model(ids), model.decoder(model.embedding(ids)) @ model.embedding.weight.T, 1e-6)


# ---- they learn


def learn(model, inputs, target, steps):
    """Train on the one batch; return the share of the outputs that are right."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(*inputs)
        F.cross_entropy(output.flatten(0, -2), target.flatten()).backward()
        optimizer.step()
    return float((model.eval()(*inputs).argmax(-1) == target).float().mean())


def test_the_encoder_learns_which_token_comes_first():
    """One of two tokens comes before the other: only positions can tell."""
    ids = torch.full((64, 8), 9)
    places = torch.stack([torch.randperm(8)[:2] for _ in range(64)])
    ids.scatter_(1, places, torch.tensor([[4, 5]]).expand(64, 2))
    assert learn(encoder(dim=32), (ids,), (places[:, 0] < places[:, 1]).long(), 100) > 0.95


def test_the_encoder_learns_frequencies():
    times, kinds = torch.arange(64) / 64, torch.arange(48) % 3
    x = torch.sin(2 * math.pi * (times * (3 + 2 * kinds[:, None]) + torch.rand(48, 1)))
    assert learn(series((1, 64), patch=8), (x[:, None],), kinds, 80) > 0.95


def test_the_language_model_learns_texts_by_heart():
    ids = tokens(16, 12)
    assert learn(language_model(dim=32), (ids[:, :-1],), ids[:, 1:], 150) > 0.85  # the first are anybody's guess


def test_the_translator_learns_to_reverse():
    source = torch.randint(4, TARGET_VOCAB, (32, 5))
    target = torch.cat([torch.full((32, 1), 2), source.flip(1)], dim=1)
    assert learn(translator(dim=32), (source, target[:, :-1]), target[:, 1:], 150) > 0.95


# ---- what cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: series(dim=18, num_heads=4), "dim: 18 is no multiple of num_heads, 4"),
        (lambda: series(norm="batch"), "norm: 'batch' is unknown; possible: layer, rms"),
        (lambda: series(positions="sine"), "positions: 'sine' is unknown; possible: rotary, learned, none"),
        (lambda: series(dim=18), "positions: rotary needs heads of even width; 18 / 2 is 9"),
        (lambda: series(pool="last"), "pool: 'last' is unknown; possible: mean, max, first"),
        (lambda: series(patch=11), "patch: 11 is more than the 10 steps of a sample"),
        (lambda: encoder(patch=2), "patch: 2 cannot take effect: each token of a text stands for itself"),
        (
            lambda: series((7,)),
            "transformer is for text, series (C, T) and images (C, H, W); the samples are of shape (7,); "
            "possible: mlp, linear",
        ),
        (CausalTransformer, "causal_transformer is for text; these data have no vocabulary"),
        (lambda: EncoderDecoder(5), "encoder_decoder is for pairs of texts; these data have no vocabulary"),
        (
            lambda: CausalTransformer(9, positions="learned"),
            "positions: learned needs to know the longest length, and these data have none; use rotary",
        ),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 130}, "dim must be a multiple of num_heads; 130 is none of 4"),
        ({"dim": 20}, "positions: rotary needs dim / num_heads to be even; 20 / 4 is 5"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"feed_forward": 0.0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"positions": "sine"}, "'rotary', 'learned' or 'none'"),
        ({"patch": 0}, "greater than or equal to 1"),
    ],
)
def test_the_schema_knows_the_ranges(settings, message):
    schema.Transformer(type="transformer", dim=20, positions="learned")
    with pytest.raises(ValidationError, match=message):
        schema.Transformer(type="transformer", **settings)
