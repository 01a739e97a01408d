"""Sources of data: from files to samples, and from samples to columns.

A source is a plain class with

* `read(path=None) -> Samples`: labelled samples, of `path` (a validation file, say) or of its own
* `fit(samples) -> dict`: what the training samples teach (scaling, vocabularies, sizes), as JSON values
* `encode(samples, state) -> tuple of columns`: the inputs of the model, by what `fit` returned
* `read_inputs(paths, state) -> iterator of Samples`: unlabelled samples for prediction, in blocks
* `fingerprint(path=None) -> str`: changes when what `read(path)` reads does

and, where it applies,

* `files(path=None) -> list of (name, path)`: all that `read(path)` reads, by which the cache knows it again
* `notes: list of str`: what the user should be told of what was read or encoded last
* `num_skipped: int`: samples that could not be read and were left out, as the config asks
* `task`: the one task that the source is for, "language_model" or "translation"; then `encode` returns the target as
  the last of the columns, and `decode_target(ids, state) -> str` turns tokens back into text
* `usable(samples, state) -> Samples`: what is left of them where training has taught that some cannot be encoded
* `contiguous = True`: samples are neighbours, and a split takes stretches of them

Class names, splits and target encoding are not its work.
"""
