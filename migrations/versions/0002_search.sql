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

-- Whether a valid HNSW index stands on the spec's partition. Under the name that it is built by it is
-- found in 6 us, under any other in 40.
CREATE OR REPLACE FUNCTION patchstore.is_indexed(spec_id integer) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
DECLARE
    partition text := 'patchstore.patch_feature_s' || spec_id;
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_index i
         WHERE i.indexrelid = pg_catalog.to_regclass(partition || '_hnsw') AND i.indisvalid) THEN
        RETURN true;
    END IF;
    RETURN EXISTS (
        SELECT FROM pg_catalog.pg_index i
          JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
          JOIN pg_catalog.pg_am a ON a.oid = c.relam
         WHERE i.indrelid = pg_catalog.to_regclass(partition)
           AND a.amname = 'hnsw' AND i.indisvalid);
END $$;

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

-- How widely an index of so many rows must be searched for a recall of 0.99: measured 200 at 100,000
-- rows, and 1,000 at 1,000,000 that lie in heaps of near copies (docs/benchmarks.md).
CREATE FUNCTION patchstore.usual_ef_search(spec_id integer) RETURNS integer
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT least(1000, greatest(200, c.reltuples / 1000))::integer FROM pg_catalog.pg_class c
             WHERE c.oid = pg_catalog.to_regclass('patchstore.patch_feature_s' || spec_id));
END $$;

-- The question as it is searched for: what asks for nothing is left out, what is open has its default.
CREATE FUNCTION patchstore.check_question(s patchstore.feature_spec, q patchstore.question)
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
    q.ef_search := coalesce(q.ef_search, patchstore.usual_ef_search(s.id));
    q.filter := nullif(q.filter, '{}');
    q.prefix := nullif(q.prefix, '');
    q.max_distance := coalesce(q.max_distance, 'Infinity');
    RETURN q;
END $$;

-- The statements below are text: only with the spec's id and dimension in them does the planner see
-- that one partition and its index answer them. Their parameters, whether used or not:
-- $1 query, $2 other_than, $3 image_ids, $4 filter, $5 prefix, $6 how many candidates, $7 k, $8 best.

-- What filter and prefix ask of a location.
CREATE FUNCTION patchstore.narrowing_sql(q patchstore.question) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (q).filter IS NULL THEN ''
                ELSE ' AND l.metadata @> $4 AND l.metadata <> ''{}''' END
        || CASE WHEN (q).prefix IS NULL THEN ''
                ELSE ' AND "left"(l.uri, 255) ^@ "left"($5, 255) AND l.uri ^@ $5' END
$$;

-- What every candidate must satisfy besides being visible and shown where filter and prefix say.
CREATE FUNCTION patchstore.conditions_sql(s patchstore.feature_spec, q patchstore.question)
RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'p.spec_id = ' || (s).id
        || CASE WHEN (q).other_than IS NULL THEN '' ELSE ' AND p.image_id <> ALL ($2)' END
        || CASE WHEN (q).image_ids IS NULL THEN '' ELSE ' AND p.image_id = ANY ($3)' END
        || CASE WHEN (q).touching IS NULL THEN '' ELSE format(
            ' AND p.x < %s AND p.x + p.width > %s AND p.y < %s AND p.y + p.height > %s',
            (q).touching[1]::bigint + (q).touching[3], (q).touching[1],
            (q).touching[2]::bigint + (q).touching[4], (q).touching[2]) END
$$;

-- Whether the image of p is visible, and shown as filter and prefix say by a live location: as its
-- content, or as its previous content while the new one is being computed. One image at a time: of
-- EXISTS the planner would make a hash of all locations first.
CREATE FUNCTION patchstore.shown_sql(s patchstore.feature_spec, q patchstore.question) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT format(
        ' AND (SELECT e.visible FROM patchstore.extraction e
                WHERE e.spec_id = %s AND e.image_id = p.image_id)', (s).id)
        || CASE WHEN (q).filter IS NULL AND (q).prefix IS NULL THEN '' ELSE format(
        ' AND coalesce(
            (SELECT true FROM patchstore.image_location l
              WHERE l.image_id = p.image_id AND l.vanished_at IS NULL%2$s LIMIT 1),
            (SELECT true FROM patchstore.image_location l
               LEFT JOIN patchstore.extraction n ON n.spec_id = %1$s AND n.image_id = l.image_id
              WHERE l.previous_image_id = p.image_id AND l.vanished_at IS NULL
                AND coalesce(n.state, ''pending'') IN (''pending'', ''leased'')%2$s LIMIT 1),
            false)',
        (s).id, patchstore.narrowing_sql(q)) END
