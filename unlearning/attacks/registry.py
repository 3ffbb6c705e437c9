"""The attacks there are, by cost."""

from __future__ import annotations

from .base import Attack
from .extraction import Extraction
from .jailbreak import Jailbreak
from .language import Language
from .membership import Membership
from .paraphrase import Paraphrase
from .quantise import Quantise
from .relearn import Relearn

DEFAULT: tuple[Attack, ...] = (
    Paraphrase(),
    Language(),
    Jailbreak(),
    Membership(),
    Extraction(),
)
"""Those that only ask."""

THOROUGH: tuple[Attack, ...] = (Relearn(), Quantise())
"""Those that train, or make a model anew."""
