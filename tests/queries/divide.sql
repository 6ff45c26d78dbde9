SELECT 10 / :by::int4 AS quotient
