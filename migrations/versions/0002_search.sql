-- One search with every option, the same for SQL, HTTP, command and page.

-- By its beginning: a URI may be longer than an entry of a B-tree.
CREATE INDEX ix_image_location_prefix ON patchstore.image_location
    (("left"(uri, 255)) text_pattern_ops);

CREATE INDEX ix_image_location_metadata ON patchstore.image_location
    USING gin (metadata jsonb_path_ops) WHERE metadata <> '{}';

DROP FUNCTION patchstore.similar_patches(text, vector, integer, bigint[], boolean, integer);
DROP FUNCTION patchstore.similar_images(text, vector, integer, bigint[], boolean, integer);
DROP FUNCTION patchstore.run_search(
    patchstore.feature_spec, boolean, vector, integer, bigint[], boolean, integer, integer);
DROP FUNCTION patchstore.images_sql(patchstore.feature_spec, boolean);
DROP FUNCTION patchstore.patches_sql(patchstore.feature_spec, boolean);
DROP FUNCTION patchstore.candidates_sql(patchstore.feature_spec, boolean);
DROP FUNCTION patchstore.check_question(patchstore.feature_spec, vector, integer);
DROP FUNCTION patchstore.find_spec(text);

ALTER TYPE patchstore.hit ADD ATTRIBUTE exact boolean;

-- A question with all of its options, as the functions below pass it on.
CREATE TYPE patchstore.question AS (
    query        vector,
    k            integer,
    other_than   bigint[],
    exact        boolean,
    ef_search    integer,
    best         integer,            -- null: patches are ranked, not images
    filter       jsonb,
    prefix       text,
    image_ids    bigint[],
    touching     integer[],
    max_distance double precision
);

-- CONSTRAINT names the rule that was broken, for programs; the message is for people.
CREATE FUNCTION patchstore.refuse(rule text, message text) RETURNS void
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = message, CONSTRAINT = rule,
        ERRCODE = CASE WHEN rule IN ('spec_unknown', 'spec_building', 'patch_unknown', 'image_unknown')
                       THEN 'P0002' ELSE '22023' END;
END $$;

CREATE FUNCTION patchstore.find_spec(spec text) RETURNS patchstore.feature_spec
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

CREATE FUNCTION patchstore.check_question(s patchstore.feature_spec, q patchstore.question)
RETURNS void LANGUAGE plpgsql STABLE AS $$
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
            array_ndims(q.touching) IS DISTINCT FROM 1 OR cardinality(q.touching) <> 4
            OR array_position(q.touching, NULL) IS NOT NULL
            OR q.touching[1] < 0 OR q.touching[2] < 0 OR q.touching[3] < 1 OR q.touching[4] < 1) THEN
        PERFORM patchstore.refuse('box_range', format(
            'touching is %s, expected x, y, width, height: whole pixels, x and y from 0, '
            'width and height from 1', q.touching));
    ELSIF q.max_distance = 'NaN' THEN
        PERFORM patchstore.refuse('max_distance_range', 'max_distance is not a number');
    END IF;
END $$;

-- What filter ($5) and prefix ($6) ask of a location.
CREATE FUNCTION patchstore.narrowing_sql(q patchstore.question) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN q.filter IS NULL THEN ''
                ELSE ' AND l.metadata @> $5 AND l.metadata <> ''{}''' END
        || CASE WHEN q.prefix IS NULL THEN ''
                ELSE ' AND "left"(l.uri, 255) ^@ "left"($6, 255) AND l.uri ^@ $6' END
$$;

-- Whether a live location that shows the image p.image_id, as its content or as its previous content,
-- satisfies filter and prefix.
CREATE FUNCTION patchstore.shown_sql(spec integer, q patchstore.question) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN q.filter IS NULL AND q.prefix IS NULL THEN '' ELSE format(
        ' AND (EXISTS (
             SELECT FROM patchstore.image_location l
              WHERE l.image_id = p.image_id AND l.vanished_at IS NULL%2$s)
           OR EXISTS (
             SELECT FROM patchstore.image_location l
               LEFT JOIN patchstore.extraction n ON n.spec_id = %1$s AND n.image_id = l.image_id
              WHERE l.previous_image_id = p.image_id AND l.vanished_at IS NULL
                AND coalesce(n.state, ''pending'') IN (''pending'', ''leased'')%2$s))',
        spec, patchstore.narrowing_sql(q)) END
$$;

