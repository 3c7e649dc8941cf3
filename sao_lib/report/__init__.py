"""Tables and figures: ours beside the paper's, with uncertainty, and what ran.

`rows` reads the runs of a table, `columns` says what can stand in one, `table` writes it, `figures` draws it,
`texts` holds the tables that are not numbers, `page` puts everything on one HTML page.
"""
