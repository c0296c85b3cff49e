"""Models of ``transformers``: every view, mask and rotary table that its authors wrote."""

import pytest
import torch

pytest.importorskip("transformers")

from tests.compaction.hub import HUB
from tests.compaction.test_compact import check
from torchlasso.compaction.compact import compact


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", list(HUB))
def test_outputs_stay_and_what_is_dead_goes(name: str, share: float) -> None:
    check(HUB[name](), share)


def test_the_outputs_keep_their_type_and_their_names() -> None:
    case = HUB["hf_bert"]()
    inputs = case.inputs(2)
    small = compact(case.model.eval(), inputs).model
    result, expected = small(**inputs), case.model(**inputs)
    assert type(result) is type(expected)
    torch.testing.assert_close(result.logits, expected.logits)


def test_sequences_of_other_lengths() -> None:
    case = HUB["hf_llama"]()
    small = compact(case.model.eval(), case.inputs(2)).model
    for length in (3, 11):
        tokens = torch.randint(30, (2, length))
        torch.testing.assert_close(small(input_ids=tokens).logits, case.model(input_ids=tokens).logits)