-- What every candidate must satisfy besides being visible: $2 excluded images, $3 chosen ones.
CREATE FUNCTION patchstore.conditions_sql(s patchstore.feature_spec, q patchstore.question)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('p.spec_id = %s', s.id)
        || CASE WHEN cardinality(q.other_than) > 0 THEN ' AND p.image_id <> ALL ($2)' ELSE '' END
        || CASE WHEN q.image_ids IS NULL THEN '' ELSE ' AND p.image_id = ANY ($3)' END
        || CASE WHEN q.touching IS NULL THEN '' ELSE format(
            ' AND p.x < %s AND p.x + p.width > %s AND p.y < %s AND p.y + p.height > %s',
            q.touching[1]::bigint + q.touching[3], q.touching[1],
            q.touching[2]::bigint + q.touching[4], q.touching[2]) END
$$;

-- The candidates, as text: $1 query vector, $7 how many. Approximate: in the order of the halfvec
-- index, each one checked on the way. Exact: "+ 0" keeps the index out.
CREATE FUNCTION patchstore.candidates_sql(
    s patchstore.feature_spec, q patchstore.question, approximate boolean
) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        'SELECT p.id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
                (p.embedding %s $1)::double precision AS distance
           FROM patchstore.patch_feature p', s.distance_operator)
        || CASE WHEN approximate THEN format(
            ' WHERE %s AND (SELECT e.visible FROM patchstore.extraction e
                             WHERE e.spec_id = %s AND e.image_id = p.image_id)%s
              ORDER BY (p.embedding::halfvec(%s)) %s ($1::halfvec(%4$s))',
            patchstore.conditions_sql(s, q), s.id,
            patchstore.shown_sql(s.id, q), s.dim, s.distance_operator)
        ELSE format(
            '  JOIN patchstore.extraction e
                 ON e.spec_id = %s AND e.image_id = p.image_id AND e.visible
              WHERE %s ORDER BY (p.embedding %s $1) + 0, p.id',
            s.id, patchstore.conditions_sql(s, q), s.distance_operator) END
        || ' LIMIT $7'
$$;

-- The k ($8) nearest patches, as text, ranked by their float32 distance.
CREATE FUNCTION patchstore.patches_sql(
    s patchstore.feature_spec, q patchstore.question, approximate boolean
) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        'WITH candidate AS MATERIALIZED (%s)
         SELECT * FROM candidate ORDER BY distance, id LIMIT $8',
        patchstore.candidates_sql(s, q, approximate))
$$;

-- The k images with the nearest mean of their best $9 patches, as text. Approximate: the pool only
-- picks the images; each image's best patches are then found exactly among all of its patches.
-- Exact: every patch is a candidate ($7 is null), so every image is ranked.
CREATE FUNCTION patchstore.images_sql(
    s patchstore.feature_spec, q patchstore.question, approximate boolean
) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT format(
        'WITH candidate AS MATERIALIZED (%s),
              measured AS (%s),
              ranked AS (
                SELECT p.*, row_number() OVER (PARTITION BY p.image_id ORDER BY p.distance, p.id) AS rank
                  FROM measured p),
              best AS (
                SELECT image_id, avg(distance) AS mean FROM ranked WHERE rank <= $9
                 GROUP BY image_id ORDER BY 2, 1 LIMIT $8)
         SELECT r.id, r.image_id, r.x, r.y, r.width, r.height, r.scale, b.mean AS distance
           FROM best b JOIN ranked r ON r.image_id = b.image_id AND r.rank = 1',
        patchstore.candidates_sql(s, q, approximate),
        CASE WHEN approximate THEN format(
            'SELECT p.id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
                    (p.embedding %s $1)::double precision AS distance
               FROM (SELECT image_id FROM candidate GROUP BY image_id
                      ORDER BY min(distance), image_id LIMIT 4 * $8) picked
               JOIN patchstore.patch_feature p ON p.image_id = picked.image_id AND %s',
            s.distance_operator, patchstore.conditions_sql(s, q))
        ELSE 'SELECT * FROM candidate' END)
$$;

-- The images that filter, prefix and image_ids leave, unless they have more than `budget` patches:
-- then null, and no more than that was read.
CREATE FUNCTION patchstore.narrow(
    s patchstore.feature_spec, q patchstore.question, budget double precision
) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    found bigint[] := '{}';
    patches bigint := 0;
    image record;
    location text := CASE WHEN q.filter IS NULL AND q.prefix IS NULL THEN ''
        ELSE format(' AND e.image_id IN (
               SELECT l.image_id FROM patchstore.image_location l
                WHERE l.vanished_at IS NULL%1$s
               UNION ALL
               SELECT l.previous_image_id FROM patchstore.image_location l
                 LEFT JOIN patchstore.extraction n ON n.spec_id = %2$s AND n.image_id = l.image_id
                WHERE l.previous_image_id IS NOT NULL AND l.vanished_at IS NULL
                  AND coalesce(n.state, ''pending'') IN (''pending'', ''leased'')%1$s)',
            patchstore.narrowing_sql(q), s.id) END;
