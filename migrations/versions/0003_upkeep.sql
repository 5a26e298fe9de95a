-- Aliases of specs; what audits found; when indexes were built.

CREATE TABLE patchstore.spec_alias (
    name TEXT NOT NULL,
    spec_id INTEGER NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_spec_alias PRIMARY KEY (name),
    CONSTRAINT fk_spec_alias_spec_id FOREIGN KEY(spec_id) REFERENCES patchstore.feature_spec (id) ON DELETE RESTRICT
);

CREATE TABLE patchstore.audit (
    id INTEGER GENERATED ALWAYS AS IDENTITY,
    spec_id INTEGER NOT NULL,
    finished_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    recall REAL,
    sampled INTEGER NOT NULL,
    report JSONB NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (id),
    CONSTRAINT fk_audit_spec_id FOREIGN KEY(spec_id) REFERENCES patchstore.feature_spec (id) ON DELETE CASCADE
);

CREATE INDEX ix_audit_spec_id_finished_at ON patchstore.audit (spec_id, finished_at);

CREATE TABLE patchstore.index_build (
    spec_id INTEGER NOT NULL,
    built_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    rows_deleted BIGINT NOT NULL,
    CONSTRAINT pk_index_build PRIMARY KEY (spec_id),
    CONSTRAINT fk_index_build_spec_id FOREIGN KEY(spec_id) REFERENCES patchstore.feature_spec (id) ON DELETE CASCADE
);

-- Deleting a run looks for its extractions, to set their run_id to null.
CREATE INDEX ix_extraction_run_id ON patchstore.extraction (run_id);

-- The one place that says what a spec's name means. An alias stands wherever a name may; no spec has
-- the name of an alias.
CREATE OR REPLACE FUNCTION patchstore.find_spec(spec text) RETURNS patchstore.feature_spec
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found patchstore.feature_spec;
BEGIN
    SELECT * INTO found FROM patchstore.feature_spec f WHERE f.name = spec;
    IF found.id IS NULL THEN
        SELECT f.* INTO found FROM patchstore.feature_spec f
          JOIN patchstore.spec_alias a ON a.spec_id = f.id WHERE a.name = spec;
    END IF;
    IF found.id IS NULL THEN
        PERFORM patchstore.refuse('spec_unknown', format('no spec named "%s"; known: %s', spec,
            coalesce((SELECT string_agg(known.name, ', ' ORDER BY known.name)
                        FROM (SELECT name FROM patchstore.feature_spec
                              UNION ALL SELECT name FROM patchstore.spec_alias) known),
                     'none yet; add one with: patchstore spec add')));
    END IF;
    RETURN found;
END $$;

CREATE OR REPLACE VIEW patchstore.specs AS
    SELECT name, digest, recipe, dim, metric, created_at,
           patchstore.is_indexed(id) AS indexed,
           ARRAY(SELECT a.name FROM patchstore.spec_alias a
                  WHERE a.spec_id = feature_spec.id ORDER BY a.name) AS aliases
      FROM patchstore.feature_spec;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        GRANT SELECT ON patchstore.spec_alias TO patchstore_reader;
    END IF;
END $$;
