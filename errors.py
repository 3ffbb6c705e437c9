"""Every error Palimpsest raises on purpose, in one tree.

PalimpsestError
├── ConfigError(ValueError)      an argument or setting breaks a rule; says which, and the remedy
│   ├── UnknownName              a name is not in a registry; lists the known ones
│   ├── PlaceError               a memory's place is not one this model accepts
│   └── ConflictError            two contributions cannot be attached in the same turn
├── InputError(ValueError)       a text, message or file cannot be used as it is
├── ModelError
│   ├── ModelNotFound            no such model here, nor a way to get it
│   ├── IntegrityError           a file's sha256 is not the one expected
│   ├── CapabilityError          the model cannot do what was asked (log-probabilities, say)
│   ├── ContextOverflow          a prompt is longer than the model's window
│   ├── OutOfMemory              the device has no room for the model or the prompt
│   └── RemoteError              a served model failed; `partial` holds what had arrived
├── LedgerError                  the ledger is unreadable, unwritable or inconsistent
│   ├── RecordNotFound           no record of that id in this scope
│   ├── PlanOutdated             what was to be forgotten is no longer what would go
│   ├── ChainBroken              the event chain does not verify; names the first bad event
│   └── HomeLocked               another process holds the data folder; names it
├── EditError                    a model could not be edited; nothing of the edit was kept
│   ├── EditConflict             it contradicts an edit that holds; names both
│   └── EditFailed               its loss is no number, or it does not fit the model's window
├── UnlearnError                 a model could not be made to forget
│   └── UnlearnFailed            its loss is no number, or it cannot be told from what is to stay
├── Cancelled                    slow work that its caller has ended
└── StoreError                   a store's artefacts are damaged or disagree with the ledger
"""

from __future__ import annotations


class PalimpsestError(Exception):
    """Base of every error raised on purpose by this package."""


class ConfigError(PalimpsestError, ValueError):
    """An argument or setting breaks a rule."""


class UnknownName(ConfigError):
    """A name that no registry row or entry point provides."""


class PlaceError(ConfigError):
    """A memory enters at a place that the model does not accept."""


class ConflictError(ConfigError):
    """Two contributions that cannot be attached together."""


class InputError(PalimpsestError, ValueError):
    """A text, message or file that cannot be used as it is."""


class ModelError(PalimpsestError):
    """Something about a model."""


class ModelNotFound(ModelError):
    """The model is not here."""


class IntegrityError(ModelError):
    """A file is not the one its checksum promises."""


class CapabilityError(ModelError):
    """The model cannot do what was asked of it."""


class ContextOverflow(ModelError, ValueError):
    """A prompt does not fit the model's window."""


class OutOfMemory(ModelError):
    """The device has no room left."""


class RemoteError(ModelError):
    """A served model failed. `partial` is the text that had arrived before it did."""

    def __init__(self, message: str, *, partial: str = "") -> None:
        super().__init__(message)
        self.partial = partial


class LedgerError(PalimpsestError):
    """The ledger cannot do what was asked."""


class RecordNotFound(LedgerError, KeyError):
    """No record of that id in this scope."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0]) if self.args else ""


class PlanOutdated(LedgerError):
    """The ledger has changed since it was listed what would be forgotten."""


class ChainBroken(LedgerError):
    """The hash chain of events does not verify."""


class HomeLocked(LedgerError):
    """Another process holds the data folder."""


class EditError(PalimpsestError):
    """A model could not be edited; nothing of the edit was kept."""


class EditConflict(EditError, ValueError):
    """An edit contradicts one that holds."""


class EditFailed(EditError):
    """An edit cannot be learnt. `failed` are the ids of the edits that were learnt together, or of
    the one among them that is to blame, where it is known as `edit`."""

    failed: tuple[str, ...] = ()

    def __init__(self, message: str, *, edit: object = None) -> None:
        super().__init__(message)
        self.edit = edit


class UnlearnError(PalimpsestError):
    """A model could not be made to forget."""


class UnlearnFailed(UnlearnError):
    """A request cannot be learnt. `failed` are the ids of the requests that were to be."""

    failed: tuple[str, ...] = ()


class Cancelled(PalimpsestError):
    """Slow work that its caller has ended."""


class StoreError(PalimpsestError):
    """A store's artefacts are damaged."""