$$;

-- How many candidates the index is asked for: some more patches than wanted, for it orders by halves;
-- enough to hold the best patches of each of the best images.
CREATE FUNCTION patchstore.pool_of(q patchstore.question) RETURNS integer LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN (q).best IS NULL THEN (q).k + greatest(5, (q).k / 2)
                ELSE greatest(500, 20 * (q).k) END
$$;

-- The candidates, nearest first. By the index: in its order, which is that of the halfvecs, and
-- unless `unchecked` each one is checked on the way. Else by their distances: "+ 0" keeps the index
-- out. There the images are chosen ($3) before, by filter and prefix too.
CREATE FUNCTION patchstore.candidates_sql(
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

-- The k images with the nearest mean of their best patches, each with its nearest patch. By the
-- index: the pool only picks the images, then each one's best are found among all of its patches.
-- Those of an image that are in the pool give a mean that it cannot fall below, and where they are
-- `best` or more, its mean itself: an image whose bound is above the k-th such mean has lost.
CREATE FUNCTION patchstore.images_sql(
    s patchstore.feature_spec, q patchstore.question, approximate boolean
) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT format('WITH candidate AS MATERIALIZED (%s),', patchstore.candidates_sql(s, q, approximate))
        || CASE WHEN approximate THEN format('
            met AS (
                SELECT image_id, distance,
                       row_number() OVER (PARTITION BY image_id ORDER BY distance) AS rank
                  FROM candidate),
            bound AS (
                SELECT image_id, avg(distance) AS mean, count(*) = $8 AS complete
                  FROM met WHERE rank <= $8 GROUP BY image_id),
            contender AS (
                SELECT image_id FROM bound
                 WHERE mean <= coalesce((SELECT mean FROM bound WHERE complete
                                          ORDER BY mean OFFSET $7 - 1 LIMIT 1), ''Infinity'')
                 ORDER BY mean LIMIT 4 * $7),
            measured AS (
                SELECT p.id, p.image_id, p.x, p.y, p.width, p.height, p.scale,
                       (p.embedding %s $1)::double precision AS distance
                  FROM contender c
                  JOIN patchstore.patch_feature p ON p.image_id = c.image_id AND %s),',
            (s).distance_operator, patchstore.conditions_sql(s, q))
        ELSE ' measured AS (SELECT * FROM candidate),' END
        || '
            ranked AS (
                SELECT p.*, row_number() OVER (PARTITION BY p.image_id ORDER BY p.distance, p.id) AS rank
                  FROM measured p WHERE p.distance < ''NaN''),
            best AS (
                SELECT image_id, avg(distance) AS mean FROM ranked WHERE rank <= $8
                 GROUP BY image_id ORDER BY 2, 1 LIMIT $7)
        SELECT r.id, r.image_id, r.x, r.y, r.width, r.height, r.scale, b.mean AS distance
          FROM best b JOIN ranked r ON r.image_id = b.image_id AND r.rank = 1'
$$;

-- The images that filter, prefix and image_ids leave, some of them twice, unless they have more than
-- `budget` patches: then null, and no more than that was read.
CREATE FUNCTION patchstore.narrow(
    s patchstore.feature_spec, q patchstore.question, budget double precision
) RETURNS bigint[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    found bigint[] := '{}';
    patches bigint := 0;
    image record;
    location text := CASE WHEN q.filter IS NULL AND q.prefix IS NULL THEN ''
        ELSE format('(SELECT l.image_id FROM patchstore.image_location l
                       WHERE l.vanished_at IS NULL%1$s
                      UNION ALL
                      SELECT l.previous_image_id FROM patchstore.image_location l
                        LEFT JOIN patchstore.extraction n
                          ON n.spec_id = %2$s AND n.image_id = l.image_id
                       WHERE l.previous_image_id IS NOT NULL AND l.vanished_at IS NULL
                         AND coalesce(n.state, ''pending'') IN (''pending'', ''leased'')%1$s)
                    shown JOIN ',
            patchstore.narrowing_sql(q), s.id) END;
BEGIN
    FOR image IN EXECUTE
        'SELECT e.image_id, e.patch_count FROM ' || location || 'patchstore.extraction e'
        || CASE WHEN location = '' THEN ' WHERE ' ELSE ' ON e.image_id = shown.image_id AND ' END
        || 'e.spec_id = ' || s.id || ' AND e.visible'
        || CASE WHEN q.image_ids IS NULL THEN '' ELSE ' AND e.image_id = ANY ($3)' END
        -- Every image has a patch. Being told that few are enough, the planner starts at once.
        || CASE WHEN budget = 'Infinity' THEN '' ELSE ' LIMIT ' || ceil(budget + 1)::bigint END
        USING NULL, NULL, q.image_ids, q.filter, q.prefix
    LOOP
        patches := patches + image.patch_count;
        IF patches > budget THEN
            RETURN NULL;
        END IF;
        found := found || image.image_id;
    END LOOP;
    RETURN found;
END $$;

-- Ranks what was found by its float32 distance, and adds where it is shown.
CREATE FUNCTION patchstore.locate_hits(
    spec integer, q patchstore.question, nearest patchstore.hit[], exact boolean
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN ARRAY(
        SELECT ROW(h.patch_id, h.image_id, l.uri, h.x, h.y, h.width, h.height, h.scale, h.distance,
                   l.metadata, locate_hits.exact)::patchstore.hit
          FROM (SELECT f.*
                  FROM (SELECT * FROM unnest(nearest) n
                         WHERE n.distance < 'NaN'  -- cosine: a zero vector is nobody's neighbour
                         ORDER BY n.distance, n.patch_id) f
                 WHERE (SELECT e.visible FROM patchstore.extraction e
                         WHERE e.spec_id = spec AND e.image_id = f.image_id)
                 LIMIT q.k) h
         CROSS JOIN LATERAL (
            (SELECT l.uri, l.metadata FROM patchstore.image_location l
              WHERE l.image_id = h.image_id AND l.vanished_at IS NULL
                AND (q.filter IS NULL OR l.metadata @> q.filter)
                AND (q.prefix IS NULL OR l.uri ^@ q.prefix) ORDER BY l.id LIMIT 1)
            UNION ALL
            (SELECT l.uri, l.metadata FROM patchstore.image_location l
               LEFT JOIN patchstore.extraction n ON n.spec_id = spec AND n.image_id = l.image_id
              WHERE l.previous_image_id = h.image_id AND l.vanished_at IS NULL
                AND coalesce(n.state, 'pending') IN ('pending', 'leased')
                AND (q.filter IS NULL OR l.metadata @> q.filter)
                AND (q.prefix IS NULL OR l.uri ^@ q.prefix) ORDER BY l.id LIMIT 1)
            LIMIT 1) l
         ORDER BY h.distance, h.patch_id);
END $$;

-- What a statement finds, as text; locate_hits adds the rest of each hit.
CREATE FUNCTION patchstore.hits_sql(ranked text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT 'SELECT array_agg(ROW(r.id, r.image_id, NULL, r.x, r.y, r.width, r.height, r.scale,
                                 r.distance, NULL, NULL)::patchstore.hit) FROM (' || ranked || ') r'
$$;

CREATE FUNCTION patchstore.find_hits(
    q patchstore.question, candidates integer, ranked text
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    found patchstore.hit[];
BEGIN
    EXECUTE patchstore.hits_sql(ranked) INTO found
      USING q.query, q.other_than, q.image_ids, q.filter, q.prefix, candidates, q.k, q.best;
    RETURN found;
END $$;

-- Makes nearest_s<ID>(query, candidates): the plain question to a spec's index, unchecked. It is
-- asked most, and a function keeps its plan, where the text above is planned anew each time.
CREATE FUNCTION patchstore.prepare_nearest(s patchstore.feature_spec) RETURNS void
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

-- What a comparison with every patch of the chosen images finds; null: of all images.
CREATE FUNCTION patchstore.ask_all(
    s patchstore.feature_spec, q patchstore.question, chosen bigint[]
) RETURNS patchstore.hit[] LANGUAGE plpgsql STABLE AS $$
BEGIN
    q.image_ids := chosen;
    RETURN CASE
        WHEN q.best IS NULL
        THEN patchstore.find_hits(q, q.k, patchstore.candidates_sql(s, q, false))
        ELSE patchstore.find_hits(q, NULL, patchstore.images_sql(s, q, false)) END;
END $$;

-- Answers a question. Where an index stands, and not so few patches are left that comparing them all
-- is cheaper, the index is asked: when only nearness was asked for, first without a look at what is
-- visible, for nearly everything is. Where it brings fewer than k, all are compared.
CREATE FUNCTION patchstore.run_search(s patchstore.feature_spec, asked patchstore.question)
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

-- How many patches are compared one by one in the time that the index takes to find enough among them.
-- Where n of N patches are left, it looks at N / n times as many as it is asked for; each costs about
-- four comparisons: n = sqrt(4 * wanted * N). Measured on a busy machine at 512 dimensions, index
-- against comparing all: of 100,000 patches 5,000 left 26 ms against 15, 10,000 left 10 against 31,
-- for images 10,000 left 156 against 67, 20,000 left 106 against 124; of 1,000,000 patches 10,000
-- left 74 against 33, 100,000 left 17 against 360.
CREATE FUNCTION patchstore.exact_budget(spec_id integer, wanted integer) RETURNS double precision
LANGUAGE sql STABLE AS $$
    SELECT sqrt(4.0 * wanted * greatest(c.reltuples, 1)) FROM pg_catalog.pg_class c
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
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql STABLE ROWS 10 AS $$
BEGIN
    RETURN QUERY SELECT h.* FROM unnest(patchstore.run_search(patchstore.find_spec(spec), ROW(
        query, k, array_remove(other_than, NULL), coalesce(exact, false), ef_search, NULL,
        filter, prefix, image_ids, touching, max_distance)::patchstore.question)) h;
END $$;

CREATE FUNCTION patchstore.similar_images(
    spec text, query vector, k integer DEFAULT 10,
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, best integer DEFAULT 3,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL,
    ef_search integer DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql STABLE ROWS 10 AS $$
BEGIN
    RETURN QUERY SELECT h.* FROM unnest(patchstore.run_search(patchstore.find_spec(spec), ROW(
        query, k, array_remove(other_than, NULL), coalesce(exact, false), ef_search,
        coalesce(best, 3), filter, prefix, image_ids, touching, max_distance)::patchstore.question)) h;
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
    other_images boolean DEFAULT false, exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql STABLE ROWS 10 AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
    p patchstore.patch_feature := patchstore.find_patch(s, ARRAY[image], x, y);
BEGIN
    IF p.id IS NULL THEN
        PERFORM patchstore.check_built(s),
                patchstore.refuse('patch_unknown', format(
                    'spec "%s" has no patch of image %s at %s,%s', spec, image, x, y));
    END IF;
    RETURN QUERY SELECT h.* FROM unnest(patchstore.run_search(s, ROW(
        p.embedding, k, CASE WHEN other_images THEN ARRAY[image] ELSE '{}' END,
        coalesce(exact, false), ef_search, NULL, filter, prefix, image_ids, touching,
        max_distance)::patchstore.question)) h;
END $$;

-- The same for an image named by its URI.
CREATE FUNCTION patchstore.similar_to_patch(
    spec text, image text, x integer, y integer, k integer DEFAULT 10,
    other_images boolean DEFAULT false, exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS SETOF patchstore.hit LANGUAGE plpgsql STABLE ROWS 10 AS $$
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
    other_than bigint[] DEFAULT '{}', exact boolean DEFAULT false, ef_search integer DEFAULT NULL,
    filter jsonb DEFAULT NULL, prefix text DEFAULT NULL, image_ids bigint[] DEFAULT NULL,
    touching integer[] DEFAULT NULL, max_distance double precision DEFAULT NULL
) RETURNS TABLE (query integer, hit patchstore.hit) LANGUAGE plpgsql STABLE AS $$
DECLARE
    s patchstore.feature_spec := patchstore.find_spec(spec);
BEGIN
    FOR i IN 1 .. coalesce(cardinality(queries), 0) LOOP
        RETURN QUERY SELECT i, h FROM unnest(patchstore.run_search(s, ROW(
            queries[i], k, array_remove(other_than, NULL), coalesce(exact, false), ef_search, NULL,
            filter, prefix, image_ids, touching, max_distance)::patchstore.question)) h;
    END LOOP;
END $$;

SELECT patchstore.prepare_nearest(s) FROM patchstore.feature_spec s WHERE patchstore.is_indexed(s.id);
