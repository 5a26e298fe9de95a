-- The plain question is answered by one statement where all patches are compared, too.

-- The candidates, nearest first. By the index: in its order, which is that of the halfvecs, and
-- unless `unchecked` each one is checked on the way. Else by their distances: "+ 0" keeps the index
-- out, and the same expression in both places is computed once. There the images are chosen ($3)
-- before, by filter and prefix too.
CREATE OR REPLACE FUNCTION patchstore.candidates_sql(
    s patchstore.feature_spec, q patchstore.question, approximate boolean,
    unchecked boolean DEFAULT false
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format(
        'SELECT p.id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
                (p.embedding %s $1) + 0 AS distance
           FROM patchstore.patch_feature p', (s).distance_operator)
        || CASE WHEN approximate THEN format(
            ' WHERE %s%s ORDER BY (p.embedding::halfvec(%s)) %s ($1::halfvec(%3$s))',
            patchstore.conditions_sql(s, q),
            CASE WHEN unchecked THEN '' ELSE patchstore.shown_sql(s, q) END,
            (s).dim, (s).distance_operator)
        ELSE format(
            '  JOIN patchstore.extraction e
                 ON e.spec_id = %s AND e.image_id = p.image_id AND e.visible
              WHERE %s ORDER BY distance, p.id',
            (s).id, patchstore.conditions_sql(s, q)) END
        || ' LIMIT $6'
$$;

-- Makes nearest_s<ID>(query, candidates, k): the k nearest that are visible of so many candidates of
-- a spec's index, ranked by float32, with where they are shown now; and exact_s<ID>, the same of all
-- patches. They are asked most, and a function keeps its plan, where the text that find_hits runs is
-- planned anew each time.
CREATE OR REPLACE FUNCTION patchstore.prepare_nearest(s patchstore.feature_spec) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    nothing_more patchstore.question;
    exact boolean;
    name text;
BEGIN
    FOREACH exact IN ARRAY ARRAY[false, true] LOOP
        name := format('patchstore.%s_s%s(vector, integer, integer)',
                       CASE WHEN exact THEN 'exact' ELSE 'nearest' END, s.id);
        EXECUTE format(
            'CREATE OR REPLACE FUNCTION %s RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS %L',
            name, format('BEGIN RETURN (
                SELECT array_agg(ROW(h.id, h.image_id, l.uri, h.x, h.y, h.width, h.height, h.scale,
                                     h.distance, l.metadata, %s)::patchstore.hit)
                  FROM (SELECT * FROM (%s) c
                         WHERE c.distance < ''NaN''  -- cosine: a zero vector is nobody''s neighbour
                           AND (SELECT e.visible FROM patchstore.extraction e
                                 WHERE e.spec_id = %s AND e.image_id = c.image_id)
                         ORDER BY c.distance, c.id LIMIT $3) h
                 CROSS JOIN LATERAL (
                    SELECT l.uri, l.metadata FROM patchstore.image_location l
                     WHERE l.image_id = h.image_id AND l.vanished_at IS NULL
                     ORDER BY l.id LIMIT 1) l);
                END',
                exact::text, replace(patchstore.candidates_sql(s, nothing_more, NOT exact, NOT exact),
                               '$6', '$2'), s.id));
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
        IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'patchstore_reader') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO patchstore_reader', name);
        END IF;
    END LOOP;
END $$;

-- Answers a plain question, by the spec's index where one stands and may be asked; null where anything
-- else was asked or is wrong, or fewer than k are found this way. Few statements, on purpose: a search
-- leaves nothing of them in the processor's caches, and each one costs as much as comparing a patch.
CREATE OR REPLACE FUNCTION patchstore.ask_plainly(
    s patchstore.feature_spec, q patchstore.question
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    approximate boolean;
    prepared text;
    found patchstore.hit[];
    old_ef text;
    ignored text;
BEGIN
    IF (vector_dims(q.query) = s.dim AND (s.metric <> 'cosine' OR vector_norm(q.query) > 0)
        AND q.k BETWEEN 1 AND 10000 AND coalesce(q.ef_search BETWEEN 1 AND 1000, true)
        AND num_nulls(q.best, q.filter, q.prefix, q.image_ids, q.touching, q.max_distance) = 6
        AND coalesce(q.other_than, '{}') = '{}') THEN
        approximate := q.exact IS NOT TRUE AND patchstore.is_indexed(s.id);
        prepared := 'patchstore.' || CASE WHEN approximate THEN 'nearest_s' ELSE 'exact_s' END || s.id;
        IF has_function_privilege(to_regproc(prepared), 'EXECUTE') THEN
            IF approximate THEN
                old_ef := current_setting('hnsw.ef_search');
                ignored := set_config('hnsw.ef_search', least(1000, greatest(
                    coalesce(q.ef_search, patchstore.usual_ef_search(s.id)),
                    patchstore.pool_of(q)))::text, true);
            END IF;
            EXECUTE 'SELECT ' || prepared || '($1, $2, $3)' INTO found
              USING q.query, CASE WHEN approximate THEN patchstore.pool_of(q) ELSE q.k END, q.k;
            IF approximate THEN
                ignored := set_config('hnsw.ef_search', old_ef, true);
            END IF;
        END IF;
    END IF;
    RETURN CASE WHEN cardinality(found) = q.k THEN found END;
END $$;

SELECT patchstore.prepare_nearest(s) FROM patchstore.feature_spec s;
