DROP FUNCTION patchstore.ask_plainly(patchstore.feature_spec, patchstore.question);
DROP FUNCTION patchstore.ask_index(patchstore.feature_spec, patchstore.question, integer);

DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
              WHERE p.pronamespace = 'patchstore'::regnamespace AND p.proname ~ '^nearest_s\d+$'
    LOOP EXECUTE format('DROP FUNCTION %s', f); END LOOP;
END $$;

-- Makes nearest_s<ID>(query, candidates): the plain question to a spec's index, unchecked. It is
-- asked most, and a function keeps its plan, where the text above is planned anew each time.
CREATE OR REPLACE FUNCTION patchstore.prepare_nearest(s patchstore.feature_spec) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    nothing_more patchstore.question;
    name text := format('patchstore.nearest_s%s(vector, integer)', s.id);
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %s RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS %L', name,
        format('BEGIN RETURN (%s); END', replace(patchstore.hits_sql(
            patchstore.candidates_sql(s, nothing_more, true, true)), '$6', '$2')));
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'patchstore_reader') THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO patchstore_reader', name);
    END IF;
END $$;

-- What the index finds. The caller's transaction keeps its own settings.
CREATE FUNCTION patchstore.ask_index(
    s patchstore.feature_spec, q patchstore.question, pool integer, unchecked boolean
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    old_ef text := current_setting('hnsw.ef_search');
    old_scan text := current_setting('hnsw.iterative_scan');
    old_tuples text := current_setting('hnsw.max_scan_tuples');
    found patchstore.hit[];
    ignored text;
BEGIN
    ignored := set_config('hnsw.ef_search', least(greatest(q.ef_search, pool), 1000)::text, true);
    ignored := set_config('hnsw.iterative_scan',
                          CASE WHEN unchecked THEN 'off' ELSE 'relaxed_order' END, true);
    ignored := set_config('hnsw.max_scan_tuples', greatest(20000, 20 * pool)::text, true);
    IF unchecked THEN
        EXECUTE 'SELECT patchstore.nearest_s' || s.id || '($1, $2)' INTO found USING q.query, pool;
    ELSIF q.best IS NULL THEN
        found := patchstore.find_hits(q, pool, patchstore.candidates_sql(s, q, true));
    ELSE
        found := patchstore.find_hits(q, pool, patchstore.images_sql(s, q, true));
    END IF;
    ignored := set_config('hnsw.ef_search', old_ef, true);
    ignored := set_config('hnsw.iterative_scan', old_scan, true);
    ignored := set_config('hnsw.max_scan_tuples', old_tuples, true);
    RETURN found;
END $$;

-- Answers a question. Where an index stands, and not so few patches are left that comparing them all
-- is cheaper, the index is asked: when only nearness was asked for, first without a look at what is
-- visible, for nearly everything is. Where it brings fewer than k, all are compared.
CREATE OR REPLACE FUNCTION patchstore.run_search(s patchstore.feature_spec, asked patchstore.question)
RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan  -- else each call weighs making a new plan, and makes it
AS $$
DECLARE
    q patchstore.question := patchstore.check_question(s, asked);
    narrowed boolean := q.filter IS NOT NULL OR q.prefix IS NOT NULL OR q.image_ids IS NOT NULL;
    approximate boolean := NOT q.exact AND patchstore.is_indexed(s.id);
    pool integer := patchstore.pool_of(q);
    chosen bigint[];
    hits patchstore.hit[];
BEGIN
    IF approximate AND narrowed THEN
        chosen := patchstore.narrow(s, q, patchstore.exact_budget(s.id, greatest(q.ef_search, pool)));
        approximate := chosen IS NULL;
    END IF;
    IF approximate THEN
        IF NOT narrowed AND q.other_than IS NULL AND q.touching IS NULL AND q.best IS NULL
            AND has_function_privilege(to_regprocedure(
                'patchstore.nearest_s' || s.id || '(vector, integer)'), 'EXECUTE') THEN
            hits := patchstore.locate_hits(s.id, q, patchstore.ask_index(s, q, pool, true), false);
        END IF;
        IF hits IS NULL OR cardinality(hits) < q.k THEN
            hits := patchstore.locate_hits(s.id, q, patchstore.ask_index(s, q, pool, false), false);
        END IF;
        IF q.best IS NOT NULL AND cardinality(hits) < q.k THEN  -- all candidates are of a few images
            hits := patchstore.locate_hits(
                s.id, q, patchstore.ask_index(s, q, 10 * pool, false), false);
        END IF;
        approximate := cardinality(hits) = q.k;
    END IF;
    IF NOT approximate THEN
        IF narrowed AND chosen IS NULL THEN
            chosen := patchstore.narrow(s, q, 'Infinity');
        END IF;
        hits := patchstore.locate_hits(s.id, q, patchstore.ask_all(s, q, chosen), true);
    END IF;
    IF hits = '{}' THEN
        PERFORM patchstore.check_built(s);
    END IF;
    IF q.max_distance < 'Infinity' THEN
        hits := ARRAY(SELECT h FROM unnest(hits) h WHERE h.distance <= q.max_distance);
    END IF;
    RETURN hits;
END $$;

REVOKE ALL ON FUNCTION patchstore.ask_index(
    patchstore.feature_spec, patchstore.question, integer, boolean) FROM PUBLIC;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        GRANT EXECUTE ON FUNCTION patchstore.ask_index(
            patchstore.feature_spec, patchstore.question, integer, boolean) TO patchstore_reader;
    END IF;
END $$;

SELECT patchstore.prepare_nearest(s) FROM patchstore.feature_spec s WHERE patchstore.is_indexed(s.id);
