"""`dltrain sweep`: many trainings of one config, each with some settings changed; `sweep.sweep.sweep` is the function.

`space` says which values there are, `points` chooses among them, `worker` trains, `journal` writes down what happened,
`sweep` brings them together and `display` shows it.
"""
