"""What can go wrong in the store.

StoreError
├── ConfigurationError      the database, its extension, a right or a setting: a person must act
├── SchemaError             the schema is missing or of another version: `patchstore db upgrade`
├── SpecConflict            the same name with another recipe
├── NotFound                no such spec, image, patch or source
├── InvalidQuestion         a search that cannot be answered as asked
├── LeaseLost               another worker owns the image now: drop the result
├── CountMismatch           stored rows differ from computed ones: the transaction was rolled back
└── TransientStoreError     the same transaction may well succeed in a moment

`db.engine.store_errors` is the one place where driver errors become these.
"""


class StoreError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class ConfigurationError(StoreError):
    """The database cannot be used as it is set up."""


class SchemaError(StoreError):
    """The schema is missing or of another version."""


class SpecConflict(StoreError):
    """A spec of this name exists with another recipe."""


class NotFound(StoreError):
    """The named spec, image, patch or source does not exist."""


class InvalidQuestion(StoreError):
    """The search cannot be answered as asked."""


class LeaseLost(StoreError):
    """The fence has moved on: someone else owns this image."""


class CountMismatch(StoreError):
    """The number of stored rows is not the number of computed ones."""


class TransientStoreError(StoreError):
    """A lost connection, a deadlock, a timeout: try the whole transaction again."""