BEGIN
    FOR image IN EXECUTE format(
        'SELECT e.image_id, e.patch_count FROM patchstore.extraction e
          WHERE e.spec_id = %s AND e.visible%s%s', s.id,
        CASE WHEN q.image_ids IS NULL THEN '' ELSE ' AND e.image_id = ANY ($3)' END, location)
        USING NULL, NULL, q.image_ids, NULL, q.filter, q.prefix
    LOOP
        patches := patches + image.patch_count;
        IF patches > budget THEN
            RETURN NULL;
        END IF;
        found := found || image.image_id;
    END LOOP;
    RETURN found;
END $$;

-- Collects the hits of a question: approximate where an index stands; exact otherwise, where so few
-- patches are left that comparing them all is cheaper, and where the index brought fewer than k.
CREATE FUNCTION patchstore.run_search(s patchstore.feature_spec, asked patchstore.question)
RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    q patchstore.question := asked;
    approximate boolean;
    narrowed boolean := q.filter IS NOT NULL OR q.prefix IS NOT NULL OR q.image_ids IS NOT NULL;
    -- Twice as many as asked for, for the index orders by halves.
    pool integer := CASE WHEN q.best IS NULL THEN 2 * q.k + 10 ELSE greatest(500, 20 * q.k) END;
    chosen bigint[];
    hits patchstore.hit[];
    old_ef text := current_setting('hnsw.ef_search', true);
    old_scan text := current_setting('hnsw.iterative_scan', true);
    old_tuples text := current_setting('hnsw.max_scan_tuples', true);
BEGIN
    PERFORM patchstore.check_question(s, q);
    approximate := NOT q.exact AND patchstore.is_indexed(s.id);
    IF narrowed THEN
        chosen := patchstore.narrow(s, q, CASE WHEN approximate
            THEN patchstore.exact_budget(s.id, pool) ELSE 'Infinity' END);
        IF chosen IS NOT NULL THEN
            approximate := false;
            q.image_ids := chosen;
            q.filter := NULL;
            q.prefix := NULL;
        END IF;
    END IF;
    IF approximate THEN
        PERFORM set_config('hnsw.ef_search', least(greatest(coalesce(q.ef_search, 100), pool), 1000)::text, true),
                set_config('hnsw.iterative_scan', 'relaxed_order', true),
                set_config('hnsw.max_scan_tuples', greatest(20000, 20 * pool)::text, true);
    END IF;
    LOOP
        EXECUTE format(
            'SELECT array_agg(ROW(r.id, r.image_id, NULL, r.x, r.y, r.width, r.height, r.scale,
                                  r.distance, NULL, NULL)::patchstore.hit) FROM (%s) r',
            CASE WHEN q.best IS NULL THEN patchstore.patches_sql(s, q, approximate)
                 ELSE patchstore.images_sql(s, q, approximate) END)
            INTO hits
            USING q.query, q.other_than, q.image_ids, NULL, q.filter, q.prefix,
                  CASE WHEN approximate OR q.best IS NULL THEN pool END, q.k, q.best;
        EXIT WHEN NOT approximate OR cardinality(hits) >= q.k;
        approximate := false;
    END LOOP;
    IF old_ef IS NOT NULL THEN  -- the caller's transaction keeps its own settings
        PERFORM set_config('hnsw.ef_search', old_ef, true),
                set_config('hnsw.iterative_scan', old_scan, true),
                set_config('hnsw.max_scan_tuples', old_tuples, true);
    END IF;
    IF hits IS NULL THEN
        PERFORM patchstore.check_built(s);
    END IF;
    -- Where each image is shown. A statement of its own: its plan is made once a session.
    RETURN QUERY
        SELECT h.patch_id, h.image_id, l.uri, h.x, h.y, h.width, h.height, h.scale, h.distance,
               l.metadata, NOT approximate
          FROM unnest(hits) h CROSS JOIN LATERAL (
            (SELECT l.uri, l.metadata FROM patchstore.image_location l
              WHERE l.image_id = h.image_id AND l.vanished_at IS NULL
                AND (asked.filter IS NULL OR l.metadata @> asked.filter)
                AND (asked.prefix IS NULL OR l.uri ^@ asked.prefix) ORDER BY l.id LIMIT 1)
            UNION ALL
            (SELECT l.uri, l.metadata FROM patchstore.image_location l
               LEFT JOIN patchstore.extraction n ON n.spec_id = s.id AND n.image_id = l.image_id
              WHERE l.previous_image_id = h.image_id AND l.vanished_at IS NULL
                AND coalesce(n.state, 'pending') IN ('pending', 'leased')
                AND (asked.filter IS NULL OR l.metadata @> asked.filter)
                AND (asked.prefix IS NULL OR l.uri ^@ asked.prefix) ORDER BY l.id LIMIT 1)
            LIMIT 1) l
         WHERE h.distance <= coalesce(asked.max_distance, 'Infinity')
         ORDER BY h.distance, h.patch_id;
