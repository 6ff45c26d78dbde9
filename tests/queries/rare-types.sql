SELECT :c::bpchar AS c, B'101' = :bits AS bits, :codes::bpchar[] AS codes, :r::int4range AS r, :ip::inet AS ip
