DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
              WHERE p.pronamespace = 'patchstore'::regnamespace AND p.proname ~ '^exact_s\d+$'
    LOOP EXECUTE format('DROP FUNCTION %s', f); END LOOP;
END $$;

-- The candidates, nearest first. By the index: in its order, which is that of the halfvecs, and
-- unless `unchecked` each one is checked on the way. Else by their distances: "+ 0" keeps the index
-- out. There the images are chosen ($3) before, by filter and prefix too.
CREATE OR REPLACE FUNCTION patchstore.candidates_sql(
    s patchstore.feature_spec, q patchstore.question, approximate boolean,
    unchecked boolean DEFAULT false
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format(
        'SELECT p.id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
                (p.embedding %s $1)::double precision AS distance
           FROM patchstore.patch_feature p', (s).distance_operator)
        || CASE WHEN approximate THEN format(
            ' WHERE %s%s ORDER BY (p.embedding::halfvec(%s)) %s ($1::halfvec(%3$s))',
            patchstore.conditions_sql(s, q),
            CASE WHEN unchecked THEN '' ELSE patchstore.shown_sql(s, q) END,
            (s).dim, (s).distance_operator)
        ELSE format(
            '  JOIN patchstore.extraction e
                 ON e.spec_id = %s AND e.image_id = p.image_id AND e.visible
              WHERE %s ORDER BY (p.embedding %s $1) + 0, p.id',
            (s).id, patchstore.conditions_sql(s, q), (s).distance_operator) END
        || ' LIMIT $6'
$$;

-- Makes nearest_s<ID>(query, candidates, k): the k nearest that are visible of so many candidates of
-- a spec's index, ranked by float32, with where they are shown now. It is asked most, and a function
-- keeps its plan, where the text that find_hits runs is planned anew each time.
CREATE OR REPLACE FUNCTION patchstore.prepare_nearest(s patchstore.feature_spec) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    nothing_more patchstore.question;
    name text := format('patchstore.nearest_s%s(vector, integer, integer)', s.id);
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %s RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS %L', name,
        format('BEGIN RETURN (
            SELECT array_agg(ROW(h.id, h.image_id, l.uri, h.x, h.y, h.width, h.height, h.scale,
                                 h.distance, l.metadata, false)::patchstore.hit)
              FROM (SELECT * FROM (%s) c
                     WHERE c.distance < ''NaN''  -- cosine: a zero vector is nobody''s neighbour
                       AND (SELECT e.visible FROM patchstore.extraction e
                             WHERE e.spec_id = %s AND e.image_id = c.image_id)
                     ORDER BY c.distance, c.id LIMIT $3) h
             CROSS JOIN LATERAL (
                SELECT l.uri, l.metadata FROM patchstore.image_location l
                 WHERE l.image_id = h.image_id AND l.vanished_at IS NULL ORDER BY l.id LIMIT 1) l);
            END',
            replace(patchstore.candidates_sql(s, nothing_more, true, true), '$6', '$2'), s.id));
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'patchstore_reader') THEN
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO patchstore_reader', name);
    END IF;
END $$;

-- Answers a plain question by the spec's index; null where anything else was asked or is wrong, no
-- index stands, or fewer than k are found this way. Few statements, on purpose: a search leaves
-- nothing of them in the processor's caches, and each one costs as much as comparing a patch.
CREATE OR REPLACE FUNCTION patchstore.ask_plainly(s patchstore.feature_spec, q patchstore.question)
RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    found patchstore.hit[];
    old_ef text;
    ignored text;
BEGIN
    IF (vector_dims(q.query) = s.dim AND (s.metric <> 'cosine' OR vector_norm(q.query) > 0)
        AND q.k BETWEEN 1 AND 10000 AND coalesce(q.ef_search BETWEEN 1 AND 1000, true)
        AND num_nulls(q.best, q.filter, q.prefix, q.image_ids, q.touching, q.max_distance) = 6
        AND q.exact IS NOT TRUE AND coalesce(q.other_than, '{}') = '{}'
        AND patchstore.is_indexed(s.id)
        AND has_function_privilege(to_regproc('patchstore.nearest_s' || s.id), 'EXECUTE')) THEN
        old_ef := current_setting('hnsw.ef_search');
        ignored := set_config('hnsw.ef_search', least(1000, greatest(
            coalesce(q.ef_search, patchstore.usual_ef_search(s.id)),
            patchstore.pool_of(q)))::text, true);
        EXECUTE 'SELECT patchstore.nearest_s' || s.id || '($1, $2, $3)' INTO found
          USING q.query, patchstore.pool_of(q), q.k;
        ignored := set_config('hnsw.ef_search', old_ef, true);
    END IF;
    RETURN CASE WHEN cardinality(found) = q.k THEN found END;
END $$;

-- Answers a question. Where an index stands, and not so few patches are left that comparing them all
-- is cheaper, the index is asked: when only nearness was asked for, first without a look at what is
-- visible, for nearly everything is. Where it brings fewer than k, all are compared.
CREATE OR REPLACE FUNCTION patchstore.run_search(
    s patchstore.feature_spec, asked patchstore.question
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_generic_plan  -- else each call weighs making a new plan, and makes it
AS $$
DECLARE
    q patchstore.question;
    narrowed boolean;
    approximate boolean;
    pool integer;
    chosen bigint[];
    hits patchstore.hit[] := patchstore.ask_plainly(s, asked);
BEGIN
    IF hits IS NOT NULL THEN
        RETURN hits;
    END IF;
    q := patchstore.check_question(s, asked);
    narrowed := q.filter IS NOT NULL OR q.prefix IS NOT NULL OR q.image_ids IS NOT NULL;
    approximate := NOT q.exact AND patchstore.is_indexed(s.id);
    pool := patchstore.pool_of(q);
    IF approximate AND narrowed THEN
        chosen := patchstore.narrow(s, q, patchstore.exact_budget(s.id, greatest(q.ef_search, pool)));
        approximate := chosen IS NULL;
    END IF;
    IF approximate THEN
        hits := patchstore.locate_hits(s.id, q, patchstore.ask_index(s, q, pool), false);
        IF q.best IS NOT NULL AND cardinality(hits) < q.k THEN  -- all candidates are of a few images
            hits := patchstore.locate_hits(s.id, q, patchstore.ask_index(s, q, 10 * pool), false);
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

-- The stored patch of an image whose box starts at (x, y), else the one around that point whose
-- centre is nearest.
CREATE OR REPLACE FUNCTION patchstore.find_patch(
    s patchstore.feature_spec, images bigint[], x integer, y integer
) RETURNS patchstore.patch_feature LANGUAGE sql STABLE AS $$
    SELECT p.* FROM patchstore.patch_feature p
      JOIN patchstore.extraction e
        ON e.spec_id = (s).id AND e.image_id = p.image_id AND e.visible
     WHERE p.spec_id = (s).id AND p.image_id = ANY (images)
       AND find_patch.x >= p.x AND find_patch.x < p.x + p.width
       AND find_patch.y >= p.y AND find_patch.y < p.y + p.height
     ORDER BY (p.x = find_patch.x AND p.y = find_patch.y) DESC,
           abs(2 * p.x + p.width - 2 * find_patch.x) + abs(2 * p.y + p.height - 2 * find_patch.y),
           p.id
     LIMIT 1
$$;

DROP FUNCTION patchstore.fits_index(patchstore.feature_spec, vector);

SELECT patchstore.prepare_nearest(s) FROM patchstore.feature_spec s WHERE patchstore.is_indexed(s.id);
