"""The sentences: honest about who wins, about chance, and about what is not known."""

from typing import Any

import pytest

from torchlasso.monitor.story import tell


def scores(
    metrics: dict[str, Any], sparse: float | None, dense: float | None, se: float | None = 0.01
) -> None:
    metrics["scores"]["sparse"] |= {"test": sparse, "test_se": se}
    metrics["scores"]["dense"] |= {"test": dense, "test_se": se}
    metrics["scores"]["difference_se"] = None if se is None else se * 2**0.5


def test_the_ordinary_network_may_win(metrics: dict[str, Any]) -> None:
    scores(metrics, 0.9, 0.95)
    story = tell(metrics, [])
    assert story.headline.startswith("The ordinary network does better here: 95.0%")
    assert story.remarks == (
        "With 114 test rows, the difference of 5.0 points is more than chance explains (about 2.8 points).",
    )


def test_scores_that_look_the_same_are_called_the_same(metrics: dict[str, Any]) -> None:
    scores(metrics, 0.95001, 0.95002)
    story = tell(metrics, [])
    assert story.headline.endswith("does just as well")
    assert story.remarks == ()


def test_unknown_scores_are_dashes(metrics: dict[str, Any]) -> None:
    scores(metrics, 0.95, None, None)
    metrics["scores"]["dense"]["gap"] = None
    story = tell(metrics, [])
    assert story.headline.endswith("the ordinary network of the same shape: –")
    assert (story.scores[1].test, story.scores[1].spread, story.scores[1].gap) == ("–", "", "–")


def test_nothing_selected_is_said(metrics: dict[str, Any]) -> None:
    for feature in metrics["features"]:
        feature |= {"selected": False, "importance": 0.0}
    story = tell(metrics, [])
    assert "0 of 16 features" in story.headline
    assert "predicts the same for every row" in story.remarks[-1]
    assert story.selected == ()
    assert len(story.dropped) == 16


@pytest.mark.parametrize(
    ("residual", "words"),
    [
        (0.0, "0.0% of the strength, so the training has settled"),
        (0.003, "0.3% of the strength, so the training has settled"),
        (0.05, "nearly settled"),
        (2.5, "250.0% of the strength, so the training has not settled"),
        (float("nan"), "could not be computed"),
        (None, "could not be computed"),
    ],
)
def test_the_residual_is_judged(residual: float | None, words: str, metrics: dict[str, Any]) -> None:
    metrics["certificate"]["residual"] = residual
    assert words in tell(metrics, []).certificate[0]


def test_a_negative_slack_is_a_warning(metrics: dict[str, Any]) -> None:
    metrics["certificate"]["slack"] = -0.01
    assert "Slack −0.01: a zero weight is pulled harder" in tell(metrics, []).certificate[1]


def test_the_choice_of_the_strength(metrics: dict[str, Any], path: list[dict[str, Any]]) -> None:
    choice, refit = tell(metrics, path).strength
    assert choice.startswith(
        "30 strengths were tried, weak to strong. The lowest validation loss is 0.08, at 0.0131"
    )
    assert "within one standard error" in choice
    assert "From about 0.31 on" in choice
    assert "0.104 before, 0.083 after" in refit


def test_one_row_may_be_best_and_chosen(metrics: dict[str, Any], path: list[dict[str, Any]]) -> None:
    row = path[0] | {"best": True, "chosen": True}
    assert (
        tell(metrics, [row]).strength[0].startswith("One strength was tried. The chosen one, 0.0289, has the")
    )


def test_no_refit(metrics: dict[str, Any]) -> None:
    metrics["refit"] = {"used": False, "valid_loss_penalised": 0.1, "valid_loss_refit": None}
    assert "not retrained" in tell(metrics, []).strength[1]


def test_a_linear_model_with_one_layer_and_no_weights(metrics: dict[str, Any]) -> None:
    metrics["model"]["hidden"] = []
    metrics["weights"] = {
        "nonzero": 0,
        "total": 0,
        "layers": [
            {"name": "bias", "shape": [3], "nonzero": 0, "total": 0, "dead_rows": 0, "dead_columns": 0}
        ],
    }
    story = tell(metrics, [])
    assert dict(story.facts)["Network"].startswith("no hidden layer (a linear model)")
    assert story.layers[0].share == 0
    assert story.layers[0].percent == "0.0%"