END $$;

-- How many patches are compared one by one in the time that the index takes to find a pool among
-- them. A comparison costs about a fifth of a step in the index, and where n of N patches are left
-- the index takes pool * N / n steps: n = sqrt(5 * pool * N).
CREATE FUNCTION patchstore.exact_budget(spec_id integer, pool integer) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT sqrt(5.0 * pool * greatest(c.reltuples, 1)) FROM pg_catalog.pg_class c
     WHERE c.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id)
$$;

-- An empty answer means something else while nothing is searchable yet.
CREATE FUNCTION patchstore.check_built(s patchstore.feature_spec) RETURNS void
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

CREATE FUNCTION patchstore.similar_patches(
    spec text, query vector, k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT 100,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE ROWS 10 AS $$
BEGIN
    RETURN QUERY SELECT * FROM patchstore.run_search(patchstore.find_spec(spec), ROW(
        query, k, array_remove(other_than, NULL), coalesce(exact, false), ef_search, NULL,
        filter, prefix, image_ids, touching, max_distance)::patchstore.question);
END $$;

CREATE FUNCTION patchstore.similar_images(
    spec text, query vector, k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, best integer DEFAULT 3,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL,
    ef_search integer DEFAULT 100
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE ROWS 10 AS $$
BEGIN
    RETURN QUERY SELECT * FROM patchstore.run_search(patchstore.find_spec(spec), ROW(
        query, k, array_remove(other_than, NULL), coalesce(exact, false), ef_search,
        coalesce(best, 3), filter, prefix, image_ids, touching, max_distance)::patchstore.question);
END $$;

-- The stored patch of an image whose box starts at (x, y), else the one around that point whose
-- centre is nearest.
CREATE FUNCTION patchstore.find_patch(s patchstore.feature_spec, images bigint[], x integer, y integer)
RETURNS patchstore.patch_feature LANGUAGE sql STABLE AS $$
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

-- The images that are shown at a URI.
CREATE FUNCTION patchstore.images_at(uri text) RETURNS bigint[] LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(DISTINCT i), '{}')
      FROM patchstore.image_location l, LATERAL unnest(ARRAY[l.image_id, l.previous_image_id]) i
     WHERE l.uri = images_at.uri AND l.vanished_at IS NULL AND i IS NOT NULL
$$;

CREATE FUNCTION patchstore.similar_to_patch(
    spec text, image bigint, x integer, y integer, k integer DEFAULT 10,
    other_images boolean DEFAULT false, exact boolean DEFAULT false, ef_search integer DEFAULT 100,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE ROWS 10 AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
    p patchstore.patch_feature := patchstore.find_patch(s, ARRAY[image], x, y);
BEGIN
    IF p.id IS NULL THEN
        PERFORM patchstore.check_built(s),
                patchstore.refuse('patch_unknown', format(
                    'spec "%s" has no patch of image %s at %s,%s', spec, image, x, y));
    END IF;
    RETURN QUERY SELECT * FROM patchstore.run_search(s, ROW(
        p.embedding, k, CASE WHEN other_images THEN ARRAY[image] ELSE '{}' END,
        coalesce(exact, false), ef_search, NULL, filter, prefix, image_ids, touching,
        max_distance)::patchstore.question);
END $$;

-- The same for an image named by its URI.
CREATE FUNCTION patchstore.similar_to_patch(
    spec text, image text, x integer, y integer, k integer DEFAULT 10,
    other_images boolean DEFAULT false, exact boolean DEFAULT false, ef_search integer DEFAULT 100,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql VOLATILE ROWS 10 AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
    p patchstore.patch_feature := patchstore.find_patch(s, patchstore.images_at(image), x, y);
BEGIN
    IF p.id IS NULL THEN
        PERFORM patchstore.check_built(s),
                patchstore.refuse('patch_unknown', format(
                    'spec "%s" has no patch of %s at %s,%s', spec, image, x, y));
    END IF;
    RETURN QUERY SELECT * FROM patchstore.similar_to_patch(
        spec, p.image_id, p.x, p.y, k, other_images, exact, ef_search, filter, prefix, image_ids,
        touching, max_distance);
END $$;

-- Many questions in one call: k hits for each query, in the order of the queries, which count from 1.
CREATE FUNCTION patchstore.similar_patches_many(
    spec text, queries vector[], k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT 100,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS TABLE (query integer, hit patchstore.hit) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
BEGIN
    FOR i IN 1 .. coalesce(cardinality(queries), 0) LOOP
        RETURN QUERY SELECT i, h FROM patchstore.run_search(s, ROW(
            queries[i], k, array_remove(other_than, NULL), coalesce(exact, false), ef_search, NULL,
            filter, prefix, image_ids, touching, max_distance)::patchstore.question) h;
    END LOOP;
END $$;
