"""The tables (schema `patchstore`) as SQLAlchemy sees them; migrations make them.

`tests/db/test_db_migrations.py` holds that both agree. Partitions of `patch_feature` are made by
`db.specs` when a spec is added and are no part of this metadata.
"""

from datetime import datetime

from pgvector.sqlalchemy import VECTOR
from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

SCHEMA = "patchstore"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)

now = func.now()


def timestamp(name: str, *, required: bool = True) -> Column[datetime]:
    """A point in time; a required one defaults to the transaction's start."""
    default = now if required else None
    return Column(name, DateTime(timezone=True), nullable=not required, server_default=default)


feature_spec = Table(
    "feature_spec",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("digest", Text, nullable=False),
    Column("recipe", JSONB, nullable=False),  # canonical JSON of the FeatureSpec
    Column("dim", Integer, nullable=False),
    Column("metric", Text, nullable=False),
    Column("distance_operator", Text, nullable=False),
    Column("weights_source", Text, nullable=False),  # where last found
    timestamp("created_at"),
    CheckConstraint("dim BETWEEN 1 AND 16000", name="dim"),
    CheckConstraint("distance_operator IN ('<=>', '<->', '<#>')", name="distance_operator"),
)

precision_check = Table(
    "precision_check",
    metadata,
    Column("spec_id", ForeignKey(feature_spec.c.id, ondelete="CASCADE"), primary_key=True),
    Column("device_kind", Text, primary_key=True),
    Column("precision", Text, nullable=False),
    Column("min_cosine", Float, nullable=False),
    Column("detail", Text, nullable=False),
    timestamp("checked_at"),
)

spec_alias = Table(
    "spec_alias",
    metadata,
    Column("name", Text, primary_key=True),
    Column("spec_id", ForeignKey(feature_spec.c.id, ondelete="RESTRICT"), nullable=False),
    timestamp("updated_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("spec_id", ForeignKey(feature_spec.c.id, ondelete="CASCADE"), nullable=False),
    timestamp("finished_at"),
    Column("recall", REAL),  # of the index at 10; null where searches are exact
    Column("sampled", Integer, nullable=False),
    Column("report", JSONB, nullable=False),
    Index(None, "spec_id", "finished_at"),
)

index_build = Table(
    "index_build",
    metadata,
    Column("spec_id", ForeignKey(feature_spec.c.id, ondelete="CASCADE"), primary_key=True),
    timestamp("built_at"),
    Column("rows_deleted", BigInteger, nullable=False),  # by the server's count, up to the build
)

source = Table(
    "source",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("root", Text, nullable=False, unique=True),
    timestamp("created_at"),
)

ingest_run = Table(
    "ingest_run",
    metadata,
    Column("id", Integer, Identity(always=True), primary_key=True),
    Column("source_id", ForeignKey(source.c.id), nullable=False),
    Column("spec_id", ForeignKey(feature_spec.c.id, ondelete="CASCADE"), nullable=False),
    Column("state", Text, nullable=False, server_default="running"),
    Column("host", Text, nullable=False),
    Column("summary", JSONB),
    timestamp("started_at"),
    timestamp("finished_at", required=False),
    CheckConstraint(
        "state IN ('running', 'completed', 'completed_with_errors', 'failed', 'crashed')",
        name="state",
    ),
    Index(None, "source_id", "spec_id"),
)

image = Table(
    "image",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("sha256", LargeBinary, nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("width", Integer),  # upright; unknown where the header cannot be read
    Column("height", Integer),
    timestamp("first_seen"),
    CheckConstraint("octet_length(sha256) = 32", name="sha256"),
)

image_location = Table(
    "image_location",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("source_id", ForeignKey(source.c.id), nullable=False),
    Column("uri", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mark", Text, nullable=False),  # modification mark: mtime or ETag
    Column("image_id", ForeignKey(image.c.id)),  # content; unknown where unreadable
    # content that searches still show until the new one is done
    Column("previous_image_id", ForeignKey(image.c.id)),
    Column("error", Text),  # why the file could not be read
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    timestamp("first_seen"),
    timestamp("last_seen"),
    timestamp("vanished_at", required=False),
    CheckConstraint("(image_id IS NULL) = (error IS NOT NULL)", name="content_or_error"),
    # By hashes, for a URI may be longer than an entry of a B-tree (2,704 bytes).
    Index(
        "uq_image_location_source_id_uri",
        "source_id",
        text("hashtextextended(uri, 0)"),
        text("hashtextextended(uri, 1)"),
        unique=True,
    ),
    Index("ix_image_location_uri", "uri", postgresql_using="hash"),
    Index(
        "ix_image_location_metadata",
        "metadata",
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
        postgresql_where=text("metadata <> '{}'::jsonb"),
    ),
    Index("ix_image_location_image_id", "image_id"),
    Index(
        "ix_image_location_previous_image_id",
        "previous_image_id",
        postgresql_where=text("previous_image_id IS NOT NULL"),
    ),
)

# By its beginning, for prefixes; a whole URI may be too long.
Index(
    "ix_image_location_prefix",
    func.left(image_location.c.uri, 255).label("beginning"),
    postgresql_ops={"beginning": "text_pattern_ops"},
)

fence_seq = Sequence("fence_seq", metadata=metadata)

extraction = Table(
    "extraction",
    metadata,
    Column("spec_id", ForeignKey(feature_spec.c.id, ondelete="CASCADE"), primary_key=True),
    Column("image_id", ForeignKey(image.c.id), primary_key=True),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("visible", Boolean, nullable=False, server_default=text("false")),
    Column("fence", BigInteger),  # number of the last lease: a late writer holds an old one
    Column("leased_until", DateTime(timezone=True)),
    Column("run_id", ForeignKey(ingest_run.c.id, ondelete="SET NULL")),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("error", Text),
    Column("patch_count", Integer),
    timestamp("updated_at"),
    CheckConstraint("state IN ('pending', 'leased', 'done', 'failed')", name="state"),
    CheckConstraint("(state = 'done') = (patch_count IS NOT NULL)", name="done_has_count"),
    CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="failed_has_reason"),
    CheckConstraint("(state = 'leased') = (leased_until IS NOT NULL)", name="leased_has_term"),
    CheckConstraint("NOT visible OR state = 'done'", name="visible_is_done"),
    Index(
        "ix_extraction_pending",
        "spec_id",
        "attempts",
        "image_id",
        postgresql_where=text("state = 'pending'"),
    ),
    Index("ix_extraction_leased", "run_id", postgresql_where=text("state = 'leased'")),
    Index("ix_extraction_failed", "spec_id", postgresql_where=text("state = 'failed'")),
    Index("ix_extraction_image_id", "image_id"),
    Index("ix_extraction_run_id", "run_id"),
)

patch_feature_id_seq = Sequence("patch_feature_id_seq", metadata=metadata)

patch_feature = Table(
    "patch_feature",
    metadata,
    Column("spec_id", Integer, primary_key=True),
    Column(
        "id",
        BigInteger,
        patch_feature_id_seq,
        primary_key=True,
        server_default=patch_feature_id_seq.next_value(),
    ),
    Column("image_id", BigInteger, nullable=False),
    Column("x", Integer, nullable=False),
    Column("y", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("scale", REAL, nullable=False),
    Column("embedding", VECTOR, nullable=False),
    UniqueConstraint("spec_id", "image_id", "scale", "y", "x"),
    CheckConstraint("x >= 0 AND y >= 0 AND width > 0 AND height > 0", name="box"),
    postgresql_partition_by="LIST (spec_id)",
)
