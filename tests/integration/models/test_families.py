"""Every family of causal language models does what tests/helpers/families.toml says: exact numbers, or a refusal."""

import os
import re
from dataclasses import replace

import pytest
import torch

from draftapprox_integrations.models.attention import attention_view
from draftapprox_integrations.specpc.scoring.attention_scores import read_importance
from tests.conftest import ROOT
from tests.helpers.families import INSTALLED, METHODS, PAGE, TABLE, Group, groups, page, summary
from tests.helpers.families_checks import CHECKS, SPECPC, model_of, outcome, prompts, with_attention
from tests.unit.models.test_attention import eager_importance

REWRITE = "FAMILIES_REWRITE"  # set: docs/families.md is written anew
ROWS = [(name, group) for group in groups() if group.tried for name in group.families]


@pytest.mark.filterwarnings("ignore")  # tiny configs make the models' own code warn
@pytest.mark.parametrize(("name", "group"), [pytest.param(*row, id=row[0]) for row in ROWS])
def test_does_what_the_table_says(name: str, group: Group) -> None:
    if name.split("+")[0] not in INSTALLED:
        pytest.skip("not in this version of transformers")
    for method in CHECKS:
        found, reason = outcome(name, method), group.reason(method)
        if reason is None:
            assert found == "works", f"{method}: {found}"
        else:
            assert found.startswith("refused: "), f"{method} is not refused"
            assert re.search(reason, found), f"{method}: {found}"


def test_the_table_has_every_family_once() -> None:
    names = [name for group in groups() for name in group.families]
    assert len(names) == len(set(names))
    missing = sorted(set(INSTALLED) - set(names))
    assert not missing, (
        f"transformers has families that {TABLE.name} lacks: {', '.join(missing)}. Try them with `python -m "
        "tests.helpers.families NAME ...`, add each to the group whose outcome it has (sizes that do not fit a tiny "
        "model go to tests/helpers/families.py), then run `make families`. What gives wrong numbers needs a check in "
        "compatibility.py."
    )
    assert set(METHODS) == set(CHECKS)


def test_the_pages_say_what_the_table_says() -> None:
    if os.environ.get(REWRITE):
        PAGE.write_text(page())
    assert PAGE.read_text() == page(), "run `make families`"
    assert summary() in (ROOT / "docs" / "status.md").read_text()


def test_drafting_stops_before_positions_change() -> None:
    # phi3+longrope changes its positions at 44 tokens; the last drafted token is not fed
    model = model_of("phi3+longrope")
    ids = torch.tensor([prompts()[0] + [5, 6, 7]])
    found = read_importance(attention_view(model), ids, torch.ones_like(ids), 7, SPECPC)
    assert found.lookahead_ids is not None
    assert SPECPC.lookahead_tokens == 3
    assert len(found.lookahead_ids[0]) == 2
    eager = with_attention(model, "eager")
    scores, drafted = eager_importance(eager, ids[0], 7, replace(SPECPC, lookahead_tokens=2))
    torch.testing.assert_close(found.scores[0], scores, rtol=1e-4, atol=1e-4)
    assert found.lookahead_ids[0].tolist() == drafted.tolist()
