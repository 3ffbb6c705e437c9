"""One KV cache with many policies: an endless text at constant memory."""

from .cache import RetentionCache
from .policies.registry import open_policy
from .reading import read, score

__all__ = ["RetentionCache", "open_policy", "read", "score"]
