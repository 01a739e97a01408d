"""Sources of data: from files to samples, and from samples to tensors.

A source is a plain class with

* `read(path=None) -> Samples`: labelled samples, of `path` (a validation file, say) or of its own
* `fit(samples) -> dict`: what the training samples teach (scaling, vocabularies, sizes), as JSON values
* `encode(samples, state) -> tuple of tensors`: the inputs of the model, by what `fit` returned
* `read_inputs(paths, state) -> iterator of Samples`: unlabelled samples for prediction, in blocks
* `fingerprint(path=None) -> str`: changes when what `read(path)` reads does

Class names, splits and target encoding are not its work.
"""
