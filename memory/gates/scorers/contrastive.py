"""O3's tuning of the features, on the model's own states (Gao et al. 2025, arXiv 2407.10223).

The paper tunes a RoBERTa by LoRA; here a LoRA on a twin of the model is tuned. A prompt with 15 %
of its tokens masked is to be told from the others: with the key being the model without LoRA,
Delta_l(i, j) = softmax_j f_l(x*_i) . f_key_l(x_j), and the loss is the entropy of Delta over all
layers (equation 7), plus the likelihood of the masked tokens (equation 8). Nothing in it says that
j = i is right; `objective="infonce"` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, normalize

from ....errors import ConfigError
from ....llm.twin import twin
from ..features import means, padded, rows_of
from ..layers import LayerFeatures

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MASKED, KEPT, DRAWN = 0.15, 0.1, 0.1
"""Share of tokens to be guessed; of these, those left as they are and those replaced at random."""

TINY = 1e-5
OBJECTIVES = ("entropy", "infonce")


@dataclass(frozen=True, slots=True)
class Tuning:
    """See the module.

    Args:
        objective: `entropy`, as coded, of plain products; `infonce`, with the positive marked, of
            cosines.
        temperature: of the cosines.
        rank, rate, epochs, batch: of LoRA and AdamW.
        guess: weight of the masked tokens' likelihood.
    """

    objective: str = "entropy"
    temperature: float = 0.1
    rank: int = 8
    rate: float = 1e-4
    epochs: int = 2
    batch: int = 8
    guess: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConfigError(f"objective={self.objective!r} must be one of {OBJECTIVES}")

    def tune(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        layers: Sequence[int] | None = None,
    ) -> LayerFeatures:
        """Features by a twin of `model` that was tuned to texts; `model` stays as it is."""
        from peft import LoraConfig, inject_adapter_in_model

        key = twin(model)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=4 * self.rank,
            lora_dropout=0.0,
            target_modules=["q_proj", "k_proj", "v_proj"],
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            tuned = inject_adapter_in_model(config, twin(model))
        features = LayerFeatures(tuned, tokenizer, layers)
        weights = [weight for weight in tuned.parameters() if weight.requires_grad]
        optimiser = torch.optim.AdamW(weights, lr=self.rate, weight_decay=0.01)
        rows, draw = rows_of(tokenizer, texts), Random(self.seed)
        blank = tokenizer.eos_token_id if isinstance(tokenizer.eos_token_id, int) else 0
        with torch.enable_grad():
            for _ in range(self.epochs):
                order = draw.sample(range(len(rows)), len(rows))
                for at in range(0, len(order), self.batch):
                    batch = [rows[row] for row in order[at : at + self.batch]]
                    loss = self._loss(tuned, key, batch, features.layers, blank, draw)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
        for weight in weights:
            weight.requires_grad_(False)
        return features

    def _loss(
        self,
        tuned: PreTrainedModel,
        key: PreTrainedModel,
        rows: Sequence[Sequence[int]],
        layers: Sequence[int],
        blank: int,
        draw: Random,
    ) -> Tensor:
        changed = [masked(row, blank, tuned.config.vocab_size, draw) for row in rows]
        found = means(tuned, [ids for ids, _ in changed], layers).transpose(0, 1)
        with torch.no_grad():
            keys = means(key, rows, layers).transpose(0, 1)
        loss = self.contrast(found, keys)
        if self.guess:
            ids, mask = padded([ids for ids, _ in changed], tuned.device)
            logits = tuned(input_ids=ids, attention_mask=mask, use_cache=False).logits
            right = torch.full_like(ids, -100)
            for at, (_, guessed) in enumerate(changed):
                for place in guessed:
                    right[at, place - 1] = rows[at][place]
            if (right >= 0).any():
                loss = loss + self.guess * cross_entropy(logits.flatten(0, 1), right.flatten())
        return loss

    def contrast(self, found: Tensor, keys: Tensor) -> Tensor:
        """The loss of masked prompts' features [L, n, D] beside the keys' [L, n, D], summed over
        layers."""
        if self.objective == "entropy":
            likely = (found @ keys.transpose(1, 2)).softmax(-1)
            return -(likely * (likely + TINY).log()).sum(-1).mean(1).sum()
        cosines = normalize(found, dim=-1) @ normalize(keys, dim=-1).transpose(1, 2)
        right = torch.arange(found.shape[1], device=found.device).expand(len(found), -1)
        losses = cross_entropy(
            (cosines / self.temperature).flatten(0, 1), right.flatten(), reduction="none"
        )
        return losses.reshape(len(found), -1).mean(1).sum()


def masked(
    row: Sequence[int], blank: int, vocabulary: int, draw: Random
) -> tuple[list[int], list[int]]:
    """A row in which some tokens, never the first, are masked by BERT's rule; and their places."""
    ids = list(row)
    places = [place for place in range(1, len(ids)) if draw.random() < MASKED]
    for place in places:
        chance = draw.random()
        if chance < DRAWN:
            ids[place] = draw.randrange(vocabulary)
        elif chance >= DRAWN + KEPT:
            ids[place] = blank
    return ids, places
