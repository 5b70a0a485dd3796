"""The report: what one or more finished sets found, as one HTML page or as Markdown.

| file | job |
|---|---|
| `sections` | one section a set: its rows, its lines, its samples; no section sees another |
| `ranking`, `ledger`, `sentences` | who is the fastest; when a longer build pays back; both in words |
| `table`, `about` | cells of the table; environment, flags and remedies |
| `svg`, `distribution`, `tradeoff` | the figures |
| `training` | the figure of `accel evaluate --plot`, a file of its own |
| `contact_sheet` | the figure of `accel predict --plot` |
| `html`, `markdown`, `update` | the page; the same in Markdown; the text between two markers of a README |
"""
