"""How a result is stored: the choice of rank."""

from mergelab.ranks.budget import RankBudget
from mergelab.ranks.cutting import Target, budget_note, rank_note, rank_reached, searched, target_rank, truncate
from mergelab.ranks.dynamic import Dynamic, Energy, SvCumulative, SvFro, SvRatio
from mergelab.ranks.reading import Rank, Rule, check_rank, own_rank, parse_rank, rank_record, rank_repr, rank_text

__all__ = [
    "Dynamic",
    "Energy",
    "Rank",
    "RankBudget",
    "Rule",
    "SvCumulative",
    "SvFro",
    "SvRatio",
    "Target",
    "budget_note",
    "check_rank",
    "own_rank",
    "parse_rank",
    "rank_note",
    "rank_reached",
    "rank_record",
    "rank_repr",
    "rank_text",
    "searched",
    "target_rank",
    "truncate",
]
