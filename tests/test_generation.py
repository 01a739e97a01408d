import itertools
import math

import pytest
import torch
from torch import nn

from dltrain.errors import ConfigError
from dltrain.generation import beam_search, greedy, sample
from dltrain.models.causal_transformer import CausalTransformer
from dltrain.models.encoder_decoder import EncoderDecoder

BEGIN, END = 2, 3
VOCAB = 12


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def scattered(model):
    """Return the model with weights that make its choices differ from text to text, and some of them end."""
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.normal_(p)
    with torch.no_grad():
        model.get_parameter("head.weight")[END] *= 1.5
    return model.eval()


def translator(vocab=VOCAB, **settings):
    arguments = {"dim": 16, "num_heads": 2, "encoder_depth": 1, "decoder_depth": 2, "vocab_size": VOCAB, "tied": False}
    return scattered(EncoderDecoder(vocab, **(arguments | settings)))


def language_model(**settings):
    arguments = {"dim": 16, "num_heads": 2, "depth": 2, "vocab_size": VOCAB, "tied": False}
    return scattered(CausalTransformer(**(arguments | settings)))


def sources(num=12, length=7):
    ids = torch.randint(4, VOCAB, (num, length))
    for row, size in enumerate(torch.randint(1, length + 1, (num,)).tolist()):
        ids[row, size:] = 0
    return ids


