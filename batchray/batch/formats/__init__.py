"""Formats of batches besides our own JSON: tables of rows, and the batch lines of OpenAI and Anthropic.

A table (Parquet, CSV, Arrow, rows of JSON, a frame, a dataset) is read in parts of at most `PART_ROWS` rows.  All parts
have one Arrow schema.  Each row becomes one request, and the whole row is carried: stored as it came in, and returned
with the result.

`options` is what the caller says about the input, `recognize` finds its format, `sources` and `text_rows` read it,
`column_types` gives rows without types a schema, `json_texts` writes the values of columns without one type,
`row_requests` makes requests of rows, and `carried` encodes the parts that are stored.  pyarrow is imported when the
first table is read.
"""
