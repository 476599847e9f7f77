"""The page: the loop at a glance, and what people ask of it.

`run` is the loop on its schedule with the page beside it; `app` the page's HTTP application, which
reads the files that the loop writes and leaves orders for it.
"""