class Users(nn.Module):
    """A model of a user's own, which can only be called."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *inputs):
        return self.model(*inputs)


SEARCHES = {
    "greedy": lambda model, inputs, **more: greedy(model, inputs, begin=BEGIN, end=END, **more),
    "beam": lambda model, inputs, **more: beam_search(
        model, inputs, begin=BEGIN, end=END, beam_size=3, length_penalty=1.0, **more
    ),
}


@pytest.fixture(params=SEARCHES)
def search(request):
    return SEARCHES[request.param]


# ---- what both searches keep


def test_a_users_model_gives_what_a_cache_gives(search):
    model, ids = translator(), sources()
    texts = search(model, (ids,), max_new_tokens=40)
    assert texts == search(Users(model).eval(), (ids,), max_new_tokens=40)
    assert len({len(text) for text in texts}) > 2


def test_a_text_does_not_depend_on_its_batch(search):
    model, ids = translator(), sources(20)
    alone = [search(model, (row[row != 0][None],), max_new_tokens=30)[0] for row in ids]
    assert search(model, (ids,), max_new_tokens=30) == alone
    assert search(model, (nn.functional.pad(ids, (0, 5)),), max_new_tokens=30) == alone


def test_special_tokens_are_never_in_a_text(search):
    model = translator()
    with torch.no_grad():  # their scores are the highest
        model.head.weight[[0, 1, 2]] *= 10
    texts = search(model, (sources(),), max_new_tokens=30)
    assert all(4 <= token < VOCAB for text in texts for token in text)
    assert any(len(text) < 30 for text in texts)


def test_without_sources_a_language_model_writes_one_text(search):
    model = language_model()
    (text,) = search(model, (), max_new_tokens=6)
    assert 0 < len(text) <= 6
    assert search(Users(model).eval(), (), max_new_tokens=6) == [text]


def test_a_limit_of_learned_positions_is_said_before_anything_is_written(search):
    model = translator(positions="learned", max_length=8)
    assert len(search(model, (sources(),), max_new_tokens=8)) == 12
    with pytest.raises(ConfigError) as error:
        search(model, (sources(),), max_new_tokens=9)
    assert str(error.value) == (
        "9 new tokens after 1 are more than the 8 learned positions of the model; ask for at most 8"
    )


def test_generation_leaves_no_trace_in_the_model(search):
    model = translator()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search(model, (sources(),), max_new_tokens=5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(sources(), sources()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


# ---- greedy


def test_greedy_takes_the_likeliest_token_each_time():
    model, ids = translator(), sources(1)
    text = [BEGIN]
    for _ in range(10):
        scores = model(ids[ids != 0][None], torch.tensor([text]))[0, -1]
        scores[[0, 1, 2]] = -math.inf
        if scores.argmax() == END:
            break
        text.append(int(scores.argmax()))
    assert greedy(model, (ids,), begin=BEGIN, end=END, max_new_tokens=10) == [text[1:]]


# ---- beam search


def beam(model, ids, size, penalty=1.0, limit=12):
    return beam_search(
        model, (ids,), begin=BEGIN, end=END, max_new_tokens=limit, beam_size=size, length_penalty=penalty
    )


def log_probability(model, source, text):
    """Return that of `text`, which ends with END or is cut."""
    scores = model(source[None], torch.tensor([[BEGIN, *text[:-1]]]))[0].log_softmax(1)
    return float(scores[torch.arange(len(text)), torch.tensor(text)].sum().detach())


def test_a_beam_of_one_is_greedy():
    model, ids = translator(), sources(40)
    for penalty in (0.0, 1.0):
        assert beam(model, ids, 1, penalty) == greedy(model, (ids,), begin=BEGIN, end=END, max_new_tokens=12)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 2.0])
def test_a_beam_of_all_texts_finds_the_best(penalty):
    model, ids, limit = translator(vocab=7), sources(6), 4
    tokens = range(4, 7)
    texts = [[*text, END] for n in range(limit) for text in itertools.product(tokens, repeat=n)]
    found = beam(model, ids, 3**limit, penalty, limit)
    for source, text in zip(ids, found, strict=True):
        scores = [
            log_probability(model, source[source != 0], other) / ((5 + len(other)) / 6) ** penalty for other in texts
        ]
        assert [*text, END] == texts[max(range(len(texts)), key=scores.__getitem__)]


def test_a_wider_beam_finds_likelier_texts():
    model, ids = translator(), sources(40)

    def total(size):
        return sum(
            log_probability(model, s[s != 0], [*text, END])
            for s, text in zip(ids, beam(model, ids, size, 0.0, 60), strict=True)
        )

    assert total(1) < total(2) < total(8)


def test_a_length_penalty_favours_longer_texts():
    model, ids = translator(), sources(40)
    lengths = [sum(map(len, beam(model, ids, 5, penalty))) for penalty in (0.0, 1.0, 3.0)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_a_text_without_an_end_is_cut():
    model = translator()
    nn.init.zeros_(model.head.weight)  # all tokens are as likely,
    with torch.no_grad():  # but for the end
        model.decoder.norm.bias.fill_(1.0)
        model.head.weight[END] = -1.0
    assert [len(text) for text in beam(model, sources(3), 2, 0.0, 5)] == [5, 5, 5]


# ---- drawn texts


def draw(model, prompts, seed=0, **settings):
    defaults = {"max_new_tokens": 8, "temperature": 1.0, "top_k": None}
    return sample(model, prompts, rng=torch.Generator().manual_seed(seed), **(defaults | settings))


def test_a_seed_decides_the_text():
    model, prompts = language_model(), torch.tensor([[5, 6, 7]])
    assert draw(model, prompts, 1) == draw(model, prompts, 1)
    assert draw(model, prompts, 1) != draw(model, prompts, 2)


def test_tokens_are_drawn_as_often_as_they_are_likely():
    model, prompts = language_model(), torch.full((4000, 1), 5)
    scores = model(prompts[:1])[0, -1].detach()
    for temperature, top_k in ((1.0, None), (2.0, None), (1.0, 3)):
        masked = scores.clone()
        masked[:4] = -math.inf
        if top_k is not None:
            masked[masked < masked.topk(top_k).values[-1]] = -math.inf
        expected = (masked / temperature).softmax(0)
        texts = draw(model, prompts, max_new_tokens=1, temperature=temperature, top_k=top_k)
        counts = torch.bincount(torch.tensor(texts).flatten(), minlength=VOCAB) / 4000
        assert torch.all(counts[expected == 0] == 0)
        assert torch.allclose(counts, expected, atol=0.03)


def test_the_likeliest_is_drawn_without_temperature_and_from_one_candidate():
    model = language_model()
    likeliest = greedy(model, (), begin=5, end=END, max_new_tokens=8)
    for settings in ({"temperature": 0.0}, {"top_k": 1}):
        assert draw(model, torch.tensor([[5]]), end=END, **settings) == likeliest


def test_prompts_of_different_lengths_share_a_batch():
    model, prompts = language_model(), sources(16)
    with torch.no_grad():
        model.head.weight[END] *= 4  # some texts end early
    settings = {"temperature": 0.0, "end": END, "max_new_tokens": 12}
    alone = [draw(model, row[row != 0][None], **settings)[0] for row in prompts]
    assert draw(model, prompts, **settings) == alone
    assert draw(Users(model).eval(), prompts, **settings) == alone
    assert {len(text) for text in alone} > {12}


def test_a_text_without_an_end_token_goes_on_to_the_limit():
    texts = draw(language_model(), sources(9), max_new_tokens=30)
    assert [len(text) for text in texts] == [30] * 9
    assert min(token for text in texts for token in text) >= 4


def test_an_empty_prompt_is_an_error():
    for prompts in (torch.empty(1, 0, dtype=torch.int64), torch.tensor([[5, 6], [0, 0]])):
        with pytest.raises(ConfigError) as error:
            draw(language_model(), prompts)
        assert str(error.value) == "a prompt is empty; give at least one token to go on from"


def test_a_prompt_and_its_text_must_fit_the_learned_positions():
    model = language_model(positions="learned", max_length=8)
    assert len(draw(model, torch.tensor([[5, 6, 7]]), max_new_tokens=6)[0]) == 6
    with pytest.raises(ConfigError, match=r"^7 new tokens after 3 are more than the 8 .*; ask for at most 6$"):
        draw(model, torch.tensor([[5, 6, 7]]), max_new_tokens=7)
