"""CUDA graphs on a GPU against the plain decoder, in fp32."""

from __future__ import annotations

import pytest
import torch

from twn_lightning.backbone.decoding import decode_cots
from twn_lightning.backbone.decoding_engine import decoding_with, make_engine
from twn_lightning.backbone.decoding_steps import RecordedSteps

pytestmark = pytest.mark.gpu


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("way", ["fused", "merged"])
def test_replayed_steps_equal_plain_ones(build, items, way, temperature):
    backbone = build().to("cuda")
    engine = make_engine(backbone, way)
    assert type(engine.steps) is RecordedSteps
    for count in (5, 2, 5):
        state = backbone.reason(backbone.processor(items[:count]).to("cuda"))
        found, expected = (
            _decode(backbone, state, chosen, temperature) for chosen in (engine, make_engine(backbone, "plain"))
        )
        assert torch.equal(found.cots.ids_BT, expected.cots.ids_BT)
        torch.testing.assert_close(found.log_probs_BT, expected.log_probs_BT, atol=1e-4, rtol=1e-4)
        grown, plain = (backbone.embed(decoded.state).generative_BD for decoded in (found, expected))
        torch.testing.assert_close(grown, plain, atol=1e-4, rtol=1e-4)


def _decode(backbone, state, engine, temperature):
    generator = torch.Generator("cuda").manual_seed(0)
    with decoding_with(backbone, engine):
        return decode_cots(backbone, state, max_new_tokens=20, temperature=temperature, generator=generator)
