"""Search a space of settings with several workers that share one study. What a setting is worth is asked of the caller.

The study lies in a journal file or a database, and is all that the workers share. `space` says what is searched, `store` where the study
lies and who works on it, `study` how a worker takes one trial after another, `rows` what is shown of it.
"""
