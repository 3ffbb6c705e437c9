"""A transformers model in this process. Memories may enter at every place.

Knows nothing of catalogs: it is given a folder. Text becomes ids in `prompting`, ids follow one
another in `decoding`, ids become text in `detokenise`, contributions are attached in `attach`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

from ..errors import ConfigError, ContextOverflow, InputError
from .attach import attached
from .base import Capability, Finish, GenerationConfig, Token
from .decoding import decode, read
from .detokenise import ReplyText
from .loading import DeviceMap, load_model, load_tokenizer, memory_errors, uncollected
from .places import Cache, Composition, Contribution, Place, compose
from .prompting import PromptEncoder
from .scoring import continuation_logprobs, hidden_states, next_logprobs, sequence_logprobs

if TYPE_CHECKING:
    import torch
    from langchain_core.messages import BaseMessage
    from langchain_core.tools import BaseTool
    from torch import Tensor
    from transformers import Cache as KVCache
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LocalLLM:
    """A causal language model of transformers, on CPU or CUDA.

    One request at a time has the model; others wait. A `stream` that was begun has it until it is
    exhausted or closed, so close one that you leave early before you call the model again.

    Args:
        model: in evaluation mode; its weights are read, never written.
        tokenizer: with a chat template, if it is to be chatted with.
    """

    places: frozenset[Place] = frozenset({"prompt", "cache", "weights", "logits"})

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, name: str
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self._prompts = PromptEncoder(tokenizer)
        self._busy = Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        device_map: DeviceMap | None = None,
        name: str | None = None,
    ) -> LocalLLM:
        """Load a folder of safetensors, configuration and tokenizer.

        Args:
            device: "cpu", "cuda", "cuda:1", or "auto": CUDA where there is one.
            dtype: "float32", "bfloat16", "float16", or "auto": float32 on CPU, else bfloat16.
            device_map: as in transformers, to spread a model over devices; instead of `device`.
            name: what errors and traces call it; by default the folder's name.

        Raises:
            ModelNotFound, ModelError, ConfigError, OutOfMemory.
        """
        folder = Path(path)
        with uncollected():
            model = load_model(folder, device, dtype, device_map)
            return cls(model, load_tokenizer(folder), name=name or folder.name)

    @property
    def device(self) -> torch.device:
        """Where the model's first layer lies."""
        device: torch.device = self.model.device
        return device

    @property
    def capabilities(self) -> frozenset[Capability]:
        """ "tools" only where the chat template has a place for them."""
        can: frozenset[Capability] = frozenset({"logprobs", "hidden_states"})
        return can | {"tools"} if self._prompts.takes_tools else can

    @property
    def context_window(self) -> int:
        """Tokens the model was trained to see at once; the tokenizer's limit if it names none."""
        config = self.model.config.get_text_config(decoder=True)
        trained = getattr(config, "max_position_embeddings", None)
        return int(trained or self.tokenizer.model_max_length)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` alone; control-token text in it counts as plain text."""
        return len(self._prompts.text(text))

    def count_prompt_tokens(
        self, messages: Sequence[BaseMessage], tools: Sequence[BaseTool] = ()
    ) -> int:
        """Tokens of the whole prompt, template and cue included."""
        return len(self._prompts.prompt(messages, tools))

    def stream(
        self,
        messages: Sequence[BaseMessage],
        contributions: Sequence[Contribution] = (),
        config: GenerationConfig = GenerationConfig(),
        *,
        tools: Sequence[BaseTool] = (),
        cancel: Event | None = None,
    ) -> Iterator[Token]:
        """Generate a reply, one token of the vocabulary at a time; see `LLM.stream`.

        `Token.logprob` is under the model with everything attached, before sampling options. The
        last token may carry text that had been held back.

        Raises:
            ContextOverflow, ConflictError, OutOfMemory.
            ConfigError: a contribution is a prompt, or patches a layer that is not there.
            InputError, CapabilityError: the messages cannot be put into a prompt.
        """
        composition = compose(contributions)
        if composition.prompts:
            raise ConfigError(
                f"contribution of memory {composition.prompts[0].memory!r} enters at the prompt,"
                " and the agent places those; put its text into the messages"
            )
        prompt = self._heard(messages, composition.cache, tools)
        room = self._room_behind(len(prompt), composition.cache)
        with self._busy:
            yield from self._reply(prompt, composition, config, room, cancel)

    def _reply(
        self,
        prompt: list[int],
        composition: Composition,
        config: GenerationConfig,
        room: int,
        cancel: Event | None,
    ) -> Iterator[Token]:
        import torch

        text = ReplyText(self.tokenizer, config.stop)
        limit = min(config.max_tokens, room)
        row = torch.tensor([prompt], device=self.device)
        with (
            attached(self.model, composition, row) as attachment,
            self._handed_back(composition.cache, attachment.cache, prompt) as heard,
        ):
            steps = decode(self.model, row, attachment, config, cancel)
            for count, (id, logprob) in enumerate(steps, start=1):
                heard.append(id)
                ended = id in self._end_of_reply
                shown = "" if ended else text.push(id)
                finish: Finish | None = None
                if ended or text.stopped:
                    finish = "stop"
                elif count == limit:
                    finish = "length"
                yield Token(shown + (text.finish() if finish else ""), id, logprob, finish)
                if finish:
                    return
        yield Token(text.finish(), finish="cancelled")

    def read(
        self,
        messages: Sequence[BaseMessage],
        into: Cache,
        *,
        progress: Callable[[int, int], None] | None = None,
        cancel: Event | None = None,
    ) -> int:
        """Read messages into a cache, and say nothing; see `SupportsReading.read`.

        Raises:
            ContextOverflow: it is not endless, and they do not fit.
            InputError, CapabilityError, OutOfMemory.
        """
        import torch

        prompt = self._heard(messages, into, cue=False) if messages else list(into.unread)
        self._room_behind(len(prompt), into)
        row = torch.tensor([prompt], device=self.device)
        with (
            self._busy,
            attached(self.model, Composition(cache=into), row) as attachment,
            self._handed_back(into, attachment.cache, prompt, closed=True),
        ):
            before: int = attachment.cache.get_seq_length()

            def stopped() -> bool:
                if progress is not None:
                    progress(attachment.cache.get_seq_length() - before, len(prompt))
                return cancel is not None and cancel.is_set()

            with torch.no_grad(), memory_errors(f"{len(prompt)} tokens", self.device):
                read(self.model, row, attachment.cache, stopped)
            stopped()
            return int(attachment.cache.get_seq_length()) - before

    def _heard(
        self,
        messages: Sequence[BaseMessage],
        cache: Cache | None,
        tools: Sequence[BaseTool] = (),
        *,
        cue: bool = True,
    ) -> list[int]:
        """Ids that the model has to read: the whole prompt, or what follows in its cache."""
        if cache is None or not cache.seen:
            return self._prompts.prompt(messages, tools, cue=cue)
        return [*cache.unread, *self._prompts.continuation(messages, cue=cue)]

    @contextmanager
    def _handed_back(
        self, given: Cache | None, cache: KVCache, prompt: Sequence[int], *, closed: bool = False
    ) -> Iterator[list[int]]:
        """All ids so far, to be continued; afterwards the cache's owner is told which of them were
        not read, and what closes the reply."""
        heard, before = list(prompt), cache.get_seq_length()
        try:
            yield heard
        finally:
            if given is not None and given.done is not None:
                unread = heard[cache.get_seq_length() - before :]
                if not closed:
                    if unread and unread[-1] in self._end_of_reply:
                        unread.pop()
                    unread += self._prompts.closing
                given.done(cache, unread)

    def logprobs(
        self, messages: Sequence[BaseMessage], continuations: Sequence[str]
    ) -> list[float]:
        """ln P(continuation | prompt) in nats, summed over its tokens, for each continuation.

        The prompt is read once. A continuation is text: no end of turn is scored behind it.

        Raises:
            ContextOverflow: the prompt with the longest continuation exceeds the window.
            InputError, OutOfMemory.
        """
        prompt = self._prompts.prompt(messages)
        rows = [self._prompts.text(text) for text in continuations]
        self._room(len(prompt) + max(map(len, rows), default=1) - 1)
        with self._scoring():
            return continuation_logprobs(self.model, prompt, rows)

    def entropy(self, messages: Sequence[BaseMessage], prefix: str = "") -> float:
        """Entropy in nats of the reply's first token, or of the one after `prefix`.

        Raises:
            ContextOverflow, InputError, OutOfMemory.
        """
        ids = self._prompts.prompt(messages) + self._prompts.text(prefix)
        self._room(len(ids))
        with self._scoring():
            logprobs = next_logprobs(self.model, ids)
        return float(-(logprobs.exp() * logprobs).nansum())

    def text_logprobs(self, text: str) -> Tensor:
        """ln P of each token of `text` given those before it: [T - 1] float32, CPU, in nats.

        Raises:
            ContextOverflow, OutOfMemory.
            InputError: `text` has fewer than two tokens, so nothing to score.
        """
        ids = self._prompts.text(text)
        if len(ids) < 2:
            raise InputError(f"text={text!r} has {len(ids)} tokens; scoring needs at least 2")
        self._room(len(ids) - 1)
        with self._scoring():
            return sequence_logprobs(self.model, ids)

    def hidden_states(
        self, texts: Sequence[str], layers: Sequence[int] | None = None
    ) -> list[Tensor]:
        """What the model makes of each token of each text, float32 on the CPU.

        Args:
            layers: 0 is the embedding, -1 the last layer after its final norm.

        Returns:
            For each text of T tokens [T, D], the last layer; or [L, T, D] for given `layers`.

        Raises:
            ConfigError: no such layer.
            ContextOverflow, InputError, OutOfMemory.
        """
        depth = self.model.config.get_text_config(decoder=True).num_hidden_layers
        for layer in layers or ():
            if not -depth - 1 <= layer <= depth:
                raise ConfigError(f"layers has {layer}, and must lie within 0..{depth} or -1..")
        rows = [self._prompts.text(text) for text in texts]
        self._room(max(map(len, rows), default=0) - 1)
        with self._scoring():
            return hidden_states(self.model, rows, layers)

    @contextmanager
    def _scoring(self) -> Iterator[None]:
        """The model, with nothing attached to it by a reply that is being generated."""
        with self._busy, memory_errors("scoring", self.device):
            yield

    @cached_property
    def _end_of_reply(self) -> frozenset[int]:
        """Ids that end a reply, by the generation config, the tokenizer and the chat template."""
        named = self.model.generation_config.eos_token_id
        listed = named if isinstance(named, list) else [named]
        return self._prompts.end_of_turn | {id for id in listed if id is not None}

    def _room_behind(self, tokens: int, cache: Cache | None) -> int:
        """Tokens that still fit behind so many more in a cache.

        Raises:
            ContextOverflow: none do.
        """
        if cache is not None and cache.endless:
            return sys.maxsize
        return self._room(tokens + (cache.seen if cache is not None else 0))

    def _room(self, tokens: int) -> int:
        """Tokens that still fit behind that many.

        Raises:
            ContextOverflow: none do.
        """
        room = self.context_window - tokens
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {tokens:,} tokens, and the window of {self.name!r} holds"
                f" {self.context_window:,} with at least one for the reply; shorten the prompt"
            )
        return room
