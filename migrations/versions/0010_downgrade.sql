DO $$
DECLARE
    name regclass;
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        FOR name IN SELECT c.oid FROM pg_class c
                     WHERE c.relnamespace = 'patchstore'::regnamespace AND c.relkind = 'r'
                       AND (c.relispartition OR c.relname IN (
                            'alembic_version', 'audit', 'index_build', 'ingest_run',
                            'precision_check', 'source'))
        LOOP
            EXECUTE format('REVOKE SELECT ON %s FROM patchstore_reader', name);
        END LOOP;
        REVOKE SELECT ON ALL SEQUENCES IN SCHEMA patchstore FROM patchstore_reader;
    END IF;
END $$;

-- An empty answer means something else while nothing is searchable yet.
CREATE OR REPLACE FUNCTION patchstore.check_built(s patchstore.feature_spec) RETURNS void
LANGUAGE plpgsql STABLE AS $$
DECLARE
    waiting bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM patchstore.extraction e WHERE e.spec_id = s.id AND e.visible) THEN
        SELECT count(*) INTO waiting FROM patchstore.extraction e
          WHERE e.spec_id = s.id AND e.state IN ('pending', 'leased');
        IF waiting > 0 THEN
            PERFORM patchstore.refuse('spec_building', format(
                'spec "%s" is still building: none of its %s images is done yet; '
                'ask again in a while', s.name, waiting));
        END IF;
    END IF;
END $$;
