import torch
from hypothesis import given
from hypothesis import strategies as st

from draftapprox_integrations.specpc.ranking import PRIOR_TOKENS, highest_scores, sentence_scores

tokens = st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 4)), max_size=40)


@given(tokens)
def test_unit_scores_equal_a_loop(pairs):
    scores = torch.tensor([float(score) for score, _ in pairs])
    owners = torch.tensor([owner for _, owner in pairs], dtype=torch.long)
    average = sum(scores.tolist()) / len(pairs) if pairs else 0.0
    means, highest = [], []
    for unit in range(5):
        own = [float(score) for score, owner in pairs if owner == unit]
        means.append((sum(own) + PRIOR_TOKENS * average) / (len(own) + PRIOR_TOKENS))
        highest.append(max(own, default=0.0))
    torch.testing.assert_close(sentence_scores(scores, owners, 5), torch.tensor(means))
    torch.testing.assert_close(highest_scores(scores, owners, 5), torch.tensor(highest))
