"""Pairs to batches: distinct targets, hard negatives, CoTs, and errors that name the item."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace

import pytest
import torch
from made_pairs import make_cot, make_item, make_pair, make_target

from twn_lightning.backbone.processor import PromptProcessor
from twn_lightning.data.collate import MIXED, ContrastiveCollator, target_hash_int64
from twn_lightning.data.sources import get_source
from twn_lightning.errors import DataError
from twn_lightning.settings import DataSettings


def test_distinct_targets_are_encoded_once(processor):
    pairs = [make_pair(i, target) for i, target in enumerate([3, 5, 3, 5, 7])]
    batch = ContrastiveCollator(processor, "query")(pairs)
    assert len(batch.queries) == 5
    assert len(batch.candidates) == 3
    assert batch.positive_B.tolist() == [0, 1, 0, 1, 2]
    assert torch.equal(batch.target_hash_C[batch.positive_B], batch.target_hash_Q)
    assert batch.target_hash_Q.dtype == torch.int64
    assert not batch.candidate_is_negative_C.any()
    assert batch.candidate_cots is None
    assert batch.source == "made/read"
    assert batch.pairs == pairs


def test_hard_negatives_follow_the_positives_and_are_flagged(processor):
    # Target 5 is the other pair's positive, 8 is mined twice: neither may appear twice.
    pairs = [
        make_pair(0, 3, hard_negatives=(make_target(8), make_target(5))),
        make_pair(1, 5, "made/follow", hard_negatives=(make_target(8),)),
    ]
    batch = ContrastiveCollator(processor, "query")(pairs)
    assert batch.candidate_is_negative_C.tolist() == [False, False, True]
    assert batch.target_hash_C[2] == target_hash_int64(make_target(8).content_hash())
    assert len(set(batch.target_hash_C.tolist())) == 3
    assert batch.source == MIXED


def test_cots_are_normalised_and_round_trip(processor):
    dirty = make_item("q", cot=f"  {make_cot(3)} <|im_end|>\n")
    pairs = [make_pair(0, 3, query=dirty), make_pair(1, 4)]
    cots = ContrastiveCollator(processor, "query")(pairs).query_cots
    assert (
        processor.decode_cots(cots)[0].split() == processor.decode_cots(processor.encode_cots([make_cot(3)]))[0].split()
    )
    assert cots.closed_B.all()
    assert cots.lengths_B.tolist() == [processor.count_tokens(make_cot(3))] * 2


def test_candidates_think_where_they_have_something_to_think_about(processor):
    long_text = "the cell is " + "blue " * 10
    thinker = replace(make_item("long", long_text, image=False), cot=make_cot(1))
    pairs = [
        make_pair(0, 3),  # a label-like target: no CoT needed
        make_pair(1, 4, positive=thinker, target_hash="long", hard_negatives=(make_target(9),)),
    ]
    batch = ContrastiveCollator(processor, "both")(pairs)
    lengths = batch.candidate_cots.lengths_B.tolist()
    assert lengths == [0, processor.count_tokens(make_cot(1)), 0]
    assert batch.candidate_cots.closed_B.tolist() == [False, True, False]


def test_of_equal_targets_the_one_with_a_cot_is_taken(processor):
    pairs = [make_pair(0, 3), make_pair(1, 3, positive=make_target(3, cot=make_cot(3)))]
    batch = ContrastiveCollator(processor, "both")(pairs)
    assert batch.candidate_cots.lengths_B.tolist() == [processor.count_tokens(make_cot(3))]


def test_without_think_sides_no_cot_is_read(processor):
    pairs = [make_pair(0, 3, query=make_item("q", cot="not even a CoT"))]
    batch = ContrastiveCollator(processor, None)(pairs)
    assert batch.query_cots is None
    assert batch.candidate_cots is None


@pytest.mark.parametrize(
    ("cot", "message"),
    [
        (None, r"item 'q' \(query\) has no CoT, but the query side thinks.*think_sides to 'candidate'"),
        ("  ", r"item 'q' \(query\) has an empty CoT"),
        ("<think> cut off", r"item 'q' \(query\): its CoT is not .* ends in '<think> cut off'"),
    ],
)
def test_a_missing_cot_names_the_item(processor, cot, message):
    pairs = [make_pair(0, 3), make_pair(1, 4, query=make_item("q", cot=cot))]
    with pytest.raises(DataError, match=message):
        ContrastiveCollator(processor, "query")(pairs)


def test_a_candidate_with_media_must_have_a_cot_where_candidates_think(processor):
    with pytest.raises(DataError, match=r"item 'picture' \(candidate\) has no CoT"):
        ContrastiveCollator(processor, "candidate")([make_pair(0, 3, positive=make_item("picture"))])


def test_nothing_to_collate(processor):
    with pytest.raises(DataError, match="batch is empty"):
        ContrastiveCollator(processor, "query")([])


def test_hashes_are_the_same_in_every_process():
    assert target_hash_int64("0123456789abcdef") == -7908633057090152217
    assert -(2**63) <= target_hash_int64("x") < 2**63


def test_travels_to_worker_processes(processor):
    collator = pickle.loads(pickle.dumps(ContrastiveCollator(processor, "query")))
    pairs = [make_pair(i, i) for i in range(4)]
    ours, theirs = ContrastiveCollator(processor, "query")(pairs), collator(pairs)
    assert torch.equal(ours.queries.input_ids_BL, theirs.queries.input_ids_BL)
    assert torch.equal(ours.queries.pixel_values, theirs.queries.pixel_values)


def test_is_fast_on_nano(processor):
    nano_patches = replace(processor.patches, patch_size=12)
    collator = ContrastiveCollator(PromptProcessor(processor.tokenizer, nano_patches), "query")
    pairs = list(get_source("nano", DataSettings()).pairs("train", 128))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # processor time of one thread: a busy machine does not change it
    try:
        seconds = []
        for _ in range(6):
            start = time.process_time()
            collator(pairs)
            seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(seconds) < 0.05
