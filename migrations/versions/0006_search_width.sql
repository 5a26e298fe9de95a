-- How widely an index is searched where nobody says.

-- How widely an index of so many rows must be searched for a recall of 0.99: docs/benchmarks.md. 200 at
-- 100,000 rows; at 1,000,000 that lie in heaps of near copies 1,000, but 500 where the graph was built
-- with twice the candidates, as those of many rows are.
CREATE OR REPLACE FUNCTION patchstore.usual_ef_search(spec_id integer) RETURNS integer
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT least(1000, greatest(200, t.reltuples / CASE
                       WHEN 'ef_construction=400' = ANY (i.reloptions) THEN 2000 ELSE 1000 END))::integer
              FROM pg_catalog.pg_class t LEFT JOIN pg_catalog.pg_class i
                ON i.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id || '_hnsw')
             WHERE t.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id));
END $$;

-- The question as it is searched for: what asks for nothing is left out, what is open has its default.
CREATE OR REPLACE FUNCTION patchstore.check_question(s patchstore.feature_spec, q patchstore.question)
RETURNS patchstore.question LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF q.query IS NULL THEN
        PERFORM patchstore.refuse('query_null', 'the query vector is null');
    ELSIF vector_dims(q.query) <> s.dim THEN
        PERFORM patchstore.refuse('query_dim', format(
            'the query vector has %s dimensions, spec "%s" has %s',
            vector_dims(q.query), s.name, s.dim));
    ELSIF s.metric = 'cosine' AND vector_norm(q.query) = 0 THEN
        PERFORM patchstore.refuse('query_zero',
            'the query vector is zero: it has no direction to compare by cosine');
    ELSIF q.k IS NULL OR q.k NOT BETWEEN 1 AND 10000 THEN
        PERFORM patchstore.refuse('k_range', format(
            'k is %s, expected 1 to 10000', coalesce(q.k::text, 'null')));
    ELSIF q.best < 1 THEN
        PERFORM patchstore.refuse('best_range', format('best is %s, expected 1 or more', q.best));
    ELSIF q.ef_search NOT BETWEEN 1 AND 1000 THEN
        PERFORM patchstore.refuse('ef_search_range', format(
            'ef_search is %s, expected 1 to 1000', q.ef_search));
    ELSIF jsonb_typeof(q.filter) <> 'object' THEN
        PERFORM patchstore.refuse('filter_object', format(
            'filter is a JSON %s, expected an object such as {"shelf": 3}', jsonb_typeof(q.filter)));
    ELSIF q.touching IS NOT NULL AND (
            array_dims(q.touching) IS DISTINCT FROM '[1:4]'
            OR array_position(q.touching, NULL) IS NOT NULL
            OR q.touching[1] < 0 OR q.touching[2] < 0 OR q.touching[3] < 1 OR q.touching[4] < 1) THEN
        PERFORM patchstore.refuse('box_range', format(
            'touching is %s, expected x, y, width, height: whole pixels, x and y from 0, '
            'width and height from 1', q.touching));
    ELSIF q.max_distance = 'NaN' THEN
        PERFORM patchstore.refuse('max_distance_range', 'max_distance is not a number');
    END IF;
    q.other_than := nullif(array_remove(q.other_than, NULL), '{}');
    q.exact := coalesce(q.exact, false);
    q.filter := nullif(q.filter, '{}');
    q.prefix := nullif(q.prefix, '');
    -- Of the nearest few are left out then, and those that remain lie further away, where the same
    -- width finds less.
    q.ef_search := coalesce(q.ef_search, least(1000, patchstore.usual_ef_search(s.id) * CASE
        WHEN num_nonnulls(q.filter, q.prefix, q.image_ids, q.touching) > 0 THEN 2 ELSE 1 END));
    q.max_distance := coalesce(q.max_distance, 'Infinity');
    RETURN q;
END $$;
