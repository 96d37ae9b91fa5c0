"""The outcomes and the progress of a job as people and files see them.

Owns the conversion of stored results to `Result` lines and pandas frames (`results`), the pages in which results are
read while a job runs (`result_pages`), the progress in a terminal or a notebook (`progress_display`), conversations
(`trajectory`), reports (`report`) and pictures (`plots`).  Invariants:

- A view only reads: it shows what the store has committed, and changes nothing.
- Fields of a result are those of `batchray.schema.Result`, the same in Python, in a file and over HTTP.
- Texts of models and users are escaped, without control characters, and cut to a limited size.
- pandas, rich and matplotlib are imported when they are used, not with batchray.

Start reading at `results.ResultViews`.
"""
