-- The records table is called metrics because the SQL that people bring reads it by that name.

CREATE TABLE queries (
    id text PRIMARY KEY,
    query text NOT NULL CHECK (query <> '')
);

-- source says who wrote the SQL: what is in files was reviewed, the rest was not and runs as another login.
-- A data set that is loaded again replaces what it brought, but nothing that somebody has edited meanwhile; the version
-- does not tell that, for what the loader itself replaces counts, too.
CREATE TABLE metric_configurations (
    id text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$'),
    query_id text NOT NULL REFERENCES queries,
    source text NOT NULL CHECK (source IN ('file', 'dataset', 'api')),
    title text,
    is_editable boolean NOT NULL DEFAULT true,
    is_edited boolean NOT NULL DEFAULT false,
    version integer NOT NULL DEFAULT 1 CHECK (version > 0),
    prompt text,
    created_by text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX metric_configurations_query_id ON metric_configurations (query_id);

CREATE TABLE layout_items (
    item_id text NOT NULL REFERENCES metric_configurations ON DELETE CASCADE,
    breakpoint text NOT NULL CHECK (breakpoint <> ''),
    x integer NOT NULL CHECK (x >= 0),
    y integer NOT NULL CHECK (y >= 0),
    w integer NOT NULL CHECK (w > 0),
    h integer NOT NULL CHECK (h > 0),
    static boolean NOT NULL DEFAULT false,
    PRIMARY KEY (item_id, breakpoint)
);

-- The key opens with the series, so that the records can be distributed by it; metric_id alone would be unique enough.
CREATE TABLE metrics (
    id text NOT NULL REFERENCES queries,
    metric_id uuid NOT NULL DEFAULT gen_random_uuid(),
    date timestamptz NOT NULL DEFAULT now(),
    obsolescence_val numeric,
    obsolescence numeric,
    parts_flagged integer,
    alert_type text,
    alert_category text,
    PRIMARY KEY (id, metric_id)
);

-- One series over a period, and all series over a period: every metric of a dashboard is one of the two.
CREATE INDEX metrics_id_date ON metrics (id, date);
CREATE INDEX metrics_date ON metrics (date);
