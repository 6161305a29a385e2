"""Text in, text out: segment passages, rank their sentences, pack them into a budget."""

from .packing import Packed, Packer
from .ranking import Ranking, rank
from .segmentation import Passage, Sentence, segment

__all__ = ["Packed", "Packer", "Passage", "Ranking", "Sentence", "rank", "segment"]
