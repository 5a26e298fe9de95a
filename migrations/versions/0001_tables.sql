CREATE SEQUENCE patchstore.fence_seq;

CREATE SEQUENCE patchstore.patch_feature_id_seq;

CREATE TABLE patchstore.feature_spec (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    name TEXT NOT NULL,
    digest TEXT NOT NULL,
    recipe JSONB NOT NULL,
    dim INTEGER NOT NULL,
    metric TEXT NOT NULL,
    distance_operator TEXT NOT NULL,
    weights_source TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_feature_spec PRIMARY KEY (id),
    CONSTRAINT ck_feature_spec_dim CHECK (dim BETWEEN 1 AND 16000),
    CONSTRAINT ck_feature_spec_distance_operator CHECK (distance_operator IN ('<=>', '<->', '<#>')),
    CONSTRAINT uq_feature_spec_name UNIQUE (name)
);

CREATE TABLE patchstore.image (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    sha256 BYTEA NOT NULL,
    size_bytes BIGINT NOT NULL,
    width INTEGER,
    height INTEGER,
    first_seen TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_image PRIMARY KEY (id),
    CONSTRAINT ck_image_sha256 CHECK (octet_length(sha256) = 32),
    CONSTRAINT uq_image_sha256 UNIQUE (sha256)
);

CREATE TABLE patchstore.patch_feature (
    spec_id INTEGER NOT NULL,
    id BIGINT DEFAULT nextval('patchstore.patch_feature_id_seq') NOT NULL,
    image_id BIGINT NOT NULL,
    x INTEGER NOT NULL,
    y INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    scale REAL NOT NULL,
    embedding VECTOR NOT NULL,
    CONSTRAINT pk_patch_feature PRIMARY KEY (spec_id, id),
    CONSTRAINT uq_patch_feature_spec_id_image_id_scale_y_x UNIQUE (spec_id, image_id, scale, y, x),
    CONSTRAINT ck_patch_feature_box CHECK (x >= 0 AND y >= 0 AND width > 0 AND height > 0)
)
 PARTITION BY LIST (spec_id);

CREATE TABLE patchstore.source (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    root TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_source PRIMARY KEY (id),
    CONSTRAINT uq_source_root UNIQUE (root)
);

CREATE TABLE patchstore.image_location (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    source_id INTEGER NOT NULL,
    uri TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    mark TEXT NOT NULL,
    image_id BIGINT,
    previous_image_id BIGINT,
    error TEXT,
    metadata JSONB DEFAULT '{}'::jsonb NOT NULL,
    first_seen TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    last_seen TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    vanished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_image_location PRIMARY KEY (id),
    CONSTRAINT ck_image_location_content_or_error CHECK ((image_id IS NULL) = (error IS NOT NULL)),
    CONSTRAINT fk_image_location_source_id FOREIGN KEY(source_id) REFERENCES patchstore.source (id),
    CONSTRAINT fk_image_location_image_id FOREIGN KEY(image_id) REFERENCES patchstore.image (id),
    CONSTRAINT fk_image_location_previous_image_id FOREIGN KEY(previous_image_id) REFERENCES patchstore.image (id)
);

CREATE INDEX ix_image_location_image_id ON patchstore.image_location (image_id);

CREATE INDEX ix_image_location_previous_image_id ON patchstore.image_location (previous_image_id) WHERE previous_image_id IS NOT NULL;

-- By hashes, for a URI may be longer than an entry of a B-tree.
CREATE UNIQUE INDEX uq_image_location_source_id_uri ON patchstore.image_location (source_id, hashtextextended(uri, 0), hashtextextended(uri, 1));

CREATE INDEX ix_image_location_uri ON patchstore.image_location USING hash (uri);

CREATE TABLE patchstore.ingest_run (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    source_id INTEGER NOT NULL,
    spec_id INTEGER NOT NULL,
    state TEXT DEFAULT 'running' NOT NULL,
    host TEXT NOT NULL,
    summary JSONB,
    started_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_ingest_run PRIMARY KEY (id),
    CONSTRAINT ck_ingest_run_state CHECK (state IN ('running', 'completed', 'completed_with_errors', 'failed', 'crashed')),
    CONSTRAINT fk_ingest_run_source_id FOREIGN KEY(source_id) REFERENCES patchstore.source (id),
    CONSTRAINT fk_ingest_run_spec_id FOREIGN KEY(spec_id) REFERENCES patchstore.feature_spec (id) ON DELETE CASCADE
);

CREATE INDEX ix_ingest_run_source_id_spec_id ON patchstore.ingest_run (source_id, spec_id);

CREATE TABLE patchstore.precision_check (
    spec_id INTEGER NOT NULL,
    device_kind TEXT NOT NULL,
    precision TEXT NOT NULL,
    min_cosine FLOAT NOT NULL,
    detail TEXT NOT NULL,
    checked_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_precision_check PRIMARY KEY (spec_id, device_kind),
    CONSTRAINT fk_precision_check_spec_id FOREIGN KEY(spec_id) REFERENCES patchstore.feature_spec (id) ON DELETE CASCADE
);

CREATE TABLE patchstore.extraction (
    spec_id INTEGER NOT NULL,
    image_id BIGINT NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    visible BOOLEAN DEFAULT false NOT NULL,
    fence BIGINT,
    leased_until TIMESTAMP WITH TIME ZONE,
    run_id INTEGER,
    attempts INTEGER DEFAULT 0 NOT NULL,
    error TEXT,
    patch_count INTEGER,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_extraction PRIMARY KEY (spec_id, image_id),
    CONSTRAINT ck_extraction_state CHECK (state IN ('pending', 'leased', 'done', 'failed')),
    CONSTRAINT ck_extraction_done_has_count CHECK ((state = 'done') = (patch_count IS NOT NULL)),
    CONSTRAINT ck_extraction_failed_has_reason CHECK ((state = 'failed') = (error IS NOT NULL)),
    CONSTRAINT ck_extraction_leased_has_term CHECK ((state = 'leased') = (leased_until IS NOT NULL)),
    CONSTRAINT ck_extraction_visible_is_done CHECK (NOT visible OR state = 'done'),
    CONSTRAINT fk_extraction_spec_id FOREIGN KEY(spec_id) REFERENCES patchstore.feature_spec (id) ON DELETE CASCADE,
    CONSTRAINT fk_extraction_image_id FOREIGN KEY(image_id) REFERENCES patchstore.image (id),
    CONSTRAINT fk_extraction_run_id FOREIGN KEY(run_id) REFERENCES patchstore.ingest_run (id) ON DELETE SET NULL
);

CREATE INDEX ix_extraction_image_id ON patchstore.extraction (image_id);

CREATE INDEX ix_extraction_leased ON patchstore.extraction (run_id) WHERE state = 'leased';

CREATE INDEX ix_extraction_pending ON patchstore.extraction (spec_id, attempts, image_id) WHERE state = 'pending';

