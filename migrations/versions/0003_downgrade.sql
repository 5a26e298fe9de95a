CREATE OR REPLACE FUNCTION patchstore.find_spec(spec text) RETURNS patchstore.feature_spec
LANGUAGE plpgsql STABLE AS $$
DECLARE
    found patchstore.feature_spec;
BEGIN
    SELECT * INTO found FROM patchstore.feature_spec f WHERE f.name = spec;
    IF found.id IS NULL THEN
        PERFORM patchstore.refuse('spec_unknown', format('no spec named "%s"; known: %s', spec,
            coalesce((SELECT string_agg(name, ', ' ORDER BY name) FROM patchstore.feature_spec),
                     'none')));
    END IF;
    RETURN found;
END $$;

DROP VIEW patchstore.specs;

CREATE VIEW patchstore.specs AS
    SELECT name, digest, recipe, dim, metric, created_at,
           patchstore.is_indexed(id) AS indexed
      FROM patchstore.feature_spec;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        GRANT SELECT ON patchstore.specs TO patchstore_reader;
    END IF;
END $$;

DROP TABLE patchstore.spec_alias, patchstore.audit, patchstore.index_build;

DROP INDEX patchstore.ix_extraction_run_id;
